#!/usr/bin/env bash
# Configures and builds the native libraries and puts them beside their bindings:
# build.sh BUILD_DIR OUTPUT_DIR SKIP_TESTS [AUTO|ON|OFF (CUDA)] [JOBS]
# SKIP_TESTS true leaves the native tests out, which take longer to compile than the libraries.
set -euo pipefail
build=$1
output=$2
skip_tests=$3
cuda=${4:-AUTO}
jobs=${5:-}
root=$(cd "$(dirname "$0")/.." && pwd)
# A cache that came with a copy of another checkout would configure and build that one.
home=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt" 2>/dev/null || true)
if [ -n "$home" ] && ! [ "$home" -ef "$root/native" ]; then rm -rf "$build"; fi
if [ ! -f "$build/CMakeCache.txt" ]; then
  generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S "$root/native" -B "$build" "${generator[@]}" -DESP_CUDA="$cuda"
elif ! grep -q "^ESP_CUDA:STRING=$cuda\$" "$build/CMakeCache.txt"; then
  cmake -S "$root/native" -B "$build" -DESP_CUDA="$cuda"
fi
targets=(all)
if [ "$skip_tests" = true ]; then targets=(espalier espalier_cuda); fi
cmake --build "$build" -j "${jobs:-$(nproc)}" --target "${targets[@]}"
mkdir -p "$output"
cp -pu "$build"/lib/lib*.so "$output"
