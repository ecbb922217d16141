/* ownership.pml -- who owns a KV page while it is promised, written and given back: the protocol as a Promela model, and
 * every state of it looked at (check.sh).
 *
 * A P node of one or two ranks sends prompts' pages to a D node. Each attempt of a request takes one page on both sides;
 * each rank has one box of it to send: DATA, then END. A request's attempts use the same ticket and are told apart by
 * their epoch. That is what kvtransfer.h promises to work; the nodes draw a new ticket of 64 random bits each time.
 *
 * One step of the model is what the code does under one lock, or in one message of the engine's mailbox:
 *
 *   model                          code
 *   header_taken                   kvtransfer/link.c header_taken, receive.c kvt_receive_check, kvt_receive_frame (END, ABORT)
 *   payload_taken                  link.c payload_taken, receive.c kvt_receive_frame (the second judgement)
 *   kvt_promises_check, check_end  promise.c, by that name
 *   land                           receive.c sink->land, node/transfer.c land: after the judgement, without the lock
 *   end, withdraw, ended           receive.c end, withdraw, sink->ended; node/transfer.c landing_ended
 *   kvt_receive_expire             receive.c; at any time: a lease may be short and a network slow
 *   kvt_receive_link_lost          receive.c, by link.c kvt_link_fail (outgoing false)
 *   kvt_receive_revoked            receive.c (in d_kvt)
 *   admit_d                        decode-node/decode.c admit, promise; node/link.c promise; receive.c kvt_promise
 *   node_core_cancel_d, stop_d     node/core.c node_core_cancel, decode.c stop
 *   kvt_revoke                     node/link.c revoke, give_up; receive.c kvt_revoke
 *   node_core_landed               node/link.c heard, ended; node/core.c; decode.c landed
 *   finish_d                       decode.c answer, finish; node/seq.c node_seq_end
 *   begin_p                        prefill-node/prefill.c begin; node/link.c send_open; send.c kvt_send_open, kvt_send_push
 *   begin, pack, put, finish_p     send.c begin (and link.c kvt_link_to), stage, say, finish
 *   kvt_send_acked                 send.c
 *   kvt_send_link_lost             send.c, by link.c kvt_link_fail (outgoing)
 *   COMPUTING -> SENDING           prefill.c first_token: io->send_end
 *   heard, sent                    node/link.c heard, ended; node/core.c node_core_sent; prefill.c sent
 *   node_core_cancel_p             node/core.c node_core_cancel, prefill.c stop
 *   C_REQUEST                      coordinator/request.c coord_request_place, reserved, decode_event, finish,
 *                                  coord_request_side_failed, prefill_end; attempt_failed and retry
 *   HEARD_LOST                     coordinator/core.c hear_node, lose_node
 *
 * Faults, FAULTS of them in a run, at any moment: a link breaks (each end notices by itself, D may read what had arrived
 * before), D or P dies and comes back empty, a cancel never reaches its node, a send's time is over, the client leaves.
 *
 * Properties
 *   no write into a page that is not its own any more       land
 *   no read of a page that P has given back                 pack
 *   no page is taken that an open promise still names       admit_d
 *   a box lands once; ST_OK only when all have landed       payload_taken, end
 *   ended() is told once                                    ended
 *   every page returns, every request ends                  returned: where a run stops, all is free; with -DLIVE: none goes
 *                                                           on for ever without that, fair or not, as long as something
 *                                                           that can happen does
 *
 * Broken rules, one -D each (check.sh says which property must find it)
 *   BREAK_NO_ENDING     decode.c stop gives the pages at once       BREAK_FENCE         kvt_revoke tells ended() itself
 *   BREAK_JUDGED_ONCE   a payload lands by its header's judgement   BREAK_EPOCH         the judge does not look at epochs
 *   BREAK_SAME_EPOCH    an attempt has the epoch of the last one    BREAK_TICKET        a frame is held against any promise
 *   BREAK_TOLD_TWICE    end does not see that it was revoked        BREAK_END_FOR_ALL   one rank's END counts for both
 *   BREAK_ABORT_ONE     ABORT tells ended(), the promise stays      BREAK_P_GIVES_EARLY prefill.c stop gives the pages at once
 *   BREAK_FIRST_RANK    P's first rank to end speaks for all        BREAK_LEASE         a promise's lease does not end it
 *   BREAK_SAME_LIFE     a node that died comes back with the epoch it had: nobody notices
 *
 * Bounds: in CI one request of two attempts and two faults (77,760 states); one request, two ranks, one fault (77,579); two
 * requests for one page, one fault (146,463). The long ones: two requests of two attempts, one fault (4,435,359); two
 * attempts, two ranks, one fault (3,616,054); three faults (207,479); two pages (206,480, no fault).
 *
 * Left out: damaged payloads (they end as a lost link does), wrong bounds and types, HELLO, the frames of a box but one,
 * idle links, several D nodes (a ticket is of one), several ranks of D, the prefix cache and preemption (a page has one
 * owner here, and returns when its sequence ends), local prefill and prompts computed apart, prompts read ahead (what P
 * holds is pinned, and nobody has promised room for it, reads or writes it: coordinator/hold.c), the node that is full (a
 * call waits for a page instead of being refused and asked again), drain, the coordinator's own death (which is that every
 * stream is canceled, or, unseen, that cancels are lost). Time: there is none, only order. */
