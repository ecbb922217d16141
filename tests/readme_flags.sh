#!/usr/bin/env bash
# The README's flag tables are what the executable prints.  readme_flags.sh BATON README [--write]
set -euo pipefail
flags=$("$1" help --markdown)
shown=$(sed -n '/^<!-- flags -->$/,/^<!-- end of flags -->$/p' "$2" | sed '1d;$d')
if [ "${3:-}" = --write ]; then
    { sed '/^<!-- flags -->$/q' "$2"; printf '%s\n' "$flags"; sed -n '/^<!-- end of flags -->$/,$p' "$2"; } >"$2.new"
    mv "$2.new" "$2"
elif ! diff <(printf '%s\n' "$flags") <(printf '%s\n' "$shown"); then
    echo "README.md: the flags differ; run tests/readme_flags.sh build/baton README.md --write" >&2
    exit 1
fi
