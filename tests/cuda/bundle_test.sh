#!/usr/bin/env bash
# The archive for GPU machines is packed, unpacks, and says that there is no GPU, of which it is shown none: bundle_test.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$root/benchmarks/gpu/bundle.sh" "$place/bundle.tar.xz"
tar -C "$place" -xf "$place/bundle.tar.xz"
code=0
env -i PATH=/usr/bin:/bin CUDA_VISIBLE_DEVICES= "$place/espalier-gpu/run.sh" --out "$place/rows.json" >"$place/log" 2>&1 || code=$?
if [[ $code != 3 ]] || ! grep -q 'no GPU here' "$place/log"; then
  echo "FAILED: code $code instead of 3, and it said:" >&2
  cat "$place/log" >&2
  exit 1
fi
"$place/espalier-gpu/java/bin/java" -version # its own runs