#ifndef REQUESTS
#define REQUESTS 2
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2
#endif
#ifndef D_PAGES
#define D_PAGES 1
#endif
#ifndef P_PAGES
#define P_PAGES 1
#endif
#ifndef RANKS
#define RANKS 1
#endif
#ifndef FAULTS
#define FAULTS 1
#endif

#define CALLS (REQUESTS * ATTEMPTS)
#define CALL(r, a) ((r) * ATTEMPTS + (a))
#define LINKS (2 * RANKS)                        /* of a rank: one that broke, and the one made anew */
#define RANK_OF(l) ((l) / 2)
#define BIT(i) (1 << (i))
#define ALL_RANKS (BIT(RANKS) - 1)
#if REQUESTS == 1 && ATTEMPTS == 1
#define EACH_CALL(what) what(0, 0)
#elif REQUESTS == 2 && ATTEMPTS == 1
#define EACH_CALL(what) what(0, 0) what(1, 0)
#elif REQUESTS == 1 && ATTEMPTS == 2
#define EACH_CALL(what) what(0, 0) what(0, 1)
#elif REQUESTS == 2 && ATTEMPTS == 2
#define EACH_CALL(what) what(0, 0) what(0, 1) what(1, 0) what(1, 1)
#elif REQUESTS == 2 && ATTEMPTS == 3
#define EACH_CALL(what) what(0, 0) what(0, 1) what(0, 2) what(1, 0) what(1, 1) what(1, 2)
#endif

/* Attempts are told apart by their number; the code compares epochs. */
#ifdef BREAK_SAME_EPOCH
#define EPOCH(a) 0
#else
#define EPOCH(a) (a)
#endif
#ifdef BREAK_EPOCH
#define SAME_EPOCH(a, b) true
#else
#define SAME_EPOCH(a, b) (EPOCH(a) == EPOCH(b))
#endif

/* ---- state: links --------------------------------------------------------------------------------- */

mtype:frame = { DATA, END, ABORT };
mtype:code = { OK, STALE };
chan wire[LINKS] = [2] of { mtype:frame, byte, byte };           /* kind, request (its ticket), attempt */
chan acks[LINKS] = [2] of { mtype:code, byte, byte };
bool up_p[LINKS], up_d[LINKS];                   /* as each end knows it */
bool cut[LINKS];                                 /* broken: an end that is up has not noticed */

/* ---- state: coordinator --------------------------------------------------------------------------- */

mtype:life = { QUEUED, RESERVING, PREFILLING, DECODING, FINISHED };
mtype:life request[REQUESTS] = QUEUED;
byte attempt[REQUESTS];
byte ask_d[CALLS], ask_p[CALLS];                 /* on the way to the node: */
#define SUBMIT 1
#define CANCEL 2
byte said_d[REQUESTS], said_p[REQUESTS];         /* of the present attempt, not heard yet: */
#define RESERVED 1
#define LANDED 2
#define DONE 4
#define FAILED 8
byte faults = FAULTS;                            /* that may still happen */

/* ---- state: D ------------------------------------------------------------------------------------- */

