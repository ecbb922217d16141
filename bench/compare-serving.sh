#!/usr/bin/env bash
# baton beside llama-server: the same load, same file, same cores, turn by turn.
#   bench/compare-serving.sh [--rate X] [--seconds S] [--minutes M] [--slo-ttft MS] [--slo-itl MS] [--json FILE]
#                            [--write] [--... as bench/compare_serving.py has] [MODEL]
# Fetches and builds llama.cpp as bench/compare-llama.sh does, and its llama-server; then bench/compare_serving.py finds
# each side's goodput and prints a Markdown table. --write puts it into bench/README.md too.
set -euo pipefail
cd "$(dirname "$0")/.."

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
pass=()
while [ $# -gt 0 ]; do
    case "$1" in
    --write | --realtime) pass+=("$1") ;;
    -*) pass+=("$1" "${2:?"$1 has no value"}") && shift ;;
    *) model=$1 ;;
    esac
    shift
done
bench/compare-llama.sh --build-only "$model"
if [ ! -x build/llama/native/bin/llama-server ]; then
    echo "compare-serving: building llama-server (some minutes)" >&2
    cmake --build build/llama/native -j "$(nproc)" --target llama-server >build/llama/server-build.log 2>&1 ||
        { tail -30 build/llama/server-build.log >&2 && exit 1; }
fi
[ -x build/baton ] || { echo "compare-serving: build/baton is missing: cmake --preset release && cmake --build build" >&2 && exit 1; }
exec python3 bench/compare_serving.py --baton build/baton --native build/llama/native --model "$model" "${pass[@]}"
