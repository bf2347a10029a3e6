#!/bin/sh
# Runs on a machine with an NVIDIA driver and nothing else:
#   run.sh [--quick] [--only PART[,PART]...] [--peer-seconds N] [--out FILE.json]
# 1. tests: the GPU tests, native and from Java; 2. sanitizer: compute-sanitizer over the native ones, where it is installed;
# 3. benchmarks; 4. peers: PyTorch on the same sizes, where python3 has torch. One table comes last, one JSON is written.
# On a machine with 16 cores these are guessed at 1, 4 to 8, 3 and 5 to 10 minutes, so where a command has 10, call it once for
# each part: --only peers adds to the FILE.json that --only benchmarks wrote. --peer-seconds leaves out what would begin later.
# Where a test fails nothing is timed; what compute-sanitizer finds is counted, and the figures are taken all the same.
# Exit codes: 0 done, 1 a test failed or none ran, compute-sanitizer found something, a figure could not be taken, a part
# that was asked for is not possible here; 2 usage; 3 no GPU here.
set -u
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(CDPATH= cd -- "$here" && pwd)
out=$PWD/espalier-gpu.json
quick=
only=
peer_seconds=
seeds=5
launches="100 200" # rounds and calls
usage() {
  echo "usage: run.sh [--quick] [--only tests|sanitizer|benchmarks|peers[,...]] [--peer-seconds N] [--out FILE.json]" >&2
  exit 2
}
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=--quick seeds=1 launches="2 5" ;;
    --out) [ $# -gt 1 ] || { echo "run.sh: --out takes a file" >&2; exit 2; }; out=$2; shift ;;
    --only)
      [ $# -gt 1 ] || usage
      for part in $(echo "$2" | tr ',' ' '); do
        case $part in tests | sanitizer | benchmarks | peers) only="$only $part" ;; *) usage ;; esac
      done
      [ -n "$only" ] || usage
      shift
      ;;
    --peer-seconds)
      [ $# -gt 1 ] || usage
      case $2 in '' | *[!0-9]*) usage ;; esac
      peer_seconds=$2
      shift
      ;;
    *) usage ;;
  esac
  shift
done
wants() { case "$only " in " " | *" $1 "*) ;; *) return 1 ;; esac }
say() { printf '\n== %s\n' "$*"; }

LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
reason=$("$here/bin/gpu_benchmark" --probe 2>&1)
code=$?
if [ $code != 0 ]; then
  echo "$reason"
  [ $code = 3 ] && exit 3
  exit 1 # there is one, but it cannot be used
fi
say "$reason"
if command -v nvidia-smi >/dev/null 2>&1; then
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used --format=csv
else
  echo "no nvidia-smi: clocks, temperature and power are not known"
fi

if wants tests; then
  ran=0 failed=0
  for test in "$here"/bin/*_test_gpu; do
    name=$(basename "$test")
    say "$name"
    "$test" --seeds "$seeds"
    code=$?
    [ $code = 77 ] && continue # it says why it is skipped
    ran=$((ran + 1))
    [ $code = 0 ] || failed=$((failed + 1))
  done
  say "tests from Java"
  jars=
  for jar in "$here"/lib/*.jar; do jars=$jars${jars:+:}$jar; done
  "$here/java/bin/java" -XX:+UseSerialGC -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 \
    -Dorg.bytedeco.javacpp.cachedir="${TMPDIR:-/tmp}/espalier-gpu-cache" -Despalier.test.device=required \
    -jar "$here"/lib/junit-platform-console-standalone-*.jar execute --disable-banner --disable-ansi-colors \
    --details=tree --fail-if-no-tests --class-path "$jars" --include-tag device \
    --select-package org.espalier.op --select-package org.espalier.device \
    --select-class org.espalier.compress.DeviceCheckpointTest --include-classname '.*Test'
  [ $? = 0 ] && ran=$((ran + 1)) || failed=$((failed + 1))

  if [ "$failed" != 0 ] || [ "$ran" = 0 ]; then
    say "$failed of the test programs failed, $ran ran: no benchmarks"
    exit 1
  fi
fi

found=0
if wants sanitizer; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck synccheck initcheck; do
      for test in "$here"/bin/*_test_gpu; do
        say "compute-sanitizer $tool: $(basename "$test")"
        "$sanitizer" --tool "$tool" --error-exitcode 9 "$test" --seeds 1 --small || found=$((found + 1))
      done
    done
  else
    say "no compute-sanitizer on this machine"
    [ -z "$only" ] || exit 1
  fi
  [ "$found" = 0 ] || say "compute-sanitizer found something in $found runs, see above; this run will end with code 1"
fi
[ "$found" = 0 ]
status=$?

peers=
if ! wants peers; then
  :
elif [ -n "$quick" ]; then
  say "no peers in a quick run"
elif command -v python3 >/dev/null 2>&1 && python3 -c 'import torch' 2>/dev/null; then
  peers=yes
else
  say "no peers: python3 with torch is not here"
  [ -z "$only" ] || status=1
fi
if wants benchmarks; then
  say "benchmarks, to $out"
  rm -f "$out"
  launch=$("$here/java/bin/java" -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 \
    -Dorg.bytedeco.javacpp.cachedir="${TMPDIR:-/tmp}/espalier-gpu-cache" -cp "$here/lib/*" org.espalier.device.LaunchCost $launches) || exit 1
  "$here/bin/gpu_benchmark" $quick --java-launch "$launch" --out "$out" || status=1
fi
if [ -n "$peers" ]; then
  if [ -f "$out" ]; then
    say "the same by PyTorch"
    python3 "$here/peer.py" "$out" $peer_seconds || status=1
  else
    echo "run.sh: the peers are compared with the figures in $out, which is not here: --only benchmarks writes it" >&2
    status=1
  fi
fi
exit $status
