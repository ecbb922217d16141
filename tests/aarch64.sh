#!/usr/bin/env bash
# The engine's arithmetic, cross-compiled for aarch64 and run by an emulator: its unit tests, and that its
# bits are those of x86 (tests/golden/bits.txt). Installs compiler and emulator if they are missing.
#   ./tests/aarch64.sh                  (some six minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
./deploy/install.sh aarch64
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { cmake --preset aarch64 && cmake --build build-aarch64; } >"$log" 2>&1; then
    tail -60 "$log"
    exit 1
fi
ctest --test-dir build-aarch64 -j "$(nproc)" --output-on-failure --timeout 1200