mtype:d_state = { FREE, PROMISED, RUNNING, D_ENDING };
typedef d_seq { mtype:d_state state = FREE; byte req; byte att }
d_seq d_page[D_PAGES];                           /* the page's owner */
typedef promise { bool open; byte att; byte at; byte landed; byte ends; byte owes }
promise table[REQUESTS];                         /* kvt_promises, by ticket; bits: ranks, ranks, links */
chan revoked = [D_PAGES + 1] of { byte, byte, byte };            /* request, attempt, page: ended() is owed */
chan d_mail = [D_PAGES + 2] of { byte, byte, byte };             /* the same, NODE_HEARD_LANDED */
typedef payload { bool reads; byte req; byte att; byte at }
payload body[LINKS];                             /* a DATA header was taken, its payload is being read */
mtype:between = { NOTHING, LAND, FINISH };
mtype:between mid = NOTHING;                     /* the kvt thread has left the lock and is about to: */
byte mid_r, mid_a, mid_page, mid_l;
bool mid_ok;

/* ---- state: P ------------------------------------------------------------------------------------- */

mtype:p_state = { NONE, COMPUTING, SENDING, P_ENDING };
typedef p_seq { mtype:p_state state = NONE; byte req; byte att; bool failed }
p_seq p_page[P_PAGES];
mtype:s_state = { CLOSED, OPENED, LINKED, ROWS_SENT, END_SENT, ENDED_OK, ENDED_BAD, HEARD };
typedef send { mtype:s_state state = CLOSED; byte link }
send sends[P_PAGES * RANKS];                     /* kvt_send of page q at rank k */
typedef passage { byte req; byte att }
passage way[P_PAGES];                            /* what its sends send; outlives the page where a rule is broken */
#define SEND(q, k) sends[(q) * RANKS + (k)]

hidden byte i, j, r_, a_, t_, q_;                /* within one step */
hidden byte known_;
hidden mtype:frame kind_;
hidden mtype:code code_;

/* ================================ D: kvtransfer/receive.c, promise.c ================================ */

inline kvt_promises_check(r, a) {                /* t_: whose promise; known_: it takes the frame */
    t_ = r;
#ifdef BREAK_TICKET
    for (i : 0 .. REQUESTS - 1) { if :: !table[t_].open && table[i].open -> t_ = i :: else fi }
#endif
    known_ = table[t_].open && SAME_EPOCH(table[t_].att, a)
}

inline answer(l, says, r, a) { if :: up_p[l] -> acks[l]!says,r,a :: else fi }
#define ROOM(l) (!up_p[l] || nfull(acks[l]))

inline withdraw(t) {
    table[t].open = 0; table[t].att = 0; table[t].at = 0; table[t].landed = 0; table[t].ends = 0; table[t].owes = 0
}

inline ended(r, a, page) {
    assert(!d_mail??[eval(r),eval(a),eval(page)]);               /* ended() is told once */
    assert(!(d_page[page].req == r && d_page[page].att == a && d_page[page].state == RUNNING));
    d_mail!r,a,page
}

#define leave_lock(what, l_, who, which, page, ok) mid = what; mid_l = l_; mid_r = who; mid_a = which; mid_page = page; mid_ok = ok
inline take_lock() { mid = NOTHING; mid_l = 0; mid_r = 0; mid_a = 0; mid_page = 0; mid_ok = 0 }

inline check_end(l) {
    if
    :: !(table[t_].landed & BIT(RANK_OF(l))) ->  /* KVT_SHORT */
        leave_lock(FINISH, l, t_, table[t_].att, table[t_].at, 0)
    :: else ->
#ifdef BREAK_END_FOR_ALL
        table[t_].ends = ALL_RANKS;
#else
        table[t_].ends = table[t_].ends | BIT(RANK_OF(l));
#endif
        if
        :: table[t_].ends == ALL_RANKS ->        /* KVT_DONE */
            leave_lock(FINISH, l, t_, table[t_].att, table[t_].at, 1)
        :: else ->                               /* KVT_PART */
            table[t_].owes = table[t_].owes & ~BIT(l);
            answer(l, OK, r_, a_)
        fi
    fi
}

inline header_taken(l) {
    wire[l]?kind_,r_,a_;
    kvt_promises_check(r_, a_);
    if
    :: kind_ == ABORT && known_ -> leave_lock(FINISH, l, t_, table[t_].att, table[t_].at, 0)
    :: kind_ == ABORT && !known_ -> skip
    :: kind_ != ABORT && !known_ -> answer(l, STALE, r_, a_)     /* refuse */
    :: kind_ == END && known_ -> check_end(l)
    :: kind_ == DATA && known_ ->                /* kvt_receive_check */
        table[t_].owes = table[t_].owes | BIT(l);
        body[l].reads = 1; body[l].req = r_; body[l].att = a_;
#ifdef BREAK_JUDGED_ONCE
        body[l].at = table[t_].at
#endif
    fi
}

