#!/usr/bin/env bash
# The archive for GPU machines is packed, unpacks, and says that there is no GPU, of which it is shown none: bundle_test.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$root/benchmarks/gpu/bundle.sh" "$place/bundle.tar.gz"
tar -C "$place" -xf "$place/bundle.tar.gz"
code=0
env -i PATH=/usr/bin:/bin CUDA_VISIBLE_DEVICES= "$place/espalier-gpu/run.sh" --out "$place/rows.json" >"$place/log" 2>&1 || code=$?
if [[ $code != 3 ]] || ! grep -q 'no GPU here' "$place/log"; then
  echo "FAILED: code $code instead of 3, and it said:" >&2
  cat "$place/log" >&2
  exit 1
fi
# Its own Java runs, and finds all natives: the library tells that there is no driver or no device.
java="$place/espalier-gpu/java/bin/java"
said=$(env -i PATH=/usr/bin:/bin CUDA_VISIBLE_DEVICES= LD_LIBRARY_PATH="$place/espalier-gpu/lib" "$java" \
  -Dorg.bytedeco.javacpp.cachedir="$place/cache" -Despalier.cuda.probe=always -cp "$place/espalier-gpu/lib/*" \
  org.espalier.device.LaunchCost 1 1 2>&1) || true
case $said in
  *"CUDA is not available: no NVIDIA driver is installed"* | *"CUDA is not available: CUDA devices: no CUDA-capable device"*) ;;
  *)
    printf 'FAILED: of the natives Java says:\n%s\n' "$said" >&2
    exit 1
    ;;
esac
