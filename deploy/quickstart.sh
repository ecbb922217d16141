#!/usr/bin/env bash
# From nothing to an answer on a Debian 12 machine: installs, builds, fetches the test model, starts a
# cluster of a coordinator, a prefill and a decode node, and answers a prompt. Safe to repeat.
#   ./deploy/quickstart.sh ["prompt"]
set -euo pipefail
cd "$(dirname "$0")/.."
prompt=${1:-The capital of France is}

echo "1/5 packages"
./deploy/install.sh
echo "2/5 build (build/baton)"
cmake --preset release -DBATON_TESTS=OFF >build-quickstart.log 2>&1 || { cat build-quickstart.log; exit 1; }
cmake --build build --target baton >>build-quickstart.log 2>&1 || { tail -40 build-quickstart.log; exit 1; }
rm -f build-quickstart.log
echo "3/5 model"
./deploy/fetch-model.sh

echo "4/5 cluster: one coordinator, one prefill node, one decode node"
logs=$(mktemp -d)
coproc up { exec ./build/baton up --model models/SmolLM2-135M-Instruct.Q4_1.gguf --listen 127.0.0.1:0 \
    --prefill-policy remote 2>"$logs/up.log"; }
pid=$up_PID
out=${up[0]}
stop() { kill -TERM "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; rm -rf "$logs"; }
trap stop EXIT
if ! read -r -t 60 line <&"$out" || [[ $line != ready\ grpc=* ]]; then
    echo "the cluster did not start:" >&2
    cat "$logs/up.log" >&2
    exit 1
fi
server=${line#ready grpc=}
server=${server%% *}
server=${server%% *}
echo "    $line"
./build/baton nodes --server "$server"

echo "5/5 prompt: $prompt"
./build/baton generate --server "$server" --prompt "$prompt" --max-tokens 48 --json | python3 -c '
import json, sys
a = json.load(sys.stdin)
t = a["timings_ms"]
print(a["text"])
print("    prompt read by %s, answer written by %s" % (a["nodes"]["prefill"], a["nodes"]["decode"]))
print("    ms: queue %.1f, prefill %.1f, kv transfer %.1f, first token %.1f, decode %.1f"
      % (t["queue"], t["prefill"], t["kv_transfer"], t["ttft"], t["decode"]))'
stop
trap - EXIT
echo "done; the cluster has been stopped. Your own, until Ctrl-C:  ./build/baton up --model models/SmolLM2-135M-Instruct.Q4_1.gguf"
