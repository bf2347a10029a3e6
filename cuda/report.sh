#!/usr/bin/env bash
# What the compiler made of the CUDA kernels: report.sh NVCC ARCHITECTURE SOURCE... -- COMPILER_OPTION...
# For each kernel its registers, shared memory and spills, and from its PTX how many global loads and stores are 16 bytes wide.
set -euo pipefail
nvcc=$1
architecture=$2
shift 2
sources=()
while [[ $1 != -- ]]; do
  sources+=("$1")
  shift
done
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%-44s %9s %7s %7s  %s\n' "kernel (sm_$architecture)" registers shared spills "global memory: 16-byte loads, other loads; 16-byte stores, other stores"
for source in "${sources[@]}"; do
  "$nvcc" "$@" -arch="sm_$architecture" -Xptxas -v --keep --keep-dir "$work" -c "$source" -o "$work/object.o" 2>"$work/log"
  ptx=$work/$(basename "$source" .cu).ptx
  awk '
    FILENAME ~ /log$/ && /Compiling entry function/ { match($0, /_Z[A-Za-z0-9_]+/); k = substr($0, RSTART, RLENGTH) }
    FILENAME ~ /log$/ && /spill stores/ { split($0, w, ","); split(w[2], s, " "); spill[k] = s[1] }
    FILENAME ~ /log$/ && /Used [0-9]+ registers/ {
      match($0, /Used [0-9]+/); reg[k] = substr($0, RSTART + 5, RLENGTH - 5)
      smem[k] = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
    }
    FILENAME ~ /ptx$/ && /\.entry/ { match($0, /_Z[A-Za-z0-9_]+/); k = substr($0, RSTART, RLENGTH); order[++n] = k }
    FILENAME ~ /ptx$/ && k && /[ \t](ld|st)(\.volatile|\.weak)?(\.global|\.[a-z0-9]*[ \t])/ {
      op = $0 ~ /[ \t]ld/ ? "ld" : "st"
      if ($0 !~ /\.global/) next
      wide = $0 ~ /\.v4\.(b32|u32|s32|f32)|\.v2\.(b64|u64|f64|s64)/ ? "w" : "n"
      c[k, op, wide]++
    }
    FILENAME ~ /ptx$/ && k && /[ \t](ld|st)\.(v[24]\.)?[bsuf][0-9]+[ \t]/ { generic[k]++ }
    END {
      for (i = 1; i <= n; i++) {
        k = order[i]; ("c++filt " k) | getline name
        gsub(/\(anonymous namespace\)::|^void /, "", name); sub(/\(.*/, "", name)
        printf "%-44s %9d %7d %7d  %d, %d; %d, %d%s\n", name, reg[k], smem[k], spill[k], c[k, "ld", "w"], c[k, "ld", "n"],
               c[k, "st", "w"], c[k, "st", "n"], generic[k] ? "; generic " generic[k] : ""
      }
    }' "$work/log" "$ptx"
done
