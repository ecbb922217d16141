"""The whole cluster on two GPUs, which a test emulates (tests/cuda/): prefill and decode nodes of one rank and of two.

Greedy and warm answers, drawn on the GPU (no logprobs asked) and on the host (logprobs asked): the same tokens, and again
the same the second time. Two ranks are two processes that meet over NCCL; killing one ends the node, which comes back.

    BATON_DEVICE=cuda python tests/cluster/gpus.py --baton BATON --model FILE
"""
import os, signal

from harness import *

PROMPTS = [long_text(40), 'hello you']


def answers(cluster, logprobs):
    def answer(prompt, i, temperature):
        asked = request(prompt, max_tokens=8, logprobs=logprobs, temperature=temperature, top_p=0.9, seed=i)
        tokens, _, finish = cluster.generate(asked)
        assert len(tokens) == 8 and (finish.prefill_node == 'prefill-1' or finish.attempts > 1), finish
        return [t if logprobs is None else t[0] for t in tokens]
    return [answer(p, i, t) for i, p in enumerate(PROMPTS) for t in (0, 1.3)]


def lose_rank(cluster, id):
    old = cluster.pids(id)
    os.kill(old[1], signal.SIGKILL)
    wait_until(lambda: not any(map(alive, old)), 5, 'no rank is left')
    wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()) and cluster.node(id).pid != old[0], 60, f'{id} is back')


def main():
    args = arguments()
    alone = None
    for ranks in 1, 2:
        with Cluster(args, '--prefill-policy', 'remote', '--tp', ranks, '--chunk', 16, '--no-prefix-cache', '--kv-pages', 64) as cluster:
            nodes = [n for n in cluster.nodes() if n.role != 'coordinator']
            assert all(n.numerics.startswith('cuda-') and f'/tp-{ranks}/' in n.numerics for n in nodes), nodes
            assert all(len(set(cluster.pids(n.id))) == ranks for n in nodes)
            first = answers(cluster, None)
            assert len(set(map(tuple, first))) == 2 * len(PROMPTS), first
            alone = alone or first
            assert first[::2] == alone[::2], (first, alone)      # greedy; none of these is a near-tie
            assert answers(cluster, 2) == first, 'the host draws other tokens'
            if ranks == 2:
                lose_rank(cluster, 'decode-1')
            assert answers(cluster, None) == first, 'another time, another answer'
            cluster.pages_back(5)


if __name__ == '__main__':
    main()
