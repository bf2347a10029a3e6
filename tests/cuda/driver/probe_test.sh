#!/usr/bin/env bash
# What gpu_benchmark --probe says of drivers that refuse, and how it ends: probe_test.sh GPU_BENCHMARK FOLDER_OF_THE_STAND_IN
set -uo pipefail
benchmark=$1
folder=$2
failed=0
expect() { # CODE TEXT [NAME=VALUE]...
  local code=$1 text=$2 said found=0
  shift 2
  said=$(env LD_LIBRARY_PATH="$folder" "$@" "$benchmark" --probe 2>&1) || found=$?
  if [[ $found != "$code" || $said != *"$text"* ]]; then
    echo "FAILED $*: code $found instead of $code, and «$said» instead of «$text»"
    failed=1
  fi
}
expect 3 'no GPU here: CUDA devices: no CUDA-capable device is detected' DRIVER_INIT=100
expect 1 'the GPU here cannot be used: CUDA devices: unknown error' DRIVER_INIT=999
expect 1 'the GPU here cannot be used: CUDA devices: out of memory' DRIVER_INIT=2
expect 1 'machines with NVSwitch need the service nvidia-fabricmanager' DRIVER_INIT=802
expect 1 'after an update of the driver the machine must be restarted' DRIVER_INIT=803
expect 1 'the libcuda.so.1 of a cuda-compat package was found first' DRIVER_INIT=804
expect 1 'the NVIDIA driver supports CUDA 11.8; CUDA 1' DRIVER_VERSION=11080
expect 3 'no GPU here: no NVIDIA driver is installed' LD_LIBRARY_PATH=
((failed == 0)) && echo "drivers that refuse are told apart"
exit $failed
