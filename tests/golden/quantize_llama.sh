#!/usr/bin/env bash
# llama.cpp reads the files of baton quantize, and on none of them is baton's perplexity worse than its own by more
# than a thousandth. BATON_LLAMA_PERPLEXITY names llama-perplexity; without it the test is skipped (exit code 77).
#     quantize_llama.sh BATON MODEL TEXT
set -euo pipefail
llama=${BATON_LLAMA_PERPLEXITY:-$(command -v llama-perplexity || true)}
if [ ! -x "$llama" ]; then
    echo "skipped: no llama-perplexity; BATON_LLAMA_PERPLEXITY names it (here: '${BATON_LLAMA_PERPLEXITY:-}')"
    exit 77
fi
out=$(mktemp -d "$PWD/quantize-XXXXXX")
trap 'rm -rf "$out"' EXIT
"$1" quantize "$2" "$out/f32" --type f32 >/dev/null
printf '%-5s %10s %10s %10s\n' type bytes baton llama.cpp
failed=0
for type in f32 f16 bf16 q8_0 q4_0 q4_1; do
    [ $type = f32 ] || "$1" quantize "$out/f32" "$out/$type" --type $type >/dev/null
    ours=$("$1" perplexity --model "$out/$type" --file "$3" --context 512 --no-cache --json | sed 's/.*"perplexity":\([0-9.]*\).*/\1/')
    "$llama" -m "$out/$type" -t 1 -c 512 -f "$3" --no-warmup >"$out/log" 2>&1 || { tail -3 "$out/log"; exit 1; }
    theirs=$(sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$out/log")
    printf '%-5s %10d %10s %10s\n' $type "$(stat -c %s "$out/$type")" "$ours" "$theirs"
    awk -v a="$ours" -v b="$theirs" 'BEGIN { exit !(a > 1 && b > 1 && a <= b * 1.001) }' || failed=1
    [ $type = f32 ] || rm "$out/$type"
done
exit $failed