inline payload_taken(l) {
    r_ = body[l].req; a_ = body[l].att;
    kvt_promises_check(r_, a_);
    if
#ifdef BREAK_JUDGED_ONCE
    :: true ->
        if :: known_ -> table[t_].landed = table[t_].landed | BIT(RANK_OF(l)) :: else fi;
        leave_lock(LAND, l, r_, a_, body[l].at, 0)
#else
    :: known_ ->
        assert(!(table[t_].landed & BIT(RANK_OF(l))));           /* a box lands once */
        table[t_].landed = table[t_].landed | BIT(RANK_OF(l));
        leave_lock(LAND, l, r_, a_, table[t_].at, 0)
    :: else -> answer(l, STALE, r_, a_)
#endif
    fi;
    body[l].reads = 0; body[l].req = 0; body[l].att = 0; body[l].at = 0
}

inline land() {                                  /* node/transfer.c: eng_kv_unpack into the promise's page */
    assert(d_page[mid_page].req == mid_r && d_page[mid_page].att == mid_a);
    assert(d_page[mid_page].state == PROMISED || d_page[mid_page].state == D_ENDING);
    take_lock()
}

inline end() {                                   /* on KVT_DONE, KVT_SHORT, KVT_ABORTED */
    if
    :: table[mid_r].open && table[mid_r].att == mid_a ->
        assert(!mid_ok || table[mid_r].landed == ALL_RANKS);     /* ST_OK: every row has landed */
#ifdef BREAK_ABORT_ONE
        if :: mid_ok -> withdraw(mid_r) :: else fi;
#else
        withdraw(mid_r);
#endif
        ended(mid_r, mid_a, mid_page)
    :: else ->                                   /* revoked meanwhile: kvt_receive_revoked tells */
#ifdef BREAK_TOLD_TWICE
        ended(mid_r, mid_a, mid_page)
#else
        skip
#endif
    fi;
    if :: mid_ok -> answer(mid_l, OK, mid_r, mid_a) :: else fi;
    take_lock()
}

inline kvt_receive_expire(r) { j = table[r].at; a_ = table[r].att; withdraw(r); ended(r, a_, j) }

inline kvt_receive_link_lost(l) {
    for (i : 0 .. REQUESTS - 1) {
        if :: table[i].open && (table[i].owes & BIT(l)) -> kvt_receive_expire(i) :: else fi
    }
    close_d(l)
}

inline empty_wire(l) { do :: nempty(wire[l]) -> wire[l]?_,_,_ :: empty(wire[l]) -> break od }
inline empty_acks(l) { do :: nempty(acks[l]) -> acks[l]?_,_,_ :: empty(acks[l]) -> break od }
inline close_d(l) { up_d[l] = 0; cut[l] = up_p[l]; empty_wire(l); body[l].reads = 0; body[l].req = 0; body[l].att = 0; body[l].at = 0 }
inline close_p(l) { up_p[l] = 0; empty_acks(l); cut[l] = up_d[l] }

#define D_LINK(l) \
    :: d_step { mid == NOTHING && up_d[l] && !body[l].reads && nempty(wire[l]) && ROOM(l) -> header_taken(l) } \
    :: d_step { mid == NOTHING && up_d[l] && body[l].reads && ROOM(l) -> payload_taken(l) } \
    :: d_step { mid == NOTHING && up_d[l] && cut[l] -> kvt_receive_link_lost(l) }
#ifdef BREAK_LEASE
#define D_LEASE(r)
#else
#define D_LEASE(r) :: d_step { mid == NOTHING && table[r].open -> kvt_receive_expire(r) }
#endif

active proctype d_kvt() {
end_wait:
    do
    D_LINK(0)
    D_LINK(1)
#if RANKS > 1
    D_LINK(2)
    D_LINK(3)
#endif
    D_LEASE(0)
#if REQUESTS > 1
    D_LEASE(1)
#endif
    :: d_step { mid == LAND -> land() }
    :: d_step { mid == FINISH && ROOM(mid_l) -> end() }
    :: d_step { mid == NOTHING && nempty(revoked) -> revoked?r_,a_,j; ended(r_, a_, j) }    /* kvt_receive_revoked */
    od
}

