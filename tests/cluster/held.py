"""Pages that prefill nodes keep.

While every decode node is full, prefill nodes read the prompts of those that wait and hold the pages: the first token
comes at once, and later only the transfer is left. Holds end with their requests, and with their node.

When a decode node is killed, its requests go on elsewhere with the pages of their prompts, which prefill nodes still
have: of the prompts less than 5 % is computed again, counted by the nodes' own counters. Bytes are those of a lone node.

    python tests/cluster/held.py [--baton build/baton] [--model FILE] [--requests 12] [--prompt 600] [--tokens 1200]
"""
import concurrent.futures, os, random, re, signal

from harness import *

ROWS = 'baton_node_tokens_total', 'kind="prefill"'
SHARE = 0.05


def prompt(seed, count):
    return [random.Random(seed * 7919 + i).randrange(3, 250) for i in range(count)]


def rows(cluster, ids):
    return sum(cluster.counter(id, *ROWS) for id in ids)


def settled(read, least, what):
    """What a counter says once it has got so far and stays there; nodes tell theirs ten times a second."""
    seen = []

    def stays():
        seen.append(read())
        return len(seen) > 3 and seen[-1] >= least and len(set(seen[-4:])) == 1
    wait_until(stays, 30, what, every=0.1)
    return seen[-1]


class Asker:
    """One request in a thread; how many tokens have come so far."""

    def __init__(self, cluster, pool, job):
        self.job, self.got = job, 0
        self.stream = cluster.inference.Generate(job, timeout=300)
        self.answer = pool.submit(collect, self.stream, self.count)

    def count(self, tokens):
        self.got = len(tokens)


def read_ahead(args, expected):
    """Returns whether the decode node stayed full for long enough."""
    flags = ['--prefill', 2, '--decode', 1, '--sequences', 4, '--prefill-policy', 'remote', '--kv-pages', 2048]
    with Cluster(args, *flags) as cluster, concurrent.futures.ThreadPoolExecutor(16) as pool:
        full = [Asker(cluster, pool, request(tokens=[5 + i] * 40, max_tokens=5000)) for i in range(4)]
        wait_until(lambda: all(a.got for a in full), 60, 'the decode node is full')
        ids = [n.id for n in cluster.nodes('prefill')]
        jobs = [request(tokens=prompt(i, args.prompt), max_tokens=40) for i in range(3)]
        held = [Asker(cluster, pool, job) for job in jobs]
        wait_until(lambda: all(a.got for a in held) or any(a.answer.done() for a in full), 60, 'three first tokens')

        def pages_held():
            return sum(cluster.node(id).pages.held for id in ids)
        pages = -(-args.prompt // 16)
        wait_until(lambda: pages_held() == 3 * pages or any(a.answer.done() for a in full), 10, 'three prompts are held')
        if any(a.answer.done() for a in full):
            [a.stream.cancel() for a in full]
            return False
        assert [a.got for a in held] == [1, 1, 1], 'more than the first token of a prompt that is held'
        held[2].stream.cancel()
        wait_until(lambda: pages_held() == 2 * pages, 10, 'the pages of the canceled one are let go')
        holder = next(id for id in ids if cluster.node(id).pages.held)
        os.kill(cluster.node(holder).pid, signal.SIGKILL)
        wait_until(lambda: cluster.node(holder).state == 'lost' or cluster.node(holder).pages.held == 0, 10, 'the holder is gone')
        wait_until(lambda: pages_held() >= 2 * pages, 20, 'its prompt is read again')
        wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()), 20, 'everyone is back')
        now = settled(lambda: rows(cluster, ids), 0, 'the prompts are read')
        if any(a.answer.done() for a in full):
            [a.stream.cancel() for a in full]
            return False
        [a.stream.cancel() for a in full]
        for a, want in zip(held[:2], expected):
            tokens, _, finish = a.answer.result()
            assert tokens == want, 'other tokens after the prompt was held'
            assert finish.timings.held > 0 and finish.timings.prefill > 0 and finish.usage.cached_tokens == 0, finish
        again = settled(lambda: rows(cluster, ids), 0, 'what was left of the prompts is read') - now
        print(f'held: {again} rows of {2 * args.prompt} were left to read when a decode node had room')
        assert again <= 2 * 18, 'more than a page of a held prompt was read again'
        cluster.pages_back(5)
    return True


