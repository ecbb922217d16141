"""2,000 requests are canceled at random points: queued, prefilling, moving, decoding. Afterwards every page
is free or cached within a second, and no process has a thread or a file descriptor more than before."""
import concurrent.futures, random, time

from harness import *


def cancel_one(cluster, seed):
    """Returns how far the request came: 'nothing', 'tokens' or 'finished'."""
    dice = random.Random(seed)
    prompt = long_text(dice.choice([30, 120, 500, 1500]), dice.randrange(0, 9000))
    stream = cluster.inference.Generate(request(prompt, max_tokens=dice.choice([2, 20, 200])), timeout=120)
    wait_tokens, delay = dice.choice([(0, dice.random() * 0.3), (0, dice.random() * 0.02), (1, 0), (3, 0), (10, 0)])
    seen = 0
    try:
        if wait_tokens == 0:
            time.sleep(delay)
            stream.cancel()
        for chunk in stream:
            seen += len(chunk.tokens)
            if chunk.HasField('finish'):
                return 'finished'
            if seen >= wait_tokens:
                stream.cancel()
    except grpc.RpcError as e:
        assert e.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED), e
    return 'tokens' if seen else 'nothing'


def main():
    args = arguments(count=2000)
    flags = ['--prefill', 1, '--decode', 2, '--prefill-policy', 'remote', '--chunk', 64, '--kv-pages', 600, '--sequences', 8]  # 16 seats for 24 clients: some wait
    with Cluster(args, *flags) as cluster:
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            list(pool.map(lambda i: cancel_one(cluster, i), range(100)))
            cluster.pages_back(2)
            before = {n.id: threads_and_files(n.pid) for n in cluster.nodes()}
            pids = {n.id: n.pid for n in cluster.nodes()}
            ends = list(pool.map(lambda i: cancel_one(cluster, i), range(100, 100 + args.count)))
        cluster.pages_back(1)
        for n in cluster.nodes():
            assert n.pid == pids[n.id], f'{n.id} died'
            now = threads_and_files(n.pid)
            # A link that is idle may close: fewer is fine.
            assert now[0] <= before[n.id][0] and now[1] <= before[n.id][1], f'{n.id}: (threads, files) {before[n.id]} -> {now}'
        print({kind: ends.count(kind) for kind in sorted(set(ends))})
        assert ends.count('nothing') > args.count // 10 and ends.count('tokens') > args.count // 10, 'cancels hit one stage only'
        tokens, _, _ = cluster.generate(request('The capital of France is', max_tokens=8))
        assert len(tokens) == 8


if __name__ == '__main__':
    main()