/* ================================ D: node/core.c, seq.c, decode-node/decode.c ======================= */

/* coord_leg: an older attempt's is silent */
#define say(said, r, a, what) \
    if :: request[r] != QUEUED && request[r] != FINISHED && attempt[r] == a -> said[r] = said[r] | what :: else fi


inline node_seq_end_d(p) { d_page[p].state = FREE; d_page[p].req = 0; d_page[p].att = 0 }

inline admit_d(rr, aa, p) {                      /* decode.c: admit, promise; link.c: promise; kvt_promise */
    ask_d[CALL(rr, aa)] = 0;
    for (i : 0 .. REQUESTS - 1) { assert(!table[i].open || table[i].at != p) }    /* no double owner */
    d_page[p].state = PROMISED; d_page[p].req = rr; d_page[p].att = aa;
    table[rr].open = 1; table[rr].att = aa; table[rr].at = p;
    say(said_d, rr, aa, RESERVED)
}

inline kvt_revoke(rr, aa) {
    if
    :: table[rr].open && table[rr].att == aa ->
        j = table[rr].at;
        withdraw(rr);
#ifdef BREAK_FENCE
        ended(rr, aa, j)
#else
        revoked!rr,aa,j
#endif
    :: else                                      /* ended already: NODE_HEARD_LANDED is on its way */
    fi
}

inline stop_d(p) {
    if
    :: d_page[p].state == RUNNING -> node_seq_end_d(p)
#ifdef BREAK_NO_ENDING
    :: d_page[p].state == PROMISED -> node_seq_end_d(p)
#else
    :: d_page[p].state == PROMISED -> 
        r_ = d_page[p].req; a_ = d_page[p].att; d_page[p].state = D_ENDING; kvt_revoke(r_, a_)
#endif
    :: else
    fi
}

inline node_core_cancel_d(rr, aa) {
    ask_d[CALL(rr, aa)] = 0;
    for (i : 0 .. D_PAGES - 1) {
        if :: d_page[i].state != FREE && d_page[i].req == rr && d_page[i].att == aa -> stop_d(i) :: else fi
    };
    skip
}

inline node_core_landed() {
    d_mail?r_,a_,j;
    if
    :: d_page[j].req == r_ && d_page[j].att == a_ && d_page[j].state == D_ENDING -> node_seq_end_d(j)
    :: d_page[j].req == r_ && d_page[j].att == a_ && d_page[j].state == PROMISED ->
        d_page[j].state = RUNNING; say(said_d, r_, a_, LANDED)
    :: else
    fi
}

inline finish_d(p) { r_ = d_page[p].req; a_ = d_page[p].att; say(said_d, r_, a_, DONE); node_seq_end_d(p) }

#define D_CALL(r, a) \
    :: d_step { ask_d[CALL(r, a)] == SUBMIT && !table[r].open && d_page[0].state == FREE -> admit_d(r, a, 0) } \
    D_CALL_1(r, a) \
    :: d_step { ask_d[CALL(r, a)] & CANCEL -> node_core_cancel_d(r, a) }
#if D_PAGES > 1
#define D_CALL_1(r, a) \
    :: d_step { ask_d[CALL(r, a)] == SUBMIT && !table[r].open && d_page[0].state != FREE && d_page[1].state == FREE -> \
       admit_d(r, a, 1) }
#else
#define D_CALL_1(r, a)
#endif

active proctype d_engine() {
end_wait:
    do
    EACH_CALL(D_CALL)
    :: d_step { nempty(d_mail) -> node_core_landed() }
    :: d_step { d_page[0].state == RUNNING -> finish_d(0) }
#if D_PAGES > 1
    :: d_step { d_page[1].state == RUNNING -> finish_d(1) }
#endif
    od
}

/* ================================ P: kvtransfer/send.c ============================================== */

#define ON_LINK(q, k) (SEND(q, k).state == LINKED || SEND(q, k).state == ROWS_SENT || SEND(q, k).state == END_SENT)
#define ABORTED(q) (p_page[q].state == P_ENDING || p_page[q].failed)
#define WRITABLE(l) (!up_d[l] || nfull(wire[l]))

#define put(l, kind, q) if :: up_d[l] -> wire[l]!kind,way[q].req,way[q].att :: else fi

