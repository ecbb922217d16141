"""Prefill nodes may keep KV in another type than decode nodes: the page is converted on the way, a prompt's positions are
always computed by prefill nodes. So however the prompt is cut, batched or cached, the bytes are the same.

    python tests/cluster/kv_types.py [--baton build/baton] [--model FILE] [--pairs f32/q8_0,...]
"""
import contextlib, sys, time

from harness import *
from same_bytes import Checker, among_others, each, partly_cached

CLUSTERS = {
    'reference': (['--no-prefix-cache'], 1),
    'chunk 16': (['--chunk', 16], 1),
    'whole prompt': (['--chunk', 2048, '--step-tokens', 2048], 1),
    '2 prefill, 2 decode': (['--chunk', 64], 2),
}


@contextlib.contextmanager
def cluster(args, prefill_type, decode_type, flags, count):
    """count nodes of each role, started by hand: `up` gives all of its nodes one type."""
    with contextlib.ExitStack() as stack:
        start = lambda role, i, kv_type: stack.enter_context(
            node(args, role, f'{role}-{i}', '--kv-dtype', kv_type, '--threads', 1, *flags))
        nodes = [start(role, i, kv_type) for i in range(1, count + 1)
                 for role, kv_type in (('prefill', prefill_type), ('decode', decode_type))]
        server = stack.enter_context(process(
            args, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--prefill-policy', 'remote',
            '--expect-prefill', count, '--expect-decode', count, '--nodes', ','.join(nodes)))
        with Client(server) as client:
            yield client


def main():
    args = arguments(pairs='f32/q8_0,q8_0/f16,f16/f32')
    began, wrong = time.monotonic(), []
    for pair in args.pairs.split(','):
        checker = Checker()
        for where, (flags, count) in CLUSTERS.items():
            where = f'{pair}: {where}'
            with cluster(args, *pair.split('/'), flags, count) as client:
                each(client, checker, where)
                partly_cached(client, checker, where + ', partly cached')
                among_others(client, checker, where + ', among others', False)
                client.pages_back(5)
        wrong += checker.wrong
        print(f'{pair}: {checker.comparisons} comparisons, {len(checker.wrong)} differ, {time.monotonic() - began:.0f} s', flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
