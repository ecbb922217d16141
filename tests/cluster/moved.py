"""Running answers leave a decode node that is to have no work: drained, given another role, told to end. The node is free while
they still run elsewhere; the clients see the bytes of a lone node, in one attempt, and of what was computed nothing is computed
again but the last page of each (counted by the nodes' own counters).

    python tests/cluster/moved.py [--baton build/baton] [--model FILE] [--requests 12] [--prompt 300] [--tokens 2500]
"""
import concurrent.futures, os, random, signal

from harness import *
from held import Asker, rows, settled

PAGE = 16
AGAIN = 'baton_tokens_computed_again_total'


def jobs(args):
    """Greedy and sampled, with and without logprobs."""
    return [request(tokens=[random.Random(i).randrange(3, 250) for _ in range(args.prompt + 5 * i)], max_tokens=args.tokens, request_id=f'moved-{i}',
                    logprobs=0 if i % 3 == 0 else None, temperature=i % 2, seed=i) for i in range(args.requests)]


def drain(cluster, node):
    cluster.control.Drain(pb.NodeRequest(id=node.id), timeout=10)
    wait_until(lambda: cluster.node(node.id).state == 'drained', 20, f'{node.id} is drained')
    return lambda: cluster.control.Undrain(pb.NodeRequest(id=node.id), timeout=10)


def take_role(cluster, node):
    cluster.control.SetRole(pb.SetRoleRequest(id=node.id, role='prefill'), timeout=10)
    wait_until(lambda: cluster.node(node.id).role == 'prefill' and cluster.node(node.id).running == 0, 20, f'{node.id} runs nothing')
    return lambda: cluster.control.SetRole(pb.SetRoleRequest(id=node.id, role='decode'), timeout=10)


def terminate(cluster, node):
    os.kill(node.pid, signal.SIGTERM)
    wait_until(lambda: not alive(node.pid), 20, f'{node.id} has ended')
    return lambda: wait_until(lambda: cluster.node(node.id).pid != node.pid, 30, f'{node.id} is back')


def moved(cluster, jobs, expected, order):
    """How many were moved while they ran; None: the order came too late for most."""
    ids = [n.id for n in cluster.nodes('prefill') + cluster.nodes('decode')]
    me = cluster.nodes('coordinator')[0].id
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        askers = [Asker(cluster, pool, job) for job in jobs]
        wait_until(lambda: all(a.got >= 8 for a in askers), 120, 'every answer has begun')
        wait_until(lambda: any(n.running >= 3 for n in cluster.nodes('decode')), 10, 'they run')
        node = max(cluster.nodes('decode'), key=lambda n: n.running)
        ids = [id for id in ids if id != node.id or order is not terminate]      # then its counters end with it
        settled(lambda: rows(cluster, ids), 0, 'the prompts are read')
        before, computed, told = cluster.counter(me, 'baton_migrations_total'), rows(cluster, ids), cluster.counter(me, AGAIN)
        placed = cluster.counter(me, 'baton_placed_again_total', 'cause="moved"')
        began = time.monotonic()
        mend = order(cluster, node)
        free_s, left = time.monotonic() - began, sum(not a.answer.done() for a in askers)
        answers = [a.answer.result() for a in askers]
    count = cluster.counter(me, 'baton_migrations_total') - before
    again = settled(lambda: rows(cluster, ids), 0, 'all is computed') - computed
    told = cluster.counter(me, AGAIN) - told
    assert cluster.counter(me, 'baton_placed_again_total', 'cause="moved"') - placed == count, count
    for i, (tokens, _, finish) in enumerate(answers):
        assert tokens == expected[i], f'request {i}: other tokens than alone'
        assert finish.attempts == 1 and (finish.usage.cached_tokens or finish.prefill_node == 'prefill-1'), finish
    print(f'{order.__name__}: {node.id} had {node.running} answers and was free after {free_s:.2f} s, {left} of {len(jobs)} still '
          f'under way; {count} moved, {again} rows computed again, {told} by what the coordinator counts', flush=True)
    mend()
    wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()), 30, 'every node is ready')
    cluster.pages_back(5)
    if count < 3 or left < 3:
        return None
    assert again <= count * (PAGE + 1), f'{again} rows were computed again for {count} answers'
    if order is not terminate:                   # the last row of an answer was not computed before
        assert told <= again <= told + count, f'{again} rows were computed again; the coordinator counts {told}'
    return count


def main():
    args = arguments(requests=12, prompt=300, tokens=2500)
    work = jobs(args)
    with Cluster(args, '--prefill', 0, '--decode', 1, '--no-prefix-cache', '--kv-pages', 4096) as alone, \
            concurrent.futures.ThreadPoolExecutor(4) as pool:
        expected = [a[0] for a in pool.map(alone.generate, work)]
    with Cluster(args, '--prefill', 1, '--decode', 2, '--prefill-policy', 'remote', '--kv-pages', 4096, '--speculate', 'off') as cluster:
        for order in (drain, take_role, terminate):
            assert any(moved(cluster, work, expected, order) for _ in range(4)), f'{order.__name__}: nothing was left to move'
    print('ok')


if __name__ == '__main__':
    main()
