#!/usr/bin/env bash
# The six types made from the test model, first as F32, are the files they shall be. The sums are of files whose
# every tensor is byte for byte llama-quantize's (build 11434; --token-embedding-type q8_0 for q4_0 and q4_1); it
# only sorts the tensors.    quantize.sh BATON MODEL
set -euo pipefail
out=$(mktemp -d "$PWD/quantize-XXXXXX")
trap 'rm -rf "$out"' EXIT
"$1" quantize "$2" "$out/f32" --type f32
while read -r type sum; do
    [ "$type" = f32 ] || "$1" quantize "$out/f32" "$out/$type" --type "$type"
    echo "$sum  $out/$type" | sha256sum --check --quiet
    [ "$type" = f32 ] || rm "$out/$type"
done <<'END'
f32 b89c75c028f12c4213f91818e76d782f99cbd7de4a610a1a420a11ea86c167b9
f16 bf96b6ccd3424db8cd70940c4fed41eba58a605ac2cb3e9dea76b5d81143cdc6
bf16 e4887f38aadc1e5b5f31ed44d1e4b002dc24b9e17b897487856dd3e8cf606d56
q8_0 2bee9587dc93d258aac88b8abefe479bea465140b6a6ca5da1eba52463be2c3d
q4_0 99789ae88a5aeda1afeafbcc1cdbb32c9de83f35979fe662ee7f2417a9a1c53c
q4_1 312b83382b8f3372874a63deb8a5d49aa372fe9428e9295d937310bad0c06595
END
