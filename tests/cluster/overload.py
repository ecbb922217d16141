"""Full is an answer: with a small queue and few pages, what does not fit is refused with RESOURCE_EXHAUSTED and
a hint when to come back; what was accepted is finished with the same bytes as alone."""
import concurrent.futures

from harness import *


def main():
    args = arguments()
    flags = ['--queue', 8, '--sequences', 4, '--kv-pages', 80, '--prefill-policy', 'remote']
    with Cluster(args, *flags) as cluster:
        jobs = [request(long_text(120 + 11 * i, 200 * i), max_tokens=40) for i in range(40)]
        alone = [cluster.generate(j)[0] for j in jobs[:12]]

        def attempt(job):
            try:
                return cluster.generate(job)[0]
            except grpc.RpcError as e:
                assert e.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, (e.code(), e.details())
                hint = dict(e.trailing_metadata() or ())
                assert int(hint['grpc-retry-pushback-ms']) > 0, hint
                return None

        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            answers = list(pool.map(attempt, jobs))
        refused = answers.count(None)
        print(f'{len(jobs) - refused} answered, {refused} refused')
        assert 0 < refused < len(jobs) - 4
        for got, want in zip(answers, alone):
            assert got is None or got == want
        cluster.pages_back(2)
        big = request(tokens=[504] * 2000, max_tokens=10)  # more than the whole pool: never accepted and lost
        try:
            cluster.generate(big)
            raise AssertionError('a request larger than the pool was answered')
        except grpc.RpcError as e:
            assert e.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED), e
        assert attempt(jobs[0]) == alone[0]


if __name__ == '__main__':
    main()
