#!/usr/bin/env bash
# Installs what is missing, builds, runs every test: release, ASan+UBSan over the whole suite, TSan over
# the concurrent parts (label "threads"), a short run of each fuzz target.
#   ./tests/run.sh           all of that
#   ./tests/run.sh --quick   release only
#   ./tests/run.sh --long    all of that, then 1,000,000 runs of each fuzz target, the long tests, and the
#                           arithmetic on an emulated aarch64
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-}
case "$mode" in "" | --quick | --long) ;; *) echo "usage: tests/run.sh [--quick|--long]" >&2; exit 2 ;; esac
jobs=$(nproc)

say() { printf '\n=== %s (%ds)\n' "$*" "$SECONDS"; }

say "packages and model"
./deploy/install.sh tests
./deploy/fetch-model.sh
venv=build/venv
stamp=$(sha256sum tests/client/requirements.txt | cut -c1-16)
if [ ! -f "$venv/$stamp" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/client/requirements.txt
    touch "$venv/$stamp"
fi

# promtool is in a package with a server that would start by itself: only the tool is taken out of it.
if [ ! -x build/promtool ]; then
    fetched=$(mktemp -d)
    if (cd "$fetched" && apt-get download -qq prometheus >/dev/null 2>&1 && dpkg-deb -x prometheus_*.deb .); then
        cp "$fetched/usr/bin/promtool" build/promtool
    else
        echo "promtool: cannot be fetched; its check of /metrics is skipped"
    fi
    rm -rf "$fetched"
fi

build() { # preset extra-cmake-flags...
    local log
    log=$(mktemp)
    if ! { cmake --preset "$1" "${@:2}" && cmake --build "build${suffix}" -j "$jobs"; } >"$log" 2>&1; then
        tail -60 "$log"
        exit 1
    fi
    grep '^-- baton: ' "$log" | sort -u # what was found and what was not
    rm -f "$log"
}
check() { ctest --test-dir "build${suffix}" --output-on-failure --timeout 600 "$@"; }

suffix=
say "release: build"
build release -DBATON_TESTS=ON
say "release: tests"
check -j "$jobs" -LE long

if [ "$mode" != --quick ]; then
    suffix=-asan
    say "ASan+UBSan: build"
    build asan
    say "ASan+UBSan: tests"
    check -j "$jobs" -LE long

    suffix=-tsan
    say "TSan: build"
    build tsan
    say "TSan: tests that have threads"
    check -j "$jobs" -L threads -LE long

    suffix=-fuzz
    say "fuzz: build"
    build fuzz
    runs=20000
    [ "$mode" = --long ] && runs=1000000
    export LSAN_OPTIONS=print_suppressions=0       # libfyaml's would be told 100,000 times
    for target in build-fuzz/tests/fuzz_*; do
        name=$(basename "$target")
        say "fuzz: $name, $runs runs"
        found=$(mktemp -d)
        "$target" -runs="$runs" -seed=1 -max_len=8192 -print_final_stats=0 -verbosity=0 \
            "$found" "tests/fuzz/corpus/${name#fuzz_}"
        rm -rf "$found"
    done
fi
if [ "$mode" = --long ]; then
    suffix=
    say "long tests"
    check -j "$jobs" -L long
    say "aarch64"
    ./tests/aarch64.sh
fi
say "all passed"