inline begin(q, k) {
    if
    :: up_p[2 * k] -> SEND(q, k).link = 2 * k
    :: !up_p[2 * k] && up_p[2 * k + 1] -> SEND(q, k).link = 2 * k + 1
    :: !up_p[2 * k] && !up_p[2 * k + 1] ->       /* kvt_link_to: a new one */
        SEND(q, k).link = (up_d[2 * k] -> 2 * k + 1 : 2 * k);
        up_p[SEND(q, k).link] = 1; up_d[SEND(q, k).link] = 1
    fi;
    SEND(q, k).state = LINKED
}
#define LINK_FREE(k) (up_p[2 * (k)] || up_p[2 * (k) + 1] || !up_d[2 * (k)] || !up_d[2 * (k) + 1])

inline pack(q, k) {
    assert(p_page[q].state != NONE && p_page[q].req == way[q].req && p_page[q].att == way[q].att);
    put(SEND(q, k).link, DATA, q);
    SEND(q, k).state = ROWS_SENT
}

inline finish_p(q, k, how) { SEND(q, k).state = how; SEND(q, k).link = 0 }

inline kvt_send_acked(l) {
    acks[l]?code_,r_,a_;
    for (i : 0 .. P_PAGES - 1) {
        if
        :: SEND(i, RANK_OF(l)).link == l && way[i].req == r_ && EPOCH(way[i].att) == EPOCH(a_) && ON_LINK(i, RANK_OF(l)) ->
            if
            :: code_ == OK && SEND(i, RANK_OF(l)).state == END_SENT -> finish_p(i, RANK_OF(l), ENDED_OK)
            :: else -> finish_p(i, RANK_OF(l), ENDED_BAD)
            fi
        :: else
        fi
    };
    skip
}

inline kvt_send_link_lost(l) {
    for (i : 0 .. P_PAGES - 1) {
        if :: ON_LINK(i, RANK_OF(l)) && SEND(i, RANK_OF(l)).link == l -> finish_p(i, RANK_OF(l), ENDED_BAD) :: else fi
    }
    close_p(l)
}

#define P_SEND(q, k) \
    :: d_step { SEND(q, k).state == OPENED && ABORTED(q) -> finish_p(q, k, ENDED_BAD) } \
    :: d_step { SEND(q, k).state == OPENED && !ABORTED(q) && LINK_FREE(k) -> begin(q, k) } \
    :: d_step { SEND(q, k).state == LINKED && WRITABLE(SEND(q, k).link) -> pack(q, k) } \
    :: d_step { SEND(q, k).state == ROWS_SENT && p_page[q].state == SENDING && WRITABLE(SEND(q, k).link) -> \
       put(SEND(q, k).link, END, q); SEND(q, k).state = END_SENT } \
    :: d_step { ON_LINK(q, k) && ABORTED(q) && WRITABLE(SEND(q, k).link) -> \
       put(SEND(q, k).link, ABORT, q); finish_p(q, k, ENDED_BAD) } \
    :: d_step { faults > 0 && ON_LINK(q, k) && WRITABLE(SEND(q, k).link) -> \
       faults--; put(SEND(q, k).link, ABORT, q); finish_p(q, k, ENDED_BAD) }

#define P_LINK(l) \
    :: d_step { up_p[l] && nempty(acks[l]) -> kvt_send_acked(l) } \
    :: d_step { up_p[l] && cut[l] -> kvt_send_link_lost(l) }

#if P_PAGES > 1
#define P_KVT(k) P_SEND(0, k) P_SEND(1, k) P_LINK(2 * k) P_LINK(2 * k + 1)
#else
#define P_KVT(k) P_SEND(0, k) P_LINK(2 * k) P_LINK(2 * k + 1)
#endif

active proctype p_kvt_0() {
end_wait:
    do
    P_KVT(0)
    od
}

#if RANKS > 1
active proctype p_kvt_1() {
end_wait:
    do
    P_KVT(1)
    od
}
#endif

/* ================================ P: node/core.c, link.c, prefill-node/prefill.c ===================== */

inline node_seq_end_p(q) { p_page[q].state = NONE; p_page[q].req = 0; p_page[q].att = 0; p_page[q].failed = 0 }

inline begin_p(rr, aa, q) {                      /* prefill.c: begin; link.c: send_open */
    ask_p[CALL(rr, aa)] = 0;
    p_page[q].state = COMPUTING; p_page[q].req = rr; p_page[q].att = aa;
    way[q].req = rr; way[q].att = aa;
    for (i : 0 .. RANKS - 1) { SEND(q, i).state = OPENED };
    skip
}

