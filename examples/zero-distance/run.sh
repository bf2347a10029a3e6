#!/usr/bin/env bash
# Learns the mails of ../mail-stream with the output tied to the real outcome. Needs what ../mail-stream/fetch.sh needs.
#
#   run.sh [WORK]      default: ../mail-stream/work; half a minute
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=${1:-$here/../mail-stream/work}
"$here/../mail-stream/fetch.sh" "$work"
java -Dorg.bytedeco.javacpp.maxPhysicalBytes=0 -Dorg.slf4j.simpleLogger.defaultLogLevel=error \
  -cp "$(echo "$root"/java/cli/target/espalier-cli-*.jar):$(<"$root/java/cli/target/classpath")" \
  "$here/ZeroDistanceMails.java" "$work/mails.jsonl" 1024

# The same from the command line.
rm -rf "$work/tied"
"$root/espalier" online --input "$work/mails.jsonl" --recipe "$here/online.yaml" --store "$work/tied"
