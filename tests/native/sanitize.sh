#!/usr/bin/env bash
# Builds the CPU library and its native tests under ASAN with UBSAN, and the pool's test under TSAN, and runs them:
# sanitize.sh [BUILD_DIR]
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/tests/target/sanitize}
run() {
  local name=$1 sanitizers=$2 target=$3
  shift 3
  local generator=()
  if command -v ninja >/dev/null; then generator=(-G Ninja); fi
  cmake -S "$root/native" -B "$build/$name" "${generator[@]}" -DESP_SANITIZE="$sanitizers" -DESP_CUDA=OFF >/dev/null
  cmake --build "$build/$name" -j "$(nproc)" --target "$target"
  ctest --test-dir "$build/$name" --output-on-failure --parallel "$(nproc)" "$@"
}
run address address,undefined all
run thread thread thread_pool_test -R thread_pool
