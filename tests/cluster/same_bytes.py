"""The checker of promise 1: one request, the same tokens, whatever else happens.

Tokens and their logprobs are compared, so that all bits of a row of logits take part.

Runs every prompt greedy and with seeded sampling through clusters that differ in where and how the prompt
is read, how many nodes and threads there are, what shares the batch and who proposes tokens, then through the death of a
decode node after 1, 8 and 40 tokens and of a prefill node in the middle of a prompt; of nodes with several ranks rank 0
dies, then the last one. Everything is compared with the first cluster's answers: one node, local prefill, alone, without speculation.

Where prefill and decode nodes have different ranks, the reference is one of each, and the prompt is always read by a
prefill node: a decode node that reads it rounds otherwise (rule 6 of coordinator/request.c).

    python tests/cluster/same_bytes.py [--baton build/baton] [--model FILE] [--rounds 1] [--prefill-tp 1] [--decode-tp 1]
                                         [--clusters all|few]
"""
import concurrent.futures, itertools, os, signal, sys, threading, time

from harness import *

EXACT = dict(logprobs=0)        # a token's own: a sum that is rounded otherwise shows there long before it shows in a token
SAMPLED = dict(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, seed=7)
MAX_TOKENS = 16

PROMPTS = {
    'short': 'The capital of France is',
    'page': long_text(70, 900),               # about one page of KV
    'middle': long_text(700, 2000),
    'long': long_text(1800, 4000),
    'unicode': 'Grüße aus 東京! Привет, мир — ¿qué tal? 🙂 مرحبا',
}
CLUSTERS = {
    'remote, chunk 16': ['--prefill-policy', 'remote', '--chunk', 16],
    'remote, chunk 64': ['--prefill-policy', 'remote', '--chunk', 64],
    'remote, whole prompt': ['--prefill-policy', 'remote', '--chunk', 2048, '--step-tokens', 2048],
    'local, chunk 16': ['--prefill-policy', 'local', '--chunk', 16],
    'remote, 2 threads': ['--prefill-policy', 'remote', '--threads', 2],
    'remote, no prefix cache': ['--prefill-policy', 'remote', '--no-prefix-cache'],
    '2 prefill, 2 decode': ['--prefill-policy', 'remote', '--prefill', 2, '--decode', 2],
}
FEW = 'remote, chunk 64', 'remote, 2 threads', '2 prefill, 2 decode'   # under sanitizers: those with the most threads and calls
SPECULATION = {'ngram': [], 'lookahead': [], 'draft': ['--draft', '{model}']}
REPEATS = 'one two three four, ' * 12         # here every proposer is right now and then
WAYS = [('greedy', EXACT), ('sampled', EXACT | SAMPLED)]


class Checker:
    def __init__(self):
        self.expected, self.comparisons, self.wrong = {}, 0, []

    def check(self, name, way, where, tokens):
        want = self.expected.setdefault((name, way), tokens)
        self.comparisons += 1
        if tokens != want:
            at = next((i for i, (a, b) in enumerate(zip(tokens, want)) if a != b), min(len(tokens), len(want)))
            self.wrong.append(f'{where}: {name}, {way}: differs at answer token {at}')
            print('WRONG', self.wrong[-1], flush=True)


def each(cluster, checker, where):
    for name, prompt in PROMPTS.items():
        for way, sampling in WAYS:
            tokens, _, _ = cluster.generate(request(prompt, max_tokens=MAX_TOKENS, **sampling))
            checker.check(name, way, where, tokens)


def repeated(cluster, checker, where):
    for way, sampling in WAYS:
        tokens, _, finish = cluster.generate(request(REPEATS, max_tokens=96, **sampling))
        checker.check('repeats', way, where, tokens)
        assert finish.usage.accepted_tokens <= finish.usage.proposed_tokens


def prompts(cluster, checker, where):
    """The prompt's logprobs: the same numbers, and the answer's bytes are those of who did not ask for them."""
    for name in ('short', 'middle'):
        told, tokens, finish = cluster.told(request(PROMPTS[name], max_tokens=MAX_TOKENS, prompt_logprobs=2, **EXACT))
        assert finish.prefill_node == finish.decode_node and finish.usage.cached_tokens == 0, finish
        assert all(logprob <= 0 and len(top) == 2 for _, logprob, top in told[1:]), told
        checker.check(name, 'prompt', where, told)
        checker.check(name, 'greedy', where, tokens)


def refused_prompts(cluster):
    try:
        cluster.generate(request('The capital', prompt_logprobs=0))
        raise AssertionError('prompt logprobs where decode nodes do not read prompts')
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.UNIMPLEMENTED and 'prompt_logprobs' in e.details(), e


