#!/usr/bin/env bash
# Packs one archive that runs the GPU tests and benchmarks on a machine with an NVIDIA driver and no Java, no Maven and no
# network: bundle.sh [ARCHIVE]   (default: benchmarks/gpu/target/espalier-gpu.tar.gz). Unpack it there and call its run.sh. By gzip,
# because small systems have no xz.
# Needs nvcc, a JDK with jlink and what the build needs. What nvcc 13 builds runs with drivers from 580 on; one of CUDA 12, first on
# the PATH or named by CUDACXX in a tree that is not built yet, reaches back to 525.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
archive=${1:-$here/target/espalier-gpu.tar.gz}
limit=$((45 << 20))
console=1.14.4 # of the JUnit platform that belongs to JUnit 5.14.4

command -v jlink >/dev/null && command -v jar >/dev/null || { echo "bundle.sh: there is no jlink or jar on the PATH; a full JDK has both" >&2; exit 2; }
cd "$root"
mvn -q -B package -DskipTests -Despalier.cuda=ON -pl tests -am
build=java/kernels/target/cmake
cmake --build "$build" -j "$(nproc)" --target gpu-programs
mvn -q -B dependency:copy -Dartifact=org.junit.platform:junit-platform-console-standalone:$console \
  -DoutputDirectory="$here/target/console"

stage=$here/target/espalier-gpu
rm -rf "$stage"
mkdir -p "$stage/bin" "$stage/lib" "$(dirname "$archive")"
jlink --add-modules java.base,java.logging,java.management,java.xml,jdk.unsupported,jdk.zipfs \
  --strip-debug --compress=2 --no-header-files --no-man-pages --output "$stage/java"
cp "$build"/gpu-programs/* "$stage/bin/"
cp "$build"/lib/libespalier.so "$build"/lib/libespalier_cuda.so "$stage/lib/"
cp java/kernels/target/espalier-kernels-*.jar tests/target/espalier-tests-*-tests.jar "$here"/target/console/*.jar "$stage/lib/"
tr ':' '\n' <java/cli/target/classpath | grep -E '/(javacpp|slf4j-api|slf4j-simple|jackson-(core|databind|annotations))-' |
  xargs -I{} cp {} "$stage/lib/"
cp java/models/target/espalier-models-*.jar "$stage/lib/"
# Java finds the two libraries in lib/ too: they need not be there twice.
natives=$(echo "$stage"/lib/espalier-kernels-*-linux-x86_64.jar)
mkdir "$stage/natives"
(cd "$stage/natives" && jar -xf "$natives" && rm org/espalier/binding/linux-x86_64/libespalier{,_cuda}.so && jar -cf "$natives" .)
rm -r "$stage/natives"
cp "$here/run.sh" "$here/peer.py" NOTICE LICENSE "$stage/"
tar -C "$here/target" -cf - espalier-gpu | gzip -9 >"$archive.part"
mv "$archive.part" "$archive"
bytes=$(stat -c %s "$archive")
echo "$archive: $((bytes >> 20)) MiB"
if ((bytes > limit)); then
  echo "bundle.sh: that is more than $((limit >> 20)) MiB" >&2
  exit 1
fi
