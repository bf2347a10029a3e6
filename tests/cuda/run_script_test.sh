#!/usr/bin/env bash
# The order of steps and the exit codes of the bundle's run.sh, with stand-ins for all that it calls: run_script_test.sh RUN_SH
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
work="$place/a folder"
mkdir -p "$work"/{bin,lib,java/bin,path}
cp "$1" "$work/run.sh"
touch "$work/lib/junit-platform-console-standalone-1.jar"
stand_in() { # FILE: its lines come from standard input
  { echo '#!/bin/sh'; cat; } >"$work/$1"
  chmod +x "$work/$1"
}
stand_in bin/gpu_benchmark <<'END'
case ":$LD_LIBRARY_PATH:" in *":${DRIVER:-none}:"*) PROBE=0 ;; esac # finds the driver
case "$*" in *--probe*) echo "stand-in, 80 GiB" >&2; exit ${PROBE:-0} ;; esac
echo "benchmark $*"
while [ $# -gt 0 ]; do [ "$1" != --out ] || echo '{}' >"$2"; shift; done
echo table
exit ${BENCHMARK:-0}
END
stand_in bin/a_test_gpu <<<'exit ${TEST:-0}'
stand_in java/bin/java <<'END'
case "$*" in *LaunchCost*) echo 1.5; exit ${LAUNCH:-0} ;; esac
case "$*" in *-Despalier.cuda.probe=always*) ;; *) exit 8 ;; esac
while [ $# -gt 0 ]; do
  [ "$1" != --class-path ] || [ "$2" = "${0%/java/bin/java}/lib/junit-platform-console-standalone-1.jar" ] || exit 9
  shift
done
exit ${JAVA:-0}
END
stand_in path/compute-sanitizer <<<'exit ${SANITIZER:-0}'
stand_in path/python3 <<'END'
[ "$1" = -c ] || echo "table with peers"
[ -z "${PYTHON:-}" ] || { echo 'Traceback:'; echo "ModuleNotFoundError: No module named 'torch'"; } >&2
exit ${PYTHON:-0}
END
failed=0
only=() # options beside --out
expect() { # CODE LAST_LINE [NAME=VALUE]...: what run.sh says last and how it ends
  local code=$1 line=$2 found=0
  shift 2
  echo old >"$work/out.json"
  env "$@" PATH="$work/path:$PATH" "$work/run.sh" "${only[@]}" --out "$work/out.json" >"$work/log" 2>&1 || found=$?
  if [[ $found != "$code" || $(tail -n 1 "$work/log") != "$line" ]]; then
    echo "FAILED $*: code $found instead of $code, and last «$(tail -n 1 "$work/log")» instead of «$line»"
    failed=1
  fi
}
expect 0 'table with peers' PROBE=0
log_has() { grep -q -- "$1" "$work/log" || { echo "FAILED ${only[*]}: «$1» is not in its output"; failed=1; }; }
log_has '--seconds [0-9]* --java-launch 1.5'
expect 0 'table' PYTHON=1 # python3 without torch
log_has "no peers: python3 cannot import torch: ModuleNotFoundError: No module named 'torch'"
expect 3 'stand-in, 80 GiB' PROBE=3
mkdir -p "$place/driver/lib64"
touch "$place/driver/lib64/libcuda.so.1"
expect 0 'table with peers' PROBE=3 DRIVER="$place/driver/lib64" ESPALIER_DRIVER_FOLDERS="$place/none:$place/driver/lib64"
expect 3 'stand-in, 80 GiB' PROBE=3 DRIVER="$place/driver/lib64" ESPALIER_DRIVER_FOLDERS="$place/none"
expect 1 'stand-in, 80 GiB' PROBE=1 # there is a GPU, and it cannot be used
expect 1 'table with peers' TEST=1 # figures are taken all the same
log_has '1 of the test programs failed, 2 ran, see above; this run will end with code 1'
expect 1 'table with peers' JAVA=1
log_has '1 of the test programs failed, 2 ran, see above'
expect 1 'table with peers' TEST=124 # as timeout ends
log_has 'a_test_gpu has not ended in time and was stopped'
expect 0 'table with peers' TEST=77                    # a test that is skipped says why
expect 1 'table with peers' SANITIZER=9                # figures are taken all the same
log_has 'compute-sanitizer found something in 4 runs'
expect 0 'table with peers' SANITIZER=77               # it may also be that a test is skipped
expect 1 'table with peers' SANITIZER=124              # nothing was found, and not all was looked at
log_has 'compute-sanitizer could not make 4 runs'
log_has 'compute-sanitizer initcheck: a_test_gpu: has not ended in time and was stopped'
expect 1 'table with peers' LAUNCH=1                   # one figure does not cost the others
log_has '--java-launch 0'
expect 1 'table with peers' BENCHMARK=1                # what could be measured is compared
[[ $(cat "$work/out.json") == '{}' ]] || failed=1
expect 1 'table with peers' BENCHMARK=124
log_has 'gpu_benchmark has not ended in time and was stopped; .*/out.json has what was measured before'
expect 1 'table with peers' BENCHMARK=137
log_has 'gpu_benchmark was killed'
log_has_not() { ! grep -q "$1" "$work/log" || { echo "FAILED ${only[*]}: «$1» is in its output"; failed=1; }; }
only=(--only tests)
expect 1 '== 1 of the test programs failed, 2 ran, see above; this run will end with code 1' TEST=1
expect 0 '== tests from Java' PROBE=0
log_has_not table
only=(--only benchmarks)
expect 0 table TEST=1
log_has_not 'compute-sanitizer\|tests from Java\|peers'
only=(--only sanitizer)
expect 1 '== compute-sanitizer found something in 4 runs, see above; this run will end with code 1' SANITIZER=9
log_has_not table
only=(--only sanitizer --seconds 0)
expect 0 '== compute-sanitizer initcheck: a_test_gpu: left out: the time is up' SANITIZER=9
only=(--only peers --seconds 60) # what an earlier run measured stays
expect 0 'table with peers' TEST=1
[[ $(cat "$work/out.json") == old ]] || failed=1
expect 1 "== no peers: python3 cannot import torch: ModuleNotFoundError: No module named 'torch'" PYTHON=1
only=(--only benchmarks,peers)
expect 0 'table with peers' TEST=1
for wrong in "--only" "--only test" "--only ," "--seconds soon" "--fast"; do
  read -ra only <<<"$wrong"
  expect 2 "usage: run.sh [--quick] [--only tests|sanitizer|benchmarks|peers[,...]] [--seconds N] [--out FILE.json]" PROBE=0
done
[[ -e $work/cache/.writable ]] || { echo "FAILED: Java does not unpack its natives beside the programs"; failed=1; }
((failed == 0)) && echo "run.sh does as it says"
exit $failed
