#!/usr/bin/env bash
# gates.sh WORK-DIR OCCUPANCY: what can be said of engine/cuda/*.cu without running them.
#
#   * nvcc builds each file for sm_80, sm_90 and sm_100, warnings are errors;
#   * ptxas finds no spills, no local memory, and fits the registers that __launch_bounds__ leaves;
#   * the rules for kernels at the head of engine/cuda/device.cuh hold.
#
# Prints a table for bench/README.md: registers, shared memory, theoretical occupancy. Results are kept in WORK-DIR and
# made again when a source is newer.  GATES_SOURCES: other files (for a test).
set -euo pipefail
work=$1 occupancy=$2
root=$(cd "$(dirname "$0")/../.." && pwd)
nvcc=${NVCC:-nvcc}
ptxas=$(dirname "$(command -v "$nvcc")")/ptxas
sources=${GATES_SOURCES:-$(ls "$root"/engine/cuda/*.cu 2>/dev/null || true)}
mkdir -p "$work"
[ -n "$sources" ] || { echo "gates: engine/cuda has no .cu files"; exit 0; }

# --- rules ------------------------------------------------------------------------------------------------------------
bad=0
lint() {
    local f code
    for f in $sources "$root"/engine/cuda/*.cuh; do
        [ "$(basename "$f")" = device.cuh ] && continue
        code=$(gcc -fpreprocessed -dD -E -x c++ "$f" 2>/dev/null)
        while read -r pattern why; do
            if grep -qE "$pattern" <<<"$code"; then
                echo "gates: $f: $why:"
                grep -E "$pattern" <<<"$code" | head -3
                bad=1
            fi
        done <<'RULES'
<<< a launch is launch(), not <<<>>>
__shared__ shared memory is SHARED_ARRAY or SHARED_DYN
__activemask masks are explicit
__global__ kernels are KERNEL, which is static
\basm\b inline PTX stands in device.cuh
__CUDA_ARCH__|EMU_CUDA what builds it is known to device.cuh alone
RULES
    done
}
lint

# --- builds -----------------------------------------------------------------------------------------------------------
build() { # file arch
    local id
    id=$work/$(basename "$1" .cu).sm_$2
    if [ -f "$id.log" ] && [ -z "$(find "$1" "$root"/engine/cuda "$root"/engine/*.h "$0" -newer "$id.log" -type f)" ]; then
        return 0
    fi
    "$nvcc" -ptx -std=c++17 -arch="sm_$2" -fmad=false -Werror all-warnings -I"$root" -o "$id.ptx" "$1" || return 1
    "$ptxas" -arch="sm_$2" -v -warn-spills -warn-lmem-usage -Werror -o "$id.cubin" "$id.ptx" >"$id.part" 2>&1 ||
        { cat "$id.part"; echo "gates: $1 for sm_$2: see above"; return 1; }
    mv "$id.part" "$id.log"
}
export -f build
export work root nvcc ptxas
printf '%s\n' $sources | while read -r f; do for arch in 80 90 100; do echo "$f $arch"; done; done |
    xargs -P 2 -L 1 bash -c 'build "$1" "$2"' "$0" || bad=1

# --- table ------------------------------------------------------------------------------------------------------------
resources() { # "kernel arch registers shared threads"; threads from .maxntid
    local f arch id
    for f in $sources; do
        for arch in 80 90 100; do
            id=$work/$(basename "$f" .cu).sm_$arch
            [ -f "$id.log" ] || continue
            awk -v arch="$arch" '
                FNR == NR && /\.entry/   { name = $0; sub(/.*\.entry +/, "", name); sub(/\(.*/, "", name); threads[name] = 1024 }
                FNR == NR && /\.maxntid/ { sub(/.*\.maxntid */, ""); split($0, d, /[ ,]+/)
                                           threads[name] = d[1] * (d[2] ? d[2] : 1) * (d[3] ? d[3] : 1) }
                FNR == NR                { next }
                /Compiling entry function/ { split($0, q, "\x27"); kernel = q[2] }
                /Used [0-9]+ registers/  {
                    match($0, /Used [0-9]+/); regs = substr($0, RSTART + 5, RLENGTH - 5)
                    smem = 0
                    if (match($0, /[0-9]+ bytes smem/)) smem = substr($0, RSTART, RLENGTH) + 0
                    print kernel, arch, regs, smem, threads[kernel]
                }' "$id.ptx" "$id.log"
        done
    done
}
resources >"$work/resources"
"$occupancy" <"$work/resources" >"$work/occupancy" || { echo "gates: a kernel that cannot be resident"; bad=1; }
echo "| kernel | threads | registers sm_80 / 90 / 100 | shared bytes | occupancy % sm_80 / 90 / 100 |"
echo "|---|---|---|---|---|"
while read -r kernel rest; do
    name=$(c++filt -p "$kernel")
    echo "${name// /} $rest"
done <"$work/occupancy" | awk '
    { key = $1; if (!(key in threads)) order[++n] = key
      threads[key] = $5; shared[key] = $4; regs[key] = regs[key] (regs[key] == "" ? "" : " / ") $3
      occ[key] = occ[key] (occ[key] == "" ? "" : " / ") $6 }
    END { for (i = 1; i <= n; i++) { k = order[i]
          printf "| %s | %s | %s | %s | %s |\n", k, threads[k], regs[k], shared[k], occ[k] } }'
exit $bad
