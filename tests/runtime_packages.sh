#!/usr/bin/env bash
# The packages that deploy/install.sh installs on a host are those of the libraries that the executable is linked to: every library
# that ldd names is in one of them or in what they depend on, and each of them has one.   runtime_packages.sh BATON
set -euo pipefail
baton=$1
here=$(cd "$(dirname "$0")/.." && pwd)
. /etc/os-release
[ "$ID $VERSION_ID" = "debian 12" ] || { echo "SKIP: the list is of Debian 12's packages, this is $ID $VERSION_ID"; exit 77; }

# What it would install where nothing is, asked of itself with stand-ins for what it calls.
stage=$(mktemp -d)
trap 'rm -r "$stage"' EXIT
printf '#!/bin/sh\nexit 1\n' >"$stage/dpkg-query"
printf '#!/bin/sh\n[ "$1" = update ] || echo "$@" >"%s/asked"\n' "$stage" >"$stage/apt-get"
printf '#!/bin/sh\nexec "$@"\n' >"$stage/sudo"
chmod +x "$stage"/*
(PATH=$stage:$PATH; bash -s runtime <"$here/deploy/install.sh") >/dev/null
read -ra words <"$stage/asked"
listed=()
for w in "${words[@]:1}"; do case "$w" in -*) ;; *) listed+=("$w") ;; esac; done

apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
    "${listed[@]}" | sed -n 's/^\([a-z0-9][^ :]*\).*/\1/p' | sort -u >"$stage/closure"
ldd "$baton" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | grep -Ev 'lib(a|t|ub)san\.' | xargs readlink -f | sort -u >"$stage/libraries"
# dpkg knows some of them by the path before /usr was merged.
{ xargs dpkg -S <"$stage/libraries"; sed 's,^/usr,,' "$stage/libraries" | xargs dpkg -S; } 2>/dev/null |
    sed -E 's,^([^ :]+).*: (/usr)?(/.*),\1 \3,' | sort -u >"$stage/owners" || true
bad=0 count=0
while read -r library; do
    package=$(awk -v of="${library#/usr}" '$2 == of { print $1 }' "$stage/owners")
    [ -n "$package" ] || { echo "$library is of no package" >&2; bad=1; continue; }
    count=$((count + 1))
    echo "$package" >>"$stage/needed"
    grep -qx "$package" "$stage/closure" ||
        { echo "deploy/install.sh runtime: $library is in $package, which is neither in the list nor needed by one that is" >&2; bad=1; }
done <"$stage/libraries"
[ "$count" -gt 5 ] || { echo "ldd $baton named $count libraries" >&2; bad=1; }
for package in "${listed[@]}"; do
    grep -qx "$package" "$stage/needed" || { echo "deploy/install.sh runtime: no library of $package is linked to" >&2; bad=1; }
done
[ $bad = 0 ] && echo "$count libraries, in ${#listed[@]} packages and what those depend on"
exit $bad
