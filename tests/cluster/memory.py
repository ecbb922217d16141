"""100,000 mixed requests, many of them canceled: no process holds more memory at the end than after the warm-up. Answers
and prompts of all lengths, streams and whole answers, several samples, logprobs, tenants, stop strings; canceled queued, while
their prompt is read or moves, while they are answered.

    python tests/cluster/memory.py [--baton build/baton] [--model FILE] [--count 100000] [--grow 1024]

--grow: KiB that RSS may grow between the end of the warm-up (a fifth of the requests) and the end.
"""
import concurrent.futures, random

from harness import *

CLIENTS = 24
FLAGS = ['--prefill', 1, '--decode', 2, '--kv-pages', 300, '--sequences', 8, '--swap-bytes', 1 << 22, '--log-level', 'error']


def mixed(dice):
    prompt = long_text(dice.choice([10, 40, 150, 500]), dice.randrange(0, 9000))
    r = request(prompt, max_tokens=dice.choice([1, 4, 16, 60]), ignore_eos=dice.random() < 0.5,
                logprobs=dice.choice([None, None, 0, 5]), temperature=dice.choice([0, 1]), seed=dice.randrange(1000))
    r.n = dice.choice([1, 1, 1, 2])
    r.priority = dice.randrange(-2, 3)
    if dice.random() < 0.2:
        r.stop.append(dice.choice(['e', 'the', 'zq']))
    return r


def one(cluster, seed):
    """How it ended: 'answered', 'canceled' or 'refused'."""
    dice = random.Random(seed)
    tenant = (('baton-tenant', dice.choice(['a', 'b'])),) if dice.random() < 0.5 else None
    r = mixed(dice)
    try:
        if dice.random() < 0.3:
            cluster.inference.GenerateOnce(r, timeout=60, metadata=tenant)
            return 'answered'
        stream = cluster.inference.Generate(r, timeout=60, metadata=tenant)
        leave_after = dice.choice([None, None, 0, 0, 1, 3])
        if leave_after == 0:
            time.sleep(dice.random() * 0.02)
            stream.cancel()
        for i, _ in enumerate(stream, 1):
            if i == leave_after:
                stream.cancel()
        return 'answered'
    except grpc.RpcError as e:
        kinds = {grpc.StatusCode.CANCELLED: 'canceled', grpc.StatusCode.RESOURCE_EXHAUSTED: 'refused'}
        assert e.code() in kinds, e
        return kinds[e.code()]


def resident_kib(cluster):
    """By process, once nothing is under way."""
    cluster.pages_back(10)
    wait_until(lambda: cluster.nodes('coordinator')[0].running + cluster.nodes('coordinator')[0].waiting == 0, 10, 'nothing under way')
    status = {n.id: pathlib.Path(f'/proc/{n.pid}/status').read_text() for n in cluster.nodes()}
    return {id: int(re.search(r'VmRSS:\s+(\d+)', text).group(1)) for id, text in status.items()}


def main():
    args = arguments(count=100000, grow=1024)
    ends, piece, began = {}, args.count // 10, time.monotonic()
    with Cluster(args, *FLAGS) as cluster, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        pids = {n.id: n.pid for n in cluster.nodes()}
        for i in range(10):
            for end in pool.map(lambda seed: one(cluster, seed), range(i * piece, (i + 1) * piece)):
                ends[end] = ends.get(end, 0) + 1
            held = resident_kib(cluster)
            print(f'{(i + 1) * piece} requests, {time.monotonic() - began:.0f} s: {ends}, RSS in KiB {held}', flush=True)
            if i == 1:
                warm = held
        assert {n.id: n.pid for n in cluster.nodes()} == pids, 'a process died'
    grown = {id: held[id] - warm[id] for id in held}
    print(f'grown since the warm-up, KiB: {grown}')
    assert ends['answered'] > args.count // 4 and ends['canceled'] > args.count // 10, ends
    assert max(grown.values()) < args.grow, f'grown by more than {args.grow} KiB: {grown}'


if __name__ == '__main__':
    main()
