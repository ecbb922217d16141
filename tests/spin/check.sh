#!/usr/bin/env bash
# check.sh -- ownership.pml in every state: the protocol as it is must have no error, each broken variant one.
#
#   check.sh WORK_DIR          the small bounds: what CI runs
#   check.sh WORK_DIR long     the large ones, some minutes; at most 2 GiB of memory each
#
# A row: kind ~ bounds and what is broken ~ what pan must say. "none" is a whole search without an error; anything else a
# part of the error that must be found, with which the search ends. Kinds: whole, broken: assertions and where runs stop;
# all: the search goes on after an error, for another one; live, lasts: the formula, kept and broken. Without
# pan's weak fairness (-f): that asks less, and does not see runs that stop.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
work=$1 bounds=${2:-small}
mkdir -p "$work"
work=$(cd "$work" && pwd)
export source

# One row: generated, compiled and run in a folder of its own.
row() { # folder kind flags expected
    local folder=$1 kind=$2 flags=$3 expected=$4 options run
    options="-O2 -DSAFETY -DNOREDUCE -DCOLLAPSE" run="-m20000"
    [ "$kind" = broken ] && options="-O0 -DSAFETY -DNOREDUCE"
    [ "$kind" = all ] && options="-O0 -DSAFETY -DNOREDUCE" run="-m20000 -c0"
    [ "$kind" = lasts ] && options="-O0 -DNOREDUCE -DNOFAIR" run="-m40000 -a"
    [ "$kind" = live ] && options="-O2 -DNOREDUCE -DCOLLAPSE -DNOFAIR" run="-m40000 -a"
    rm -rf "$folder" && mkdir -p "$folder" && cd "$folder"
    # shellcheck disable=SC2086
    { spin -a $flags "$source/ownership.pml" && ${CC:-gcc} $options -DMEMLIM=2000 -w -o pan pan.c; } > build.txt 2>&1 ||
        { echo "FAILED $flags: does not build: $(tail -1 build.txt)"; return 1; }
    # shellcheck disable=SC2086
    timeout 3000 nice ./pan $run > out.txt 2>&1 || true
    local states
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' out.txt)
    if grep -q 'max search depth too small' out.txt; then
        echo "FAILED $flags: the search is not deep enough"; return 1
    elif [ "$expected" = none ]; then
        if ! grep -q 'errors: 0' out.txt || grep -q 'Search not completed' out.txt; then
            echo "FAILED $flags: $(grep -m1 -E '^pan|errors:' out.txt || tail -1 out.txt)"; return 1
        fi
        echo "whole  $flags: no error in $states states"
    elif grep -q -F "$expected" out.txt; then
        echo "found  $flags: $(grep -m1 -F "$expected" out.txt | cut -c1-130)"
    else
        echo "MISSED $flags: expected \"$expected\", pan says: $(grep -m1 -E '^pan|errors:' out.txt || tail -1 out.txt)"; return 1
    fi
}
export -f row

table() {
    cat <<'TABLE'
whole~-DREQUESTS=1 -DATTEMPTS=2 -DRANKS=1 -DFAULTS=2~none
whole~-DREQUESTS=1 -DATTEMPTS=1 -DRANKS=2 -DFAULTS=1~none
whole~-DREQUESTS=2 -DATTEMPTS=1 -DRANKS=1 -DFAULTS=1~none
live~-DLIVE -DREQUESTS=1 -DATTEMPTS=2 -DRANKS=1 -DFAULTS=1~none
broken~-DBREAK_NO_ENDING -DREQUESTS=1 -DATTEMPTS=1 -DFAULTS=1~d_page[mid_page]
broken~-DBREAK_FENCE -DREQUESTS=1 -DATTEMPTS=1 -DFAULTS=1~d_page[mid_page]
broken~-DBREAK_JUDGED_ONCE -DREQUESTS=1 -DATTEMPTS=1 -DFAULTS=1~d_page[mid_page]
broken~-DBREAK_EPOCH -DREQUESTS=1~d_page[mid_page]
broken~-DBREAK_SAME_EPOCH -DREQUESTS=1~d_page[mid_page]
broken~-DBREAK_TICKET -DATTEMPTS=1~d_page[mid_page]
broken~-DBREAK_TOLD_TWICE -DREQUESTS=1 -DATTEMPTS=1~d_mail
broken~-DBREAK_END_FOR_ALL -DREQUESTS=1 -DATTEMPTS=1 -DRANKS=2~landed==
all~-DBREAK_ABORT_ONE -DREQUESTS=1 -DATTEMPTS=1 -DRANKS=2~d_page[mid_page]
broken~-DBREAK_P_GIVES_EARLY -DREQUESTS=1 -DATTEMPTS=1~p_page[
broken~-DBREAK_FIRST_RANK -DREQUESTS=1 -DATTEMPTS=1 -DRANKS=2~p_page[
broken~-DBREAK_LEASE -DREQUESTS=1 -DFAULTS=2~invalid end state
broken~-DBREAK_SAME_LIFE -DREQUESTS=1 -DATTEMPTS=1~invalid end state
lasts~-DLIVE -DBREAK_LEASE -DREQUESTS=1 -DFAULTS=2~acceptance cycle
lasts~-DLIVE -DBREAK_SAME_LIFE -DREQUESTS=1 -DATTEMPTS=1~acceptance cycle
TABLE
}
table_long() {
    cat <<'TABLE'
whole~-DREQUESTS=2 -DATTEMPTS=2 -DRANKS=1 -DFAULTS=1~none
whole~-DREQUESTS=1 -DATTEMPTS=2 -DRANKS=2 -DFAULTS=1~none
whole~-DREQUESTS=1 -DATTEMPTS=2 -DRANKS=1 -DFAULTS=3~none
whole~-DREQUESTS=2 -DATTEMPTS=2 -DRANKS=1 -DFAULTS=0~none
whole~-DREQUESTS=2 -DATTEMPTS=1 -DRANKS=1 -DD_PAGES=2 -DP_PAGES=2 -DFAULTS=0~none
live~-DLIVE -DREQUESTS=1 -DATTEMPTS=2 -DRANKS=1 -DFAULTS=2~none
TABLE
}

number=0
{ if [ "$bounds" = long ]; then table_long; else table; fi; } | while IFS='~' read -r kind flags expected; do
    number=$((number + 1))
    printf '%s\0%s\0%s\0%s\0' "$work/$number" "$kind" "$flags" "$expected"
done | xargs -0 -n 4 -P 2 bash -c 'row "$@"' row
