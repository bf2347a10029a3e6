#!/usr/bin/env bash
# Makes what the recipes read: fetch.sh WORK [DATASET] writes WORK/train.safetensors, WORK/test.safetensors,
# WORK/untrained.onnx and WORK/negatives.csv. DATASET is a folder with the four files of Fashion-MNIST (MIT licence); by default they are taken from
# Debian's package dataset-fashion-mnist, which is fetched into WORK where it is not installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$1
dataset=${2:-/usr/share/datasets/fashion-mnist}
package=dataset-fashion-mnist
mkdir -p "$work"
if [[ $# -lt 2 && ! -d $dataset ]]; then
  dataset=$work/usr/share/datasets/fashion-mnist
  if [[ ! -d $dataset ]]; then
    type -P apt-get >/dev/null || {
      echo "fetch.sh: no apt-get to fetch $package with; name a folder with the files of Fashion-MNIST" >&2
      exit 2
    }
    (cd "$work" && apt-get download -q "$package") || {
      echo "fetch.sh: apt-get cannot fetch $package; after apt-get update it may" >&2
      exit 2
    }
    (cd "$work" && dpkg-deb -x "$package"_*.deb . && rm "$package"_*.deb)
  fi
fi
"$root/espalier" --version >&2 # builds it where it is not built
java -cp "$(echo "$root"/java/cli/target/espalier-cli-*.jar):$(<"$root/java/cli/target/classpath")" \
  "$here/Generate.java" "$dataset" "$work"
