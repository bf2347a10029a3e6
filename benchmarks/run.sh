#!/usr/bin/env bash
# Runs the JMH benchmarks twice, with libtorch's page faults as they come and tuned away, prints the tables and keeps the
# rows: run.sh [--include REGEX] [--threads 1,2] [--rounds N] [--size NAME,...]. Without --include it draws kernels.svg too.
# Build first: mvn package -DskipTests
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
classpath="$here/target/espalier-benchmarks-0.1.0-SNAPSHOT.jar:$(cat "$here/target/classpath")"
mkdir -p "$here/results"
stamp=$(date -u +%Y%m%dT%H%M%SZ)
run() {
  local allocator=$1
  shift
  echo "allocator: $allocator"
  "$java" -Xmx4g -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 -Djmh.ignoreLock=true -cp "$classpath" \
    org.espalier.benchmarks.Main --out "$here/results/$stamp-$allocator.json" "$@"
}
run default "$@"
MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456 run tuned "$@"
if [[ " $* " != *" --include "* ]]; then
  "$java" -cp "$classpath" org.espalier.benchmarks.RatioChart "$here/kernels.svg" "$here/results/$stamp-"{default,tuned}.json
fi
