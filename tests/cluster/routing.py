"""Where requests go: to the node that has read the prompt, which the coordinator knows by what nodes tell of their
caches; and not to another tenant's pages. What a tenant may have at most is refused beyond that, at once and with a hint.
Bytes are the same wherever a request goes."""
import threading

from harness import *


def tenant(name):
    return (('baton-tenant', name),) if name else None


def ask(cluster, job, name=None):
    tokens, text, finish = collect(cluster.inference.Generate(job, timeout=120, metadata=tenant(name)))
    assert all(c.node == finish.prefill_node for c in finish.costs if c.role == 'prefill' and c.chosen), finish
    return tokens, text, finish


def chosen(finish, role):
    return next(c for c in finish.costs if c.role == role and c.chosen)


def knows(cluster, job, name, tokens):
    """Asks until a decode node is known to cache so much of the prompt; gives that answer."""
    last = []

    def look():
        last[:] = [ask(cluster, job, name)]
        return chosen(last[0][2], 'decode').cached_tokens >= tokens
    wait_until(look, 20, f'a decode node is known to cache {tokens} tokens', every=0.1)
    return last[0]


def caches(args, policy):
    with Cluster(args, '--prefill', 2, '--decode', 2, '--route', policy) as cluster:
        job = request(tokens=[7 + i % 90 for i in range(400)], max_tokens=8)
        job.explain = True
        answer, _, first = ask(cluster, job)
        assert first.policy == policy, first
        assert first.usage.cached_tokens == 0 and {c.role for c in first.costs} == {'prefill', 'decode'}, first
        assert chosen(first, 'decode').node == first.decode_node, first
        if policy != 'cost':
            for _ in range(6):
                assert ask(cluster, job)[0] == answer
            return
        tokens, _, again = knows(cluster, job, None, 384)
        assert tokens == answer and again.usage.cached_tokens >= 384, again
        for name in 'a', 'b':                                  # neither finds the other's pages, nor those of nobody
            tokens, _, other = ask(cluster, job, name)
            assert tokens == answer and other.usage.cached_tokens == 0, (name, other)
            assert all(c.cached_tokens == 0 for c in other.costs), (name, other)
            tokens, _, own = knows(cluster, job, name, 384)
            assert tokens == answer and own.usage.cached_tokens >= 384, (name, own)
        cluster.pages_back(2)


def caps(args):
    with Cluster(args, '--tenant-requests', 2, '--queue', 64, '--sequences', 8) as cluster:
        # two megabytes that nobody reads: flow control keeps it running, however fast the model
        long = request(tokens=[5] * 20, max_tokens=7000, logprobs=20)
        running = [cluster.inference.Generate(long, timeout=120, metadata=tenant('a')) for _ in range(2)]
        for stream in running:
            next(stream)
        try:
            ask(cluster, long, 'a')
            raise AssertionError('a third request of the tenant was answered')
        except grpc.RpcError as e:
            assert e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and 'tenant' in e.details(), (e.code(), e.details())
            assert int(dict(e.trailing_metadata())['grpc-retry-pushback-ms']) > 0, e.trailing_metadata()
        done = []
        others = [threading.Thread(target=lambda n=name: done.append(ask(cluster, request(tokens=[5] * 9), n))) for name in ('b', None)]
        for t in others:
            t.start()
        for t in others:
            t.join()
        assert len(done) == 2 and done[0][0] == done[1][0], done
        running[0].cancel()
        wait_until(lambda: cluster.nodes('coordinator')[0].running == 1, 10, 'the canceled one is gone')
        third = cluster.inference.Generate(long, timeout=120, metadata=tenant('a'))
        next(third)
        for stream in running[1], third:
            stream.cancel()
        cluster.pages_back(2)


def main():
    args = arguments()
    for policy in 'cost', 'round-robin', 'least-loaded', 'prefix-hash':
        caches(args, policy)
    caps(args)
    print('ok')


if __name__ == '__main__':
    main()
