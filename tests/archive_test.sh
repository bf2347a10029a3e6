#!/usr/bin/env bash
# The archive of `espalier package` runs where there is Java and nothing of the build: archive_test.sh
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$root/espalier" package "$place/espalier.tar.gz"
mkdir "$place/a place" "$place/bin" "$place/home"
tar -C "$place/a place" -xf "$place/espalier.tar.gz"
for tool in bash readlink dirname locale getent getconf java; do
  ln -s "$(type -P "$tool")" "$place/bin/"
done
ln -s "$place/a place"/espalier-*/espalier "$place/bin/espalier"

# Runs a command with what is in bin alone; -Duser.home is where JavaCPP and the tokenizers unpack their libraries.
bare() {
  env -i PATH="$place/bin" HOME="$place/home" JDK_JAVA_OPTIONS=-Duser.home="$place/home" "$@" 2>>"$place/log"
}

fail() {
  printf 'FAILED: %s; it said:\n' "$1" >&2
  cat "$place/log" >&2
  exit 1
}

version=$(bare espalier --version) || fail 'espalier --version'
[[ $version == "$("$root/espalier" --version)" ]] || fail "the archive is of another commit: $version"
code=0
bare espalier test || code=$?
[[ $code == 2 ]] || fail "espalier test ended with $code in place of 2"
cd "$place"/a\ place/espalier-*/examples/mlp
bare java Generate.java .
bare espalier compress train.yaml -o trained || fail 'training'
bare espalier compress recipe.yaml -o small || fail 'compression'
for file in model-int8.onnx report.html; do
  [[ -s small/$file ]] || fail "there is no small/$file"
done
