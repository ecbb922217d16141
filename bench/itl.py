#!/usr/bin/env python3
"""How much slower tokens come while long prompts arrive: the inter-token latency of running answers without prompts and
with them, in one run, phase by phase in turn.

    build/venv/bin/python bench/itl.py [--streams 4] [--prompt 2000] [--seconds 10] [--rounds 3] [--every 4] [--flags='--schedule fcfs']

Two clusters one after the other: `colocated` (one decode node that reads prompts itself) and `1P+1D`. A phase without
prompts comes before each with them; a prompt arrives every --every seconds, at the earliest when the one before has been
answered. Gaps between tokens are seen by the client; what the prompts' own answers wait is not in them. See bench/README.md.
Not under `chrt -f`: on two cores a step's threads then keep the client and gRPC's own threads from running at all.
"""
import pathlib, random, shlex, sys, threading, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'cluster'))
from harness import *

LAYOUTS = {'colocated': ['--prefill', 0, '--decode', 1], '1P+1D': ['--prefill', 1, '--decode', 1, '--prefill-policy', 'remote']}


def any_tokens(count):
    """No two prompts share a prefix."""
    return [random.randrange(1000, 40000) for _ in range(count)]


class Streams:
    """Answers that run for the whole time; a gap is kept under the phase in which its token came."""

    def __init__(self, cluster, count):
        self.cluster, self.phase, self.gaps, self.stopped, self.failed = cluster, None, {}, False, None
        self.threads = [threading.Thread(target=self.run) for _ in range(count)]
        for t in self.threads:
            t.start()

    def run(self):
        try:
            self.read()
        except grpc.RpcError as e:
            self.failed = e.details()

    def read(self):
        while not self.stopped:
            call, last = self.cluster.inference.Generate(request(tokens=any_tokens(16), max_tokens=1500)), None
            for chunk in call:
                now = time.monotonic()
                if chunk.tokens and last is not None:
                    self.gaps.setdefault(self.phase, []).append((now - last) / len(chunk.tokens))
                last = now
                if self.stopped:
                    call.cancel()
                    break

    def end(self):
        self.stopped = True
        for t in self.threads:
            t.join()


def prompts_arrive(cluster, args):
    """For a phase; the times to their first tokens."""
    ttft, end = [], time.monotonic() + args.seconds
    while time.monotonic() < end:
        began = time.monotonic()
        call = cluster.inference.Generate(request(tokens=any_tokens(args.prompt), max_tokens=1))
        next(c for c in call if c.tokens)
        ttft.append(time.monotonic() - began)
        list(call)
        time.sleep(max(0, min(began + args.every, end) - time.monotonic()))
    return ttft


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def measure(args, layout):
    with Cluster(args, *LAYOUTS[layout], '--no-prefix-cache', '--kv-pages', 2048, *shlex.split(args.flags)) as cluster:
        cluster.generate(request(tokens=any_tokens(args.prompt), max_tokens=8), timeout=300)
        streams, ttft = Streams(cluster, args.streams), []
        time.sleep(2)
        for _ in range(args.rounds):
            streams.phase = 'without'
            time.sleep(args.seconds)
            streams.phase = 'with'
            ttft += prompts_arrive(cluster, args)
        streams.phase = None
        streams.end()
        assert not streams.failed, f'a stream broke, so the figures are none: {streams.failed}'
        for phase in ('without', 'with'):
            gaps = streams.gaps[phase]
            print(f'{layout}, {phase} prompts: ITL p50 {percentile(gaps, .5) * 1e3:.1f} ms, p99 {percentile(gaps, .99) * 1e3:.1f} ms, '
                  f'{len(gaps)} tokens', flush=True)
        ratio = percentile(streams.gaps['with'], .99) / percentile(streams.gaps['without'], .99)
        print(f'{layout}: p99 with prompts {ratio:.2f} times that without; {len(ttft)} prompts of {args.prompt} tokens, TTFT p50 '
              f'{percentile(ttft, .5):.2f} s, max {max(ttft):.2f} s', flush=True)


def main():
    args = arguments(streams=4, prompt=2000, seconds=10, rounds=3, every=4.0, flags='', layouts=','.join(LAYOUTS))
    random.seed(1)
    for layout in args.layouts.split(','):
        measure(args, layout)


if __name__ == '__main__':
    main()
