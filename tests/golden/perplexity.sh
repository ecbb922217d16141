#!/usr/bin/env bash
# Perplexity of the excerpt at context 512 on the test model: 1,785 predictions (7 chunks), float32 gives 18.0715,
# llama.cpp on the same file 18.228; ours may not be worse.    perplexity.sh BATON MODEL TEXT
set -euo pipefail
"$1" perplexity --model "$2" --file "$3" --context 512 --json | python3 -c '
import json, sys
a = json.load(sys.stdin)
print(a)
sys.exit(not (a["tokens"] == 1785 and 17.9 < a["perplexity"] <= 18.228))'