def killed_decode(args, expected, jobs):
    """Returns (prompt tokens computed again, prompt tokens) of what was placed again; None: the kill hit too little."""
    flags = ['--prefill', 2, '--decode', 2, '--prefill-policy', args.policy, '--kv-pages', args.pages]
    with Cluster(args, *flags) as cluster, concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        askers = [Asker(cluster, pool, job) for job in jobs]
        wait_until(lambda: all(a.got >= 8 for a in askers), 120, 'every answer has begun')
        nodes = [n.id for n in cluster.nodes('prefill') + cluster.nodes('decode')]
        readers = [n.id for n in cluster.nodes('prefill')]
        asked = sum(len(job.tokens.ids) for job in jobs)
        settled(lambda: rows(cluster, readers), 0, 'the prompts are read')
        remote = len(set(re.findall(r'req=(held-\d+) request\.prefilling attempt=1 ', cluster.log_text())))
        assert remote == len(jobs), f'{remote} of {len(jobs)} prompts were read by a prefill node'
        victim = max(cluster.nodes('decode'), key=lambda n: n.running)
        before, since = rows(cluster, [id for id in nodes if id != victim.id]), cluster.log_size()
        me = cluster.nodes('coordinator')[0].id
        os.kill(victim.pid, signal.SIGKILL)
        answers = [a.answer.result() for a in askers]
        for i, (tokens, _, _) in enumerate(answers):
            assert tokens == expected[i], f'request {i}: other tokens than alone'
        wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()), 30, 'the killed node is back')
        after = settled(lambda: rows(cluster, nodes), before, 'all is computed')
        failed = [job for job, (_, _, finish) in zip(jobs, answers) if finish.attempts > 1]
        prompts = {job.request_id: len(job.tokens.ids) for job in failed}
        sent = re.findall(r'req=(held-\d+) request\.prefilling attempt=\d+ prefill=\d+ cached=\d+ wanted=(\d+)',
                          cluster.log_text(since))
        answered = sum(int(wanted) + 1 - prompts[id] for id, wanted in sent)
        again = max(0, after - before - answered)
        total = sum(prompts.values())
        told = [cluster.counter(me, 'baton_tokens_computed_again_total', of) for of in ('prompt', 'answer')]
        print(f'{len(failed)} of {len(jobs)} requests ({asked} prompt tokens) placed again with {answered} tokens of their '
              f'answers: {after - before} rows computed, {again} of {total} prompt tokens again; by what the coordinator counts '
              f'{told[0]}, and {told[1]} of answers')
        cluster.pages_back(5)
        if len(failed) < 3 or len(sent) < len(failed):
            return None
        assert abs(told[0] - again) <= 2 * len(failed) and answered - 2 * len(failed) <= told[1] <= answered, told
        return again, total


def main():
    args = arguments(requests=12, prompt=600, tokens=1200, pages=4096, policy='remote')
    jobs = [request(tokens=prompt(i, args.prompt), max_tokens=args.tokens, request_id=f'held-{i}') for i in range(args.requests)]
    with Cluster(args, '--prefill', 0, '--decode', 1, '--no-prefix-cache', '--kv-pages', args.pages) as alone, \
            concurrent.futures.ThreadPoolExecutor(4) as pool:
        expected = [a[0] for a in pool.map(alone.generate, jobs)]
    assert any(read_ahead(args, [e[:40] for e in expected]) for _ in range(3)), 'the decode node never stayed full'
    for _ in range(4):          # a kill that comes too late proves nothing
        counted = killed_decode(args, expected, jobs)
        if counted:
            break
    assert counted, 'no kill hit enough requests'
    assert counted[0] < SHARE * counted[1], f'{counted[0]} of {counted[1]} prompt tokens were computed again'
    print('ok')


if __name__ == '__main__':
    main()
