#!/usr/bin/env python3
"""What a tenant keeps of its share while another one floods.

    build/venv/bin/python bench/tenants.py [--flood 192] [--modest 48] [--seconds 20] [--rounds 3] [--flags='--sequences 16']

Two tenants ask in closed loops, `flood` with four times as many requests at once as `modest`; both always have some waiting, so a
fair share is half of all tokens. In turns with it: both with as many requests as `modest`. A request is a prompt of 16 to 256
tokens and an answer of 16 to 64; who is refused comes back when he is told to. Counted are prompt and answer tokens of requests
that were answered within a phase."""
import pathlib, random, shlex, statistics, sys, threading, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'cluster'))
from harness import *

TENANTS = ('flood', 'modest')


class Loops:
    """So many requests at once, until it is ended."""

    def __init__(self, cluster, tenant, count):
        self.cluster, self.tenant, self.stopped = cluster, tenant, False
        self.lock, self.tokens, self.answered, self.refused = threading.Lock(), 0, 0, 0
        self.threads = [threading.Thread(target=self.run, args=(random.Random(f'{tenant} {i}'),)) for i in range(count)]
        for t in self.threads:
            t.start()

    def run(self, dice):
        while not self.stopped:
            r = request(tokens=[dice.randrange(3, 259) for _ in range(dice.randint(16, 256))], max_tokens=dice.randint(16, 64))
            try:
                self.cluster.inference.GenerateOnce(r, timeout=300, metadata=(('baton-tenant', self.tenant),))
                with self.lock:
                    self.answered += 1
                    self.tokens += len(r.tokens.ids) + r.max_tokens
            except grpc.RpcError as e:
                assert e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, e
                with self.lock:
                    self.refused += 1
                time.sleep(int(dict(e.trailing_metadata())['grpc-retry-pushback-ms']) / 1000)

    def end(self):
        self.stopped = True
        for t in self.threads:
            t.join()


def phase(args, cluster, counts):
    """{tenant: (tokens a second, answered, refused)}; the first fifth of it is not counted."""
    loops = {tenant: Loops(cluster, tenant, counts[tenant]) for tenant in TENANTS}
    time.sleep(args.seconds / 5)
    before = {t: (l.tokens, l.answered, l.refused) for t, l in loops.items()}
    began = time.monotonic()
    time.sleep(args.seconds)
    took = time.monotonic() - began
    seen = {t: [a - b for a, b in zip((l.tokens, l.answered, l.refused), before[t])] for t, l in loops.items()}
    for l in loops.values():
        l.end()
    cluster.pages_back(10)
    return {t: (tokens / took, answered, refused) for t, (tokens, answered, refused) in seen.items()}


def main():
    args = arguments(flood=192, modest=48, seconds=20.0, rounds=3, flags='--sequences 16')
    shares = {'even': [], 'flooded': []}
    print('| | flood, tokens/s | refused | modest, tokens/s | refused | modest, of a fair half |\n|---|---:|---:|---:|---:|---:|')
    with Cluster(args, '--prefill', 0, '--no-prefix-cache', '--log-level', 'error', *shlex.split(args.flags)) as cluster:
        for _ in range(args.rounds):
            for name, flood in (('even', args.modest), ('flooded', args.flood)):
                seen = phase(args, cluster, {'flood': flood, 'modest': args.modest})
                (f, _, f_refused), (m, _, m_refused) = seen['flood'], seen['modest']
                shares[name].append(m / ((f + m) / 2))
                print(f'| {name}: {flood} and {args.modest} at once | {f:.0f} | {f_refused} | {m:.0f} | {m_refused} | {shares[name][-1]:.2f} |', flush=True)
    print(f'\nmodest keeps, of a fair half: even {statistics.median(shares["even"]):.2f}, flooded {statistics.median(shares["flooded"]):.2f}')


if __name__ == '__main__':
    main()
