"""Promise 1 under each schedule with far too few pages: requests of several priorities preempt one another, their KV is
swapped to host memory or computed again, and every token and logprob is that of a request alone.

    python tests/cluster/schedules.py [--baton build/baton] [--model FILE] [--requests 14] [--tokens 330] [--pages 28]
"""
import concurrent.futures

from harness import *

SCHEDULES = ['fcfs', 'decode-first', 'mlfq']
LOCAL, REMOTE = ['--prefill', 0], ['--prefill', 1, '--prefill-policy', 'remote']
# What besides the schedule: the answers of each are compared with those of the same without company.
LAYOUTS = {
    'local': LOCAL,
    'remote': REMOTE,
    'local, q8_0': LOCAL + ['--kv-dtype', 'q8_0'],
    'local, 2 ranks': LOCAL + ['--decode-tp', 2],
}
HOW = {
    'recompute': ['--preemption', 'recompute', '--swap-bytes', 1 << 30],
    'swap': ['--preemption', 'swap', '--swap-bytes', 1 << 30],
    'auto': ['--preemption', 'auto', '--swap-bytes', 1 << 20],
}


def requests(args):
    for i in range(args.requests):
        sampling = dict(temperature=0.8, seed=i) if i % 2 else {}
        r = request(long_text(20 + 50 * i % 70, 200 * i), max_tokens=args.tokens - 5 * i, logprobs=0, **sampling)
        r.priority = (i % 3 - 1) * 2
        if i % 4 == 1:
            r.prompt_logprobs = 1
        yield r


def alone(args, layout):
    with Cluster(args, '--decode', 1, '--threads', 1, '--no-prefix-cache', *layout) as cluster:
        return [cluster.told(r)[:2] for r in requests(args)]


def crowded(args, flags):
    """The answers, how many preemptions there were by swap and by recompute, bytes swapped out and in."""
    with Cluster(args, '--decode', 1, '--threads', 1, '--kv-pages', args.pages, *flags) as cluster:
        with concurrent.futures.ThreadPoolExecutor(args.requests) as pool:
            answers = list(pool.map(lambda r: cluster.told(r)[:2], requests(args)))
        cluster.pages_back(5)
        wait_until(lambda: cluster.node('decode-1').running == 0, 5, 'the node is idle')
        count = lambda how: cluster.counter('decode-1', 'baton_node_preemptions_total', f'by="{how}"')
        moved = [cluster.counter('decode-1', 'baton_node_swap_bytes_total', f'direction="{d}"') for d in ('out', 'in')]
        return answers, count('swap'), count('recompute'), moved


def main():
    args = arguments(requests=14, tokens=330, pages=28)
    want, wrong, comparisons = {}, 0, 0
    cases = [('local', s, h) for s in SCHEDULES for h in ('recompute', 'swap')] + [('local', 'mlfq', 'auto')]
    cases += [(layout, 'decode-first', 'swap') for layout in LAYOUTS if layout != 'local']
    for layout, schedule, how in cases:
        if layout not in want:
            want[layout] = alone(args, LAYOUTS[layout])
        got, swapped, recomputed, moved = crowded(args, [*LAYOUTS[layout], '--schedule', schedule, *HOW[how]])
        differ = [i for i, (a, b) in enumerate(zip(got, want[layout])) if a != b]
        comparisons += len(got)
        wrong += len(differ)
        print(f'{layout}, {schedule}, {how}: {swapped} swapped, {recomputed} computed again, {moved[0]} bytes out, {moved[1]} in, '
              f'{len(differ)} differ {differ or ""}', flush=True)
        assert swapped + recomputed > 2, 'too few were preempted to prove anything'
        assert (swapped == 0 and moved == [0, 0]) if how == 'recompute' else (swapped > 0 and moved[0] >= moved[1] > 0)
        assert how != 'swap' or recomputed < swapped          # some are preempted before they have any KV
    print(f'{comparisons} comparisons, {wrong} differ')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