inline sent(q) {                                 /* prefill.c, by node_core_sent */
    if
    :: p_page[q].state == P_ENDING -> skip
    :: p_page[q].state != P_ENDING && p_page[q].failed ->
        r_ = p_page[q].req; a_ = p_page[q].att; say(said_p, r_, a_, FAILED)
    :: else -> assert(p_page[q].state == SENDING)
    fi;
    node_seq_end_p(q)
}

inline forget(q) { way[q].req = 0; way[q].att = 0; for (i : 0 .. RANKS - 1) { SEND(q, i).state = CLOSED }; skip }

inline heard(q, k) {                             /* link.c: a rank's part has ended */
    if :: SEND(q, k).state == ENDED_BAD && p_page[q].state != NONE -> p_page[q].failed = 1 :: else fi;
    SEND(q, k).state = HEARD;
    j = 0;
    for (i : 0 .. RANKS - 1) { if :: SEND(q, i).state == HEARD -> j++ :: else fi }
#ifdef BREAK_FIRST_RANK
    if :: p_page[q].state != NONE -> sent(q) :: else fi;
    if :: j == RANKS -> forget(q) :: else fi
#else
    if :: j == RANKS && p_page[q].state != NONE -> sent(q) :: else fi;
    if :: j == RANKS -> forget(q) :: else fi
#endif
}

inline node_core_cancel_p(rr, aa) {
    ask_p[CALL(rr, aa)] = 0;
    for (i : 0 .. P_PAGES - 1) {
        if
        :: p_page[i].state != NONE && p_page[i].req == rr && p_page[i].att == aa ->     /* prefill.c: stop */
#ifdef BREAK_P_GIVES_EARLY
            node_seq_end_p(i)
#else
            p_page[i].state = P_ENDING
#endif
        :: else
        fi
    };
    skip
}

#define P_CALL(r, a) \
    :: d_step { ask_p[CALL(r, a)] == SUBMIT && p_page[0].state == NONE && SEND(0, 0).state == CLOSED -> begin_p(r, a, 0) } \
    P_CALL_1(r, a) \
    :: d_step { ask_p[CALL(r, a)] & CANCEL -> node_core_cancel_p(r, a) }
#if P_PAGES > 1
#define P_CALL_1(r, a) \
    :: d_step { ask_p[CALL(r, a)] == SUBMIT && p_page[0].state != NONE && p_page[1].state == NONE && \
       SEND(1, 0).state == CLOSED -> begin_p(r, a, 1) }
#else
#define P_CALL_1(r, a)
#endif
#define P_PAGE(q) \
    :: d_step { p_page[q].state == COMPUTING && !p_page[q].failed -> p_page[q].state = SENDING } \
    P_HEARD(q, 0) P_HEARD_1(q)
#define P_HEARD(q, k) :: d_step { SEND(q, k).state == ENDED_OK || SEND(q, k).state == ENDED_BAD -> heard(q, k) }
#if RANKS > 1
#define P_HEARD_1(q) P_HEARD(q, 1)
#else
#define P_HEARD_1(q)
#endif

active proctype p_engine() {
end_wait:
    do
    EACH_CALL(P_CALL)
    P_PAGE(0)
#if P_PAGES > 1
    P_PAGE(1)
#endif
    od
}

/* ================================ coordinator/request.c ============================================= */

inline cancel_streams(r) {
    if
    :: request[r] != QUEUED && !(said_d[r] & (DONE | FAILED)) ->
        ask_d[CALL(r, attempt[r])] = ask_d[CALL(r, attempt[r])] | CANCEL
    :: else
    fi;
    if
    :: (request[r] == PREFILLING || request[r] == DECODING) && !(said_p[r] & FAILED) ->
        ask_p[CALL(r, attempt[r])] = ask_p[CALL(r, attempt[r])] | CANCEL
    :: else
    fi;
    said_d[r] = 0; said_p[r] = 0
}

inline finish(r) { cancel_streams(r); request[r] = FINISHED }

inline attempt_failed(r) {                       /* retry, or given up */
    cancel_streams(r);
    if
    :: attempt[r] + 1 < ATTEMPTS -> request[r] = QUEUED; attempt[r]++
    :: else -> request[r] = FINISHED
    fi
}

/* Placed in order of arrival. */
#define MAY_GO(r) (r == 0 || attempt[r] > 0 || request[0] != QUEUED || attempt[0] > 0)

