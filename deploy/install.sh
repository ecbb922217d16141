#!/usr/bin/env bash
# Installs the Debian 12 packages baton is built from, those that are missing; nothing to do: no output
# but one line, no network. With "tests" also what the tests need; with "ucx" what --kv-transport ucx is built from;
# with "aarch64" only a compiler and an emulator for that, which tests/aarch64.sh runs. With "runtime" only the libraries that
# the built executable needs, with "etcd" only that server: what a host needs, and what deploy/hosts.sh sends this script for:
#   ssh HOST bash -s runtime <deploy/install.sh
set -euo pipefail

packages=(build-essential cmake ninja-build pkg-config python3 python3-venv
    libgrpc-dev libssl-dev libprotobuf-c-dev protobuf-c-compiler protobuf-compiler
    libpcre2-dev libutf8proc-dev libfyaml-dev libxxhash-dev uthash-dev libjansson-dev libhwloc-dev libevent-dev)
if [ "${1:-}" = tests ]; then
    packages+=(libcmocka-dev clang libclang-rt-14-dev iproute2 nftables etcd-server spin libucx-dev)
elif [ "${1:-}" = ucx ]; then
    packages+=(libucx-dev)
elif [ "${1:-}" = aarch64 ]; then
    packages=(cmake ninja-build gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user libxxhash-dev)
elif [ "${1:-}" = runtime ]; then # tests/runtime_packages.sh holds it against what the executable is linked to
    packages=(libgrpc29 libssl3 libprotobuf-c1 libpcre2-8-0 libutf8proc2 libfyaml0 libxxhash0 libjansson4 libhwloc15
        libevent-2.1-7 libevent-pthreads-2.1-7)
elif [ "${1:-}" = etcd ]; then
    packages=(etcd-server)
fi

missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "packages: all ${#packages[@]} are installed"
    exit 0
fi
sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "packages: need root or sudo to install: ${missing[*]}" >&2; exit 1; }
    sudo=sudo
fi
echo "packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq </dev/null # stdin may be this script
$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null </dev/null