def among_others(cluster, checker, where, told):
    """Every request at once, their prompts cached by now, and 16 strangers with them."""
    jobs = [(name, way, request(prompt, max_tokens=MAX_TOKENS, **sampling))
            for name, prompt in PROMPTS.items() for way, sampling in WAYS]
    strangers = [request(long_text(60 + 17 * i, 300 * i), max_tokens=8 + i, temperature=1.0, seed=i)
                 for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(len(jobs) + len(strangers)) as pool:
        others = [pool.submit(cluster.generate, r) for r in strangers]
        if told:
            others.append(pool.submit(prompts, cluster, checker, where))
        mine = [(name, way, pool.submit(cluster.generate, r)) for name, way, r in jobs]
        for name, way, future in mine:
            checker.check(name, way, where, future.result()[0])
        for future in others:
            future.result()


def partly_cached(cluster, checker, where):
    """The cache holds another answer to the first half of the prompt."""
    for name in ('middle', 'long'):
        prompt = PROMPTS[name]
        cluster.generate(request(prompt[:len(prompt) // 2] + ' and then', max_tokens=4))
        tokens, _, finish = cluster.generate(request(prompt, max_tokens=MAX_TOKENS, **EXACT))
        checker.check(name, 'greedy', where, tokens)


class Killer:
    """Ends with SIGKILL a rank of the node that works for one request, once. The pids are asked for before the request."""
    named = itertools.count()

    def __init__(self, cluster, method, rank):
        self.cluster, self.method, self.rank, self.killed = cluster, method, rank, None
        self.request_id = f'same-bytes-{next(self.named)}'
        self.pids = {n.id: cluster.pids(n.id) for n in cluster.nodes()}
        self.since = cluster.log_size()

    def kill(self):
        """True once it has killed; False while no node has the request yet."""
        if not self.killed:
            self.killed = self.cluster.worker(self.method, self.request_id, self.since)
            if self.killed:
                os.kill(self.pids[self.killed][self.rank], signal.SIGKILL)
        return bool(self.killed)

    def all_back(self):
        old = self.pids[self.killed]
        wait_until(lambda: not any(map(alive, old)), 5, f'every rank of {self.killed} has ended')
        wait_until(lambda: all(n.state == 'ready' for n in self.cluster.nodes()) and
                   self.cluster.node(self.killed).pid != old[0], 20, f'{self.killed} is back')


def killed_decode(cluster, checker, after, answer_tokens, rank):
    """That rank of the decode node that writes the answer is killed once the client has read `after` tokens."""
    for name, (way, sampling) in zip(('middle', 'short'), WAYS):
        asked = request(PROMPTS[name], max_tokens=answer_tokens, **sampling)
        checker.check(name, way + ', long answer', 'nobody killed', cluster.generate(asked)[0])

        def attempt():
            """True if the kill came before the answer was complete."""
            killer = Killer(cluster, 'Decode', rank)
            asked.request_id = killer.request_id
            tokens, _, finish = collect(cluster.inference.Generate(asked, timeout=120),
                                        lambda tokens: len(tokens) >= after and killer.kill())
            checker.check(name, way + ', long answer', f'decode node, rank {rank}, killed after {after}', tokens)
            killer.all_back()
            return finish.attempts > 1

        # A fault that did not fire proves nothing; on a fast model the answer may be complete before it does.
        assert any(attempt() for _ in range(6)), f'no kill after {after} tokens hit its answer'


def killed_in_prompt(cluster, checker, answer_tokens, rank):
    """The decode node is killed once it has told a part of the prompt: the rest is told by another, nothing twice."""
    asked = request(PROMPTS['long'], max_tokens=answer_tokens, prompt_logprobs=2, **EXACT)
    told, tokens, _ = cluster.told(asked)
    checker.check('long', 'prompt', 'nobody killed', told)
    checker.check('long', 'told, long answer', 'nobody killed', tokens)

    def attempt():
        killer = Killer(cluster, 'Decode', rank)
        asked.request_id = killer.request_id
        told, tokens, finish = cluster.told(asked, lambda told: len(told) >= 20 and killer.kill())
        checker.check('long', 'prompt', f'decode node, rank {rank}, killed in mid-prompt', told)
        checker.check('long', 'told, long answer', f'decode node, rank {rank}, killed in mid-prompt', tokens)
        killer.all_back()
        return finish.attempts > 1

    assert any(attempt() for _ in range(6)), 'no kill hit the prompt or its answer'


def killed_prefill(cluster, checker, rank):
    for way, sampling in WAYS:
        asked = request(long_text(3600, 3000), max_tokens=MAX_TOKENS, **sampling)
        tokens, _, _ = cluster.generate(asked)
        checker.check('killed', way, 'no node killed', tokens)

        def attempt():
            """True if the kill came before the prompt was read to its end."""
            killer = Killer(cluster, 'Prefill', rank)
            asked.request_id = killer.request_id
            thread = threading.Thread(target=lambda: wait_until(killer.kill, 20, 'a node begins the prefill', 0.0005))
            thread.start()
            tokens, _, finish = collect(cluster.inference.Generate(asked, timeout=120))
            thread.join()
            checker.check('killed', way, f'prefill node, rank {rank}, killed in mid-prefill', tokens)
            killer.all_back()
            return f'{killer.killed} req={killer.request_id} prefill.computed' not in cluster.log_text(killer.since)

        assert any(attempt() for _ in range(6)), 'the prefill node was never killed in time'


def speculating(args, checker, where, layout, told, *mode):
    """Proposed tokens, right and wrong, alone and in a crowd; five a step, whether that gains or not."""
    with Cluster(args, '--threads', 1, '--prefill-policy', 'remote', '--no-speculate-adapt', '--speculate-tokens', 5,
                 *mode, *layout) as cluster:
        repeated(cluster, checker, where)
        each(cluster, checker, where)
        among_others(cluster, checker, where + ', among others', told)
        repeated(cluster, checker, where + ', cached')
        cluster.pages_back(5)
        accepted = cluster.counter('decode-1', 'baton_node_accepted_tokens_total')
        assert accepted > 0, f'{where}: no proposed token was ever right'
        print(f'{where}: {accepted} of {cluster.counter("decode-1", "baton_node_proposed_tokens_total")} proposed tokens accepted')


def killed_ranks(tp):
    """Rank 0, and the last one of several."""
    return sorted({0, tp - 1})


def unharmed(args, checker, layout, began):
    """Every cluster in which nobody dies, first the one that the others are compared with."""
    apart = args.prefill_tp != args.decode_tp
    alone = ['--prefill', 1, '--prefill-policy', 'remote'] if apart else ['--prefill', 0]
    with Cluster(args, '--decode', 1, '--no-prefix-cache', '--threads', 1, '--speculate', 'off', *alone, *layout) as cluster:
        each(cluster, checker, 'reference')
        each(cluster, checker, 'reference, again')
        repeated(cluster, checker, 'reference')
        refused_prompts(cluster) if apart else prompts(cluster, checker, 'reference')
    for _ in range(args.rounds):
        for mode, flags in SPECULATION.items():
            speculating(args, checker, f'speculation by {mode}', layout, not apart, '--speculate', mode,
                        *[flag.format(model=args.model) for flag in flags])
        for where, flags in CLUSTERS.items():
            if (apart and 'local' in flags) or (args.clusters == 'few' and where not in FEW):
                continue
            threads = [] if '--threads' in flags else ['--threads', 1]
            with Cluster(args, *threads, *flags, *layout) as cluster:
                each(cluster, checker, where + ', not cached')
                partly_cached(cluster, checker, where + ', partly cached')
                among_others(cluster, checker, where + ', among others', not apart)
                cluster.pages_back(5)
            print(f'{where}: {checker.comparisons} comparisons, {len(checker.wrong)} differ, '
                  f'{time.monotonic() - began:.0f} s', flush=True)


def main():
    args = arguments(rounds=1, long_answer=160, after='1,8,40', prefill_tp=1, decode_tp=1, clusters='all')
    layout = ['--prefill-tp', args.prefill_tp, '--decode-tp', args.decode_tp]
    checker, began = Checker(), time.monotonic()
    unharmed(args, checker, layout, began)
    remote = ['--prefill-policy', 'remote', '--no-prefix-cache', *layout]
    for _ in range(args.rounds):
        # A cluster each: who dies again and again is restarted after ever longer pauses.
        for after, rank in itertools.product(map(int, args.after.split(',')), killed_ranks(args.decode_tp)):
            with Cluster(args, '--prefill', 1, '--decode', 2, *remote) as cluster:
                killed_decode(cluster, checker, after, args.long_answer, rank)
        if args.prefill_tp == args.decode_tp:
            with Cluster(args, '--prefill', 1, '--decode', 2, '--chunk', 16, *remote) as cluster:
                killed_in_prompt(cluster, checker, args.long_answer, 0)
        for rank in killed_ranks(args.prefill_tp):
            with Cluster(args, '--prefill', 2, '--decode', 1, '--chunk', 16, *remote) as cluster:
                killed_prefill(cluster, checker, rank)
    print(f'{checker.comparisons} comparisons, {len(checker.wrong)} differ, {time.monotonic() - began:.0f} s')
    sys.exit(1 if checker.wrong else 0)


if __name__ == '__main__':
    main()
