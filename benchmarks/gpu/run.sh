#!/bin/sh
# Runs on a machine with an NVIDIA driver and nothing else:
#   run.sh [--quick] [--only PART[,PART]...] [--seconds N] [--out FILE.json]
# 1. tests: the GPU tests, native and from Java; 2. sanitizer: compute-sanitizer over the native ones, where it is installed;
# 3. benchmarks; 4. peers: PyTorch on the same sizes, where python3 has torch. One table comes last; one JSON is written, row by
# row. On a machine with 16 cores these are guessed at 1, 4 to 8, 3 and 5 to 10 minutes, so where a command has 10, call it once
# for each part: --only peers adds to the FILE.json that --only benchmarks wrote. What a part has not begun after --seconds (480)
# is left out and said; what takes a minute more than that is stopped, and the JSON keeps what was measured.
# Where a test fails, or compute-sanitizer finds something, that is counted, and the figures are taken all the same: each is of a
# result that was compared with the CPU's.
# The driver's libcuda.so.1 is looked for where the system looks and then in ESPALIER_DRIVER_FOLDERS, whose default is where
# containers and WSL have it.
# Exit codes: 0 done, 1 a test failed or none ran, compute-sanitizer found something, a figure could not be taken, a part
# that was asked for is not possible here; 2 usage; 3 no GPU here.
set -u
case $0 in */*) here=${0%/*} ;; *) here=. ;; esac
here=$(CDPATH= cd -- "$here" && pwd)
out=$PWD/espalier-gpu.json
quick=
only=
seconds=480
seeds=5
launches="100 200" # rounds and calls
driver_folders=${ESPALIER_DRIVER_FOLDERS-/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/lib/wsl/lib:/run/opengl-driver/lib}
usage() {
  echo "usage: run.sh [--quick] [--only tests|sanitizer|benchmarks|peers[,...]] [--seconds N] [--out FILE.json]" >&2
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
    --seconds)
      [ $# -gt 1 ] || usage
      case $2 in '' | *[!0-9]*) usage ;; esac
      seconds=$2
      shift
      ;;
    *) usage ;;
  esac
  shift
done
wants() { case "$only " in " " | *" $1 "*) ;; *) return 1 ;; esac }
say() { printf '\n== %s\n' "$*"; }

# A part begins; what it still may take; a command of it, which is stopped after LIMIT seconds or a minute after the part's end.
begin() { began=$(date +%s); }
left() { echo $((seconds - $(date +%s) + began)); }
limited() { # LIMIT COMMAND...: its exit code; 124 or 137 where it was stopped
  limit=$(($(left) + 60))
  [ "$limit" -lt "$1" ] || limit=$1
  [ "$limit" -gt 0 ] || limit=1 # 0 would be no limit
  shift
  timeout -k 10 "$limit" "$@" &
  child=$!
  wait "$child"
}
stopped() { # CODE: how, where it was
  case $1 in
    124) echo "has not ended in time and was stopped" ;;
    137) echo "was killed: it has not ended in time, or the machine has no memory left" ;;
    *) return 1 ;;
  esac
}
child=
trap 'trap - INT TERM HUP; [ -z "$child" ] || kill "$child" 2>/dev/null; exit 130' INT TERM HUP # nothing stays on the GPU

LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
begin
probe() {
  reason=$(limited 120 "$here/bin/gpu_benchmark" --probe 2>&1)
  code=$?
}
probe
if [ $code = 3 ]; then
  libraries=$LD_LIBRARY_PATH
  for folder in $(echo "$driver_folders" | tr ':' ' '); do
    if [ $code = 3 ] && [ -e "$folder/libcuda.so.1" ]; then
      LD_LIBRARY_PATH=$libraries:$folder
      probe
    fi
  done
fi
if [ $code != 0 ]; then
  stopped $code >/dev/null && reason="the GPU here cannot be used: its driver has not answered for two minutes"
  echo "$reason"
  [ $code = 3 ] && exit 3
  exit 1 # there is one, but it cannot be used
fi
say "$reason"
if command -v nvidia-smi >/dev/null 2>&1; then
  limited 30 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used --format=csv
else
  echo "no nvidia-smi: clocks, temperature and power are not known"
fi

# Java unpacks its natives: beside the programs, which run from there, or where that cannot be written, by user.
cache=$here/cache
(umask 077 && mkdir -p "$cache" && : >"$cache/.writable") 2>/dev/null || cache=${TMPDIR:-/tmp}/espalier-gpu-$(id -u)
java() { # LIMIT ARGUMENT...
  limit_of_java=$1
  shift
  # There is a GPU: files by which Java would tell are hidden in some containers.
  limited "$limit_of_java" "$here/java/bin/java" -XX:+UseSerialGC -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 \
    -Dorg.bytedeco.javacpp.cachedir="$cache" -Despalier.cuda.probe=always "$@"
}

status=0
if wants tests; then
  begin
  ran=0 failed=0
  for test in "$here"/bin/*_test_gpu; do
    name=$(basename "$test")
    say "$name"
    limited 120 "$test" --seeds "$seeds"
    code=$?
    [ $code = 77 ] && continue # it says why it is skipped
    how=$(stopped $code) && echo "$name $how"
    ran=$((ran + 1))
    [ $code = 0 ] || failed=$((failed + 1))
  done
  say "tests from Java"
  jars=
  for jar in "$here"/lib/*.jar; do jars=$jars${jars:+:}$jar; done
  java 300 -Despalier.test.device=required \
    -jar "$here"/lib/junit-platform-console-standalone-*.jar execute --disable-banner --disable-ansi-colors \
    --details=tree --fail-if-no-tests --class-path "$jars" --include-tag device \
    --select-package org.espalier.op --select-package org.espalier.device \
    --select-class org.espalier.compress.DeviceCheckpointTest --include-classname '.*Test'
  code=$?
  how=$(stopped $code) && echo "the JVM of the tests $how"
  ran=$((ran + 1))
  [ $code = 0 ] || failed=$((failed + 1))

  if [ "$failed" != 0 ]; then
    say "$failed of the test programs failed, $ran ran, see above; this run will end with code 1"
    status=1
  fi
fi

found=0 not_run=0
if wants sanitizer; then
  begin
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck synccheck initcheck; do
      for test in "$here"/bin/*_test_gpu; do
        what="compute-sanitizer $tool: $(basename "$test")"
        if [ "$(left)" -le 0 ]; then
          say "$what: left out: the time is up"
          continue
        fi
        say "$what"
        limited 180 "$sanitizer" --tool "$tool" --error-exitcode 9 "$test" --seeds 1 --small
        code=$?
        case $code in
          0 | 77) ;;
          9) found=$((found + 1)) ;;
          *)
            not_run=$((not_run + 1))
            echo "$what: $(stopped $code || echo "ended with code $code")"
            ;;
        esac
      done
    done
  else
    say "no compute-sanitizer on this machine"
    [ -z "$only" ] || status=1
  fi
  [ "$found" = 0 ] || say "compute-sanitizer found something in $found runs, see above; this run will end with code 1"
  [ "$not_run" = 0 ] || say "compute-sanitizer could not make $not_run runs, see above; this run will end with code 1"
  [ $((found + not_run)) = 0 ] || status=1
fi

peers=
if ! wants peers; then
  :
elif [ -n "$quick" ]; then
  say "no peers in a quick run"
elif ! command -v python3 >/dev/null 2>&1; then
  say "no peers: python3 is not here"
  [ -z "$only" ] || status=1
elif begin && why=$(limited 120 python3 -c 'import torch' 2>&1); then
  peers=yes
else
  say "no peers: python3 cannot import torch: $(echo "$why" | tail -n 1)"
  [ -z "$only" ] || status=1
fi
if wants benchmarks; then
  begin
  say "benchmarks, to $out"
  rm -f "$out"
  launch=$(java 120 -cp "$here/lib/*" org.espalier.device.LaunchCost $launches)
  code=$?
  if [ $code != 0 ]; then
    echo "FAILED: the cost of a launch from Java: code $code"
    launch=0 status=1
  fi
  limited 86400 "$here/bin/gpu_benchmark" $quick --seconds "$(left)" --java-launch "$launch" --out "$out"
  code=$?
  how=$(stopped $code) && echo "gpu_benchmark $how; $out has what was measured before"
  [ $code = 0 ] || status=1
fi
if [ -n "$peers" ]; then
  if [ -f "$out" ]; then
    begin
    say "the same by PyTorch"
    limited 86400 python3 "$here/peer.py" "$out" "$seconds"
    code=$?
    how=$(stopped $code) && echo "peer.py $how; $out has what was measured before"
    [ $code = 0 ] || status=1
  else
    echo "run.sh: the peers are compared with the figures in $out, which is not here: --only benchmarks writes it" >&2
    status=1
  fi
fi
exit $status
