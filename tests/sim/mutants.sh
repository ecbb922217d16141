#!/bin/sh
# mutants.sh -- breaks one rule of a shipped file at a time and expects the simulator to notice.
#
#   mutants.sh SOURCE_DIR WORK_DIR SEEDS CC OBJECTS-AND-LIBRARIES...
#
# A mutant is one line: file ~ sed expression ~ the rule it breaks. The changed copy is compiled and
# linked before the library that holds the original, which is then not pulled in.
set -eu
source=$1 work=$2 seeds=$3 cc=$4
shift 4
mkdir -p "$work"
missed=0 count=0
while IFS='~' read -r file edit rule; do
    count=$((count + 1))
    sed -e "$edit" "$source/$file" > "$work/mutant.c"
    if cmp -s "$source/$file" "$work/mutant.c"; then
        echo "MISSED $file: this edit changes nothing any more: $edit"
        missed=$((missed + 1))
        continue
    fi
    "$cc" -std=gnu11 -O1 -w -I"$source" -c "$work/mutant.c" -o "$work/mutant.o"
    "$cc" "$work/mutant.o" "$@" -o "$work/mutant"
    code=0
    "$work/mutant" --seeds 1 "$seeds" > "$work/out" 2>&1 || code=$?
    if [ $code -eq 1 ] || [ $code -eq 134 ]; then
        echo "found  $file: $rule"
        echo "       $(grep -m1 -E 'failed:|Assertion' "$work/out" | cut -c1-200)"
    else
        echo "MISSED $file: $rule (exit code $code)"
        missed=$((missed + 1))
    fi
