#!/usr/bin/env bash
# Deletes each barrier, fence and wait of the CUDA sources in turn and says which tests notice: mutate.sh [BUILD_DIR] [SOURCE[:FIRST_LINE]...]
#
# By hand, after changing a kernel: a deletion that nothing notices is either redundant or untested. BUILD_DIR is a configured
# build with the emulated tests; the sources are changed in a copy of the tree.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/tests/target/mutate}
shift || true
copy=$build/tree
mkdir -p "$copy"
for part in native cuda cmake tests benchmarks/gpu; do
  mkdir -p "$copy/$part"
  rsync -a --delete --exclude target "$root/$part/" "$copy/$part/" 2>/dev/null || cp -r "$root/$part/." "$copy/$part/"
done
generator=()
if command -v ninja >/dev/null; then generator=(-G Ninja); fi
[[ -f $build/cmake/CMakeCache.txt ]] ||
  cmake -S "$copy/native" -B "$build/cmake" "${generator[@]}" -DESP_CUDA=OFF -DESP_EMULATE="plain;tsan" >/dev/null

operations=$(sed -n '/set(ESP_CUDA_OPERATIONS/,/)/p' "$root/cmake/Operations.cmake" | grep -oE '^ +[a-z_]+' | tr -d ' ')
sources=("$@")
((${#sources[@]})) || sources=(cuda/common/kernel.cuh cuda/kernels/*.cuh cuda/kernels/*.cu)
export ESPALIER_THREADS=1 TSAN_OPTIONS="exitcode=66 halt_on_error=1"

# Whether a source of kernels includes a header, itself or by another.
includes() {
  local other
  grep -q "#include \"$2\"" "$root/cuda/kernels/$1" && return
  for other in $(grep -oE '[a-z_]+\.cuh' <(grep '^#include' "$root/cuda/kernels/$1")); do
    [[ -f $root/cuda/kernels/$other ]] && includes "$other" "$2" && return
  done
  return 1
}
# The tests that a source concerns: a kernel's own; those of all kernels that include a header.
tests_of() {
  for o in $operations; do
    if [[ $1 == "cuda/kernels/$o.cu" ]] || includes "$o.cu" "$(basename "$1")"; then echo "${o}_test"; fi
  done
}

cd "$root"
for source in "${sources[@]}"; do
  first=1
  if [[ $source == *:* ]]; then first=${source##*:} source=${source%:*}; fi
  for line in $(grep -nE '(__(syncthreads|syncwarp|threadfence)|esp::(cluster_barrier|wait_for_kernel_before))\(' "$source" | grep -vE '^[0-9]+: *//' | cut -d: -f1); do
    ((line >= first)) || continue
    cp "$root/$source" "$copy/$source"
    sed -i -E "${line}s/(__(syncthreads|syncwarp|threadfence)|esp::(cluster_barrier|wait_for_kernel_before))\([^)]*\)/static_cast<void>(0)/" "$copy/$source"
    cmp -s "$root/$source" "$copy/$source" && continue # changed while this runs
    targets=()
    for t in $(tests_of "$source"); do targets+=("${t}_plain" "${t}_tsan"); done
    noticed=
    if ! cmake --build "$build/cmake" --target "${targets[@]}" >"$build/log" 2>&1; then
      noticed=" does-not-compile"
    else
      for t in $(tests_of "$source"); do
        timeout 120 "$build/cmake/tests/cuda/${t}_plain" --seeds 10 >"$build/log" 2>&1 || noticed+=" ${t}_plain"
        timeout 120 "$build/cmake/tests/cuda/${t}_tsan" --seeds 2 --small >"$build/log" 2>&1 || noticed+=" ${t}_tsan"
        [[ $source == *.cu || -z $noticed ]] || break # one is enough
      done
    fi
    printf '%-40s %s\n    %s\n' "$source:$line" "${noticed:- NOTHING NOTICES}" "$(sed -n "${line}p" "$root/$source" | sed 's/^ *//')"
  done
  cp "$root/$source" "$copy/$source"
done
