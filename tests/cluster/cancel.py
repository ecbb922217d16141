"""2,000 requests are canceled, or their deadlines pass, at random points: queued, prefilling, moving, decoding.
Afterwards every page is free or cached within a second, and no process has a thread or a file descriptor more than
before."""
import concurrent.futures, random, time

from harness import *


def cancel_one(cluster, seed):
    """Returns how far the request came: 'nothing', 'tokens', 'late' (its deadline passed) or 'finished'."""
    dice = random.Random(seed)
    prompt = long_text(dice.choice([30, 120, 500, 1500]), dice.randrange(0, 9000))
    asked = request(prompt, max_tokens=dice.choice([2, 20, 200]), prompt_logprobs=dice.choice([None, None, 1]))
    wait_tokens, delay = dice.choice([(0, dice.random() * 0.3), (0, dice.random() * 0.02), (1, 0), (3, 0), (10, 0)])
    late = wait_tokens == 0 and seed % 2 == 0
    stream = cluster.inference.Generate(asked, timeout=0.001 + delay if late else 120)
    seen = 0
    try:
        if wait_tokens == 0 and not late:
            time.sleep(delay)
            stream.cancel()
        for chunk in stream:
            seen += len(chunk.tokens)
            if chunk.HasField('finish'):
                return 'finished'
            if seen >= wait_tokens and not late:
                stream.cancel()
    except grpc.RpcError as e:
        if late and e.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return 'late'
        if e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:       # its deadline can not be met, or the queue is full
            return 'refused'
        assert e.code() == grpc.StatusCode.CANCELLED, e
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
        # The slower the machine, the more of those with a deadline are refused at once: what waits before them takes longer.
        for kind, least in ('nothing', args.count // 20), ('tokens', args.count // 20), ('late', args.count // 200):
            assert ends.count(kind) > least, f'cancels hit few stages: {ends.count(kind)} {kind}'
        tokens, _, _ = cluster.generate(request('The capital of France is', max_tokens=8))
        assert len(tokens) == 8


if __name__ == '__main__':
    main()
