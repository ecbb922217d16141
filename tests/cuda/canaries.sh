#!/usr/bin/env bash
# canaries.sh asan|race|ptx CANARY: each bug of canary.cu is caught by that build in one order of threads or another,
# each twin passes in all of them. Bugs a build is not made for are listed here; one of those that is caught after all is
# told, too, so that the list stays true.
set -u
build=$1 canary=$2
case $build in
asan) not_seen="sum host_pointer" ;;       # a race whose value is right in every order; any host memory can be read
race | ptx) not_seen= ;;
*) echo "usage: canaries.sh asan|race|ptx CANARY" >&2; exit 2 ;;
esac
bad=0 count=0
for name in $("$canary"); do
    caught= how=bug
    [ "$name" = dynamic_large ] && how=alone              # its twin sets the kernel's attribute for good
    for order in forward reverse random; do
        if ! out=$(EMU_SCHED=$order "$canary" "$name" twin 2>&1); then
            printf 'TWIN REFUSED  %s (%s): %s\n' "$name" "$order" "$(grep -m1 -E 'ERROR|cudaError' <<<"$out")"
            bad=1
        fi
        [ -n "$caught" ] && continue
        if ! out=$(EMU_SCHED=$order "$canary" "$name" $how 2>&1); then
            caught="$order: $(grep -m1 -E 'ERROR|runtime error|cudaError|another result' <<<"$out" | cut -c1-100)"
        fi
    done
    case " $not_seen " in
    *" $name "*) [ -n "$caught" ] && { echo "CAUGHT THOUGH LISTED AS NOT SEEN  $name"; bad=1; } ;;
    *) [ -z "$caught" ] && { echo "NOT CAUGHT  $name"; bad=1; } ;;
    esac
    printf '%-18s %s\n' "$name" "${caught:-not seen by this build}"
    count=$((count + 1))
done
echo "$count canaries"
[ "$count" -ge 25 ] || bad=1
exit $bad
