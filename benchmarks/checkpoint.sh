#!/usr/bin/env bash
# Prunes and quantizes a generated checkpoint and prints seconds, GB/s of input and the peak of the process's own memory
# (RssAnon), beside a plain copy of the same files to the same disk: checkpoint.sh [GB (10)] [FOLDER (a temporary one)]
# Build first: mvn package -DskipTests. Needs 2.6 times the checkpoint's size on disk; the folder's content is deleted.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
size=${1:-10}
folder=${2:-}
if [ -z "$folder" ]; then
  folder=$(mktemp -d)
  made=$folder
fi
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
classpath="$here/target/espalier-benchmarks-0.1.0-SNAPSHOT.jar:$(cat "$here/target/classpath")"
mkdir -p "$folder"
trap 'rm -rf "$folder"/in "$folder"/out ${made:+"$made"}' EXIT

jvm=("$java" -Xmx512m -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 -cp "$classpath")

# Runs a step and watches its memory.
measure() {
  rm -rf "$folder/out"
  "${jvm[@]}" org.espalier.benchmarks.CheckpointRun "$1" "$folder/in" "$folder/out" &
  local pid=$! anon peak=0
  while kill -0 "$pid" 2>/dev/null; do
    anon=$(awk '/^RssAnon/ {print $2}' "/proc/$pid/status" 2>/dev/null || true)
    if [ -n "$anon" ] && [ "$anon" -gt "$peak" ]; then peak=$anon; fi
    sleep 0.05
  done
  wait "$pid"
  echo "$1: peak RssAnon $((peak / 1024)) MiB"
}

# Seconds to copy the files and make them durable: what the disk allows.
copy() {
  local start=$EPOCHREALTIME file
  mkdir -p "$folder/out"
  for file in "$folder"/in/*; do dd if="$file" of="$folder/out/${file##*/}" bs=4M status=none; done
  sync "$folder"/out/*
  awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f", b - a}'
}

rm -rf "$folder/in" "$folder/out"
"${jvm[@]}" org.espalier.benchmarks.CheckpointGenerator "$folder/in" "$size"
echo "copy: $(copy) s"
measure prune
measure quantize
measure quantize-int4
