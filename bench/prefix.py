#!/usr/bin/env python3
"""What the prefix cache is worth to a user: the time to the first token with it and without, in turns.

    build/venv/bin/python bench/prefix.py [--turns 10] [--system 1000] [--users 8] [--rounds 3] [--layouts colocated,1P+1D]

Two clusters of a layout at once, one with --no-prefix-cache. A conversation of so many turns, each with its own 60 tokens and an
answer of 40; and users who all begin with one system prompt and go on with 40 tokens of their own. Times are the client's. The first
turn and the first user find nothing and are not in the figures. What is computed and moved is counted by tests/cluster/prefix.py."""
import pathlib, random, statistics, sys, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'cluster'))
from harness import *

LAYOUTS = {'colocated': ['--prefill', 0, '--decode', 1], '1P+1D': ['--prefill', 1, '--decode', 1],
           '1P+1D, all prompts remote': ['--prefill', 1, '--decode', 1, '--prefill-policy', 'remote']}


def any_tokens(count):
    return [random.randrange(1000, 40000) for _ in range(count)]


def ttft(cluster, prompt, max_tokens):
    """(seconds to the first token, the answer)."""
    began, first, tokens = time.monotonic(), None, []
    for chunk in cluster.inference.Generate(request(tokens=prompt, max_tokens=max_tokens), timeout=300):
        if chunk.tokens and first is None:
            first = time.monotonic() - began
        tokens += [t.token for t in chunk.tokens]
    return first, tokens


def both(clusters, prompt, max_tokens, times):
    """The same of each, in turn; their answers are the same."""
    answers = []
    for cluster, kept in zip(clusters, times):
        first, tokens = ttft(cluster, prompt, max_tokens)
        kept.append(first)
        answers.append(tokens)
    assert answers[0] == answers[1], 'the cache changed an answer'
    return answers[0]


def conversation(clusters, args):
    prompt, times = any_tokens(args.system // 4), ([], [])
    for turn in range(args.turns):
        kept = times if turn else ([], [])
        prompt = prompt + both(clusters, prompt, 40, kept) + any_tokens(60)
    return times


def system_prompt(clusters, args):
    system, times = any_tokens(args.system), ([], [])
    for user in range(args.users + 1):
        both(clusters, system + any_tokens(40), 4, times if user else ([], []))
    return times


def main():
    args = arguments(turns=10, system=1000, users=8, rounds=3, threads=0, layouts=','.join(LAYOUTS))
    random.seed(3)
    print('| layout | | TTFT with the cache, ms, median | without | ratio, median of pairs |\n|---|---|---:|---:|---:|')
    for layout in args.layouts.split(','):
        flags = [*LAYOUTS[layout], '--threads', args.threads, '--kv-pages', 2048]
        with Cluster(args, *flags) as cached, Cluster(args, *flags, '--no-prefix-cache') as plain:
            both((cached, plain), any_tokens(500), 8, ([], []))
            for name, story in ((f'conversation, turns 2 to {args.turns}', conversation), (f'system prompt of {args.system}', system_prompt)):
                times = ([], [])
                for _ in range(args.rounds):
                    for all_, more in zip(times, story((cached, plain), args)):
                        all_ += more
                ratio = statistics.median(b / a for a, b in zip(*times))
                print(f'| {layout} | {name} | {statistics.median(times[0]) * 1e3:.1f} | {statistics.median(times[1]) * 1e3:.1f} | {ratio:.1f} |',
                      flush=True)


if __name__ == '__main__':
    main()