done <<'TABLE'
coordinator/request.c~s/if (e->attempt != r->attempt || r->seat\[SIDE_DECODE\].node < 0) return;/if (r->seat[SIDE_DECODE].node < 0) return;/~late events of an old attempt are taken for the current one's
coordinator/request.c~s/count = e->tokens.count, from = r->count;/count = e->tokens.count, from = index;/~a known token is emitted again
coordinator/request.c~s/a->decode.count = r->count;/a->decode.count = r->prompt_count + (r->count > r->prompt_count);/~a retry forgets all but one of the emitted tokens
coordinator/request.c~s/    coord_core_leave(c, r, SIDE_DECODE);/&if (e->end.st == ST_DEVICE) return;/~a device error of the decode node is not retried
coordinator/core.c~s/    if (key == INT64_MAX)/    if (key)/~timers are not set
coordinator/core.c~s/        while (n->first\[side\])/        while (0)/~requests of a lost node are not placed again
decode-node/decode.c~s/        node_core_io(c)->revoke(node_core_io(c)->ctx, s->ticket);/& node_seq_end(c, s, st, text);/~pages are given back before the fence
decode-node/decode.c~s/s->ready = s->cached + tokens;/s->ready = s->count - 1;/~rows that never landed count as ready
decode-node/decode.c~s/        emit_reserved(c, s, 0);/        emit_reserved(c, s, 0); node_seq_end(c, s, ST_OK, NULL); return;/~an answer that was complete already is not said to be
prefill-node/prefill.c~s/        io->send_abort(io->ctx, s->send);/& node_seq_end(c, s, st, text);/~pages are given back while the link reads them
prefill-node/prefill.c~s/end = min32(s->ready, s->request->send_end);/end = s->request->send_end;/~rows are pushed before they are computed
node/seq.c~s/ - 1 : s->ready;/ - 1 : s->count;/~pages are published before they are full
node/seq.c~s/        s->ready += tail_tokens;/        s->ready += tail_tokens + 1;/~one row more than was copied counts as ready
node/seq.c~s/        eng_pool_give(c->pool, tail);/        if (st != ST_OK) &/~the page that was copied from stays pinned
node/seq.c~s/        s->ready = s->swapped;/        s->ready = s->swapped + 1;/~one row more than was swapped in counts as ready
node/seq.c~s/    s->swapped = s->ready;/    s->swapped = s->ready; give_slots(c, s); s->swapped = s->ready; s->slots_count = 0;/~host memory is given back while it is in use
node/seq.c~s/    node_seq_give(c, s);/& if (s->swapped) s->slots_count = 0;/~host memory of a preempted sequence that ends is kept
kvtransfer/promise.c~s/if (at->epoch != f->epoch) return KVT_REFUSE_EPOCH;//~frames of any epoch land
kvtransfer/promise.c~s/    at->expires_ms = now_ms + at->lease_ms;/    at->expires_ms = INT64_MAX;/~a lease never ends once a frame has come
kvtransfer/promise.c~s/    for (size_t row = 0; row < (size_t)at->g.layers/    for (size_t row = 0; row < (size_t)1/~a token counts as landed when its first layer has
coordinator/request.c~s/if (!r->apart \&\& !relay(c, r, e, SIDE_PREFILL)) break;/if (!relay(c, r, e, SIDE_PREFILL)) break;/~apart: the prefill node's first token is said
coordinator/request.c~s/int32_t count = r->apart ? r->prompt_count : r->confirmed;/int32_t count = r->confirmed;/~apart: a prefill node is sent answer tokens
coordinator/request.c~s/r->apart_until_ms = c->now_ms + c->limits.apart_ms;/r->apart_until_ms = c->now_ms;/~apart: nobody waits for a prefill node
coordinator/tenant.c~s/    c->waiting_tokens += sign .*/    if (sign > 0) c->waiting_tokens += r->prompt_count;/~tokens of prompts that no longer wait are counted on
coordinator/tenant.c~s/    c->tenants\[tenant\].alive--;/    c->tenants[tenant].alive -= c->tenants[tenant].alive > 1;/~a tenant's last request counts as alive for ever
coordinator/route.c~s/if (nodes\[i\].known \&\& /if (nodes[i].alive \&\& /~apart: with its prefill nodes lost a cluster has no border any more
decode-node/decode.c~s/    if (lacks_prompt(s)) node_seq_end(c, s, ST_PEER_STALE.*/    if (0) return;/~apart: what did not land is computed on the decode node
decode-node/decode.c~s/    if (lacks_prompt(s)) node_seq_end(c, s, ST_AGAIN.*//~apart: a prompt whose pages were lost is computed on the decode node
decode-node/decode.c~s/return (s->request->apart ? s->request->prompt_count : s->count) - 1; }/return s->count - 1; }/~apart: answer positions are wanted of a prefill node
node/seq.c~s/int32_t known = .*/int32_t known = s->ready;/~apart: answer pages are offered as prompt pages
node/seq.c~s/(s->request->apart ? s->request->prompt_count : s->count) - 1;/s->count - 1;/~apart: answer positions are looked for among prompt pages
coordinator/hold.c~s/    coord_core_act(c, COORD_DO_CANCEL_PREFILL, r, node)->attempt = r->hold_attempt;//~a held prompt is never let go
coordinator/request.c~s/if (!r->hold_silent) relay/relay/~apart: the first token of a prompt that was read ahead is said
prefill-node/prefill.c~s/v->state == PREFILL_HELD \&\& v->blocks_count > 0/v->request->hold \&\& v->blocks_count > 0/~pages of a prompt that is still being read are unpinned
decode-node/decode.c~s/ != guess) break;/ != guess \&\& guess < 0) break;/~a proposed token is followed by the next one though the target drew another
node/core.c~s/int32_t final = min32(r->count, s->target - s->ready);/int32_t final = r->count;/~rows of proposed tokens count as the answer's
coordinator/request.c~s/r->prompt_count : r->confirmed; /r->prompt_count : r->count; /~a prefill node reads on after the token that ended the answer
coordinator/hold.c~s/h.apart || r->count > r->prompt_count/h.apart/~a prompt that is held once more says what comes after the answer
TABLE
echo "$((count - missed)) of $count mutants found"
[ $missed -eq 0 ]
