#!/usr/bin/env bash
# Configures and builds the native libraries and puts them beside their bindings:
# build.sh BUILD_DIR OUTPUT_DIR [AUTO|ON|OFF (CUDA)] [JOBS]
set -euo pipefail
build=$1
output=$2
cuda=${3:-AUTO}
jobs=${4:-}
root=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -f "$build/CMakeCache.txt" ]; then
  generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S "$root/native" -B "$build" "${generator[@]}" -DESP_CUDA="$cuda"
elif ! grep -q "^ESP_CUDA:STRING=$cuda\$" "$build/CMakeCache.txt"; then
  cmake -S "$root/native" -B "$build" -DESP_CUDA="$cuda"
fi
cmake --build "$build" -j "${jobs:-$(nproc)}"
mkdir -p "$output"
cp -pu "$build"/lib/lib*.so "$output"
