#!/usr/bin/env bash
# Configures and builds the native libraries: build.sh BUILD_DIR [AUTO|ON|OFF (CUDA)] [JOBS]
set -euo pipefail
build=$1
cuda=${2:-AUTO}
jobs=${3:-}
root=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -f "$build/CMakeCache.txt" ]; then
  generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S "$root/native" -B "$build" "${generator[@]}" -DESP_CUDA="$cuda"
elif ! grep -q "^ESP_CUDA:STRING=$cuda\$" "$build/CMakeCache.txt"; then
  cmake -S "$root/native" -B "$build" -DESP_CUDA="$cuda"
fi
cmake --build "$build" -j "${jobs:-$(nproc)}"