#define C_REQUEST(r) \
    :: d_step { request[r] == QUEUED && MAY_GO(r) -> \
       request[r] = RESERVING; ask_d[CALL(r, attempt[r])] = SUBMIT } \
    :: d_step { request[r] == RESERVING && (said_d[r] & RESERVED) -> \
       request[r] = PREFILLING; ask_p[CALL(r, attempt[r])] = SUBMIT } \
    :: d_step { request[r] == PREFILLING && (said_d[r] & LANDED) -> request[r] = DECODING } \
    :: d_step { request[r] == DECODING && (said_d[r] & DONE) -> finish(r) } \
    :: d_step { request[r] == PREFILLING && (said_p[r] & FAILED) -> attempt_failed(r) } \
    :: d_step { said_d[r] & FAILED -> attempt_failed(r) } \
    :: d_step { faults > 0 && request[r] != FINISHED -> faults--; finish(r) }

active proctype coordinator() {
end_wait:
    do
    C_REQUEST(0)
#if REQUESTS > 1
    C_REQUEST(1)
#endif
    od
}

/* ================================ faults ============================================================ */

#define PLACED(r) (request[r] != QUEUED && request[r] != FINISHED)

#ifdef BREAK_SAME_LIFE
#define HEARD_LOST false
#else
#define HEARD_LOST true                          /* coordinator/core.c: hear_node sees another epoch, lose_node */
#endif

inline crash_d() {
    faults--;
    for (i : 0 .. D_PAGES - 1) { node_seq_end_d(i) }
    for (i : 0 .. REQUESTS - 1) {
        withdraw(i);
        if :: HEARD_LOST && PLACED(i) && !(said_d[i] & DONE) -> said_d[i] = FAILED :: else fi
    }
    for (i : 0 .. CALLS - 1) { ask_d[i] = 0 }
    for (i : 0 .. LINKS - 1) { if :: up_d[i] -> close_d(i) :: else fi }
    do :: nempty(d_mail) -> d_mail?_,_,_ :: empty(d_mail) -> break od;
    do :: nempty(revoked) -> revoked?_,_,_ :: empty(revoked) -> break od;
    take_lock()
}

inline crash_p() {
    faults--;
    for (q_ : 0 .. P_PAGES - 1) { node_seq_end_p(q_); for (i : 0 .. RANKS - 1) { SEND(q_, i).link = 0 } forget(q_) }
    for (i : 0 .. REQUESTS - 1) { if :: HEARD_LOST && request[i] == PREFILLING -> said_p[i] = FAILED :: else fi }
    for (i : 0 .. CALLS - 1) { ask_p[i] = 0 }
    for (i : 0 .. LINKS - 1) { if :: up_p[i] -> close_p(i) :: else fi };
    skip
}

#define LOSE_CANCEL(r, a) \
    :: d_step { faults > 0 && ask_d[CALL(r, a)] == CANCEL -> faults--; ask_d[CALL(r, a)] = 0 } \
    :: d_step { faults > 0 && ask_p[CALL(r, a)] == CANCEL -> faults--; ask_p[CALL(r, a)] = 0 }
#define CUT(l) :: d_step { faults > 0 && up_p[l] && up_d[l] && !cut[l] -> faults--; cut[l] = 1 }

active proctype chance() {
end_wait:
    do
    CUT(0)
    CUT(1)
#if RANKS > 1
    CUT(2)
    CUT(3)
#endif
    EACH_CALL(LOSE_CANCEL)
    :: d_step { faults > 0 -> crash_d() }
    :: d_step { faults > 0 -> crash_p() }
    od
}

/* ================================ everything returns ================================================= */

#define FINISHED_ALL (request[0] == FINISHED && request[REQUESTS - 1] == FINISHED)
#define D_FREE (d_page[0].state == FREE && d_page[D_PAGES - 1].state == FREE && !table[0].open && !table[REQUESTS - 1].open)
#define P_FREE (p_page[0].state == NONE && p_page[P_PAGES - 1].state == NONE)

#ifdef LIVE
ltl returns { <> [] (FINISHED_ALL && D_FREE && P_FREE) }
#else
/* Runs are finite. One that stops elsewhere leaves this process behind: pan's "invalid end state". */
active proctype returned() { FINISHED_ALL && D_FREE && P_FREE && empty(d_mail) && empty(revoked) && mid == NOTHING }
#endif
