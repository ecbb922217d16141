"""Can a tenant tell from the time of an answer what another tenant has asked? A trial is a fresh pair of prompts: tenant A asks one
of them, then somebody asks both, in random order, and compares. Once that is B, once, with another pair, A itself.

Counted, in every trial: B's prompts have no cached token (one, where an earlier one of its own began with the same); of A's own
the second time all whole pages are found. Counted once, by what nodes compute: B's prompt is read row by row. Timed, with --auc: how well the time to the first token, as the client measures it and as Timings says
it, tells the prompt that A had asked from the one that nobody had. That is the AUC, the chance that of two such prompts drawn
at random the asked one was quicker:

    AUC = (pairs (asked, new) with asked < new  +  half of those with asked = new) / all pairs

over all trials (the Mann-Whitney U statistic over its largest value; by ranks, ties sharing theirs). 0.5: nothing is learnt.
With n trials an AUC that is 0.5 in truth has a deviation of sqrt((2n + 1) / 12n^2): 0.013 for n = 1000, so that 0.45 to 0.55
is 3.9 of them.

    python tests/cluster/tenant_timing.py [--baton build/baton] [--model FILE] [--trials 1000] [--prompt 1200] [--auc 1]
"""
import itertools, random

from harness import *

PAGE, ACROSS, WITHIN = 16, (0.45, 0.55), 0.9
LAYOUTS = {'local': ['--prefill', 0, '--decode', 1], 'remote': ['--prefill', 1, '--decode', 1, '--prefill-policy', 'remote']}
FIGURES = ('measured', 'told')


def auc(asked, new):
    """The chance that one of the first is less than one of the second."""
    ranks, values = {}, sorted(asked + new)
    for rank, value in enumerate(values, 1):
        ranks.setdefault(value, []).append(rank)
    sum_of_ranks = sum(sum(ranks[v]) / len(ranks[v]) for v in asked)
    greater = sum_of_ranks - len(asked) * (len(asked) + 1) / 2
    return 1 - greater / (len(asked) * len(new))


def check_auc():
    assert auc([1, 2], [3, 4]) == 1 and auc([3, 4], [1, 2]) == 0
    assert auc([1, 4], [2, 3]) == 0.5 and auc([1, 1], [1, 1]) == 0.5
    assert auc([1, 2], [2, 3]) == (3 + 0.5) / 4


def ask(cluster, tenant, prompt):
    """(ms to the first token here, and by Timings, cached tokens)"""
    began, first = time.monotonic(), None
    for chunk in cluster.inference.Generate(request(tokens=prompt, max_tokens=2), timeout=60, metadata=(('baton-tenant', tenant),)):
        first = first or time.monotonic()
        if chunk.HasField('finish'):
            finish = chunk.finish
    return (first - began) * 1000, finish.timings.ttft, finish.usage.cached_tokens


def rows(cluster):
    """Of all nodes; what prompts, answers and their transfers computed."""
    return sum(cluster.counter(n.id, 'baton_node_tokens_total') for n in cluster.nodes() if n.role != 'coordinator')


def trials(args, cluster, dice):
    """{who: {figure: (of prompts that A had asked, of new ones)}}"""
    number = itertools.count()

    def fresh():
        """The first two tokens are no other's; the first alone is after 250 prompts."""
        k = next(number)
        return [3 + k % 250, 3 + k // 250] + [dice.randint(3, 258) for _ in range(args.prompt - 2)]
    times = {who: {figure: ([], []) for figure in FIGURES} for who in 'BA'}
    for done in range(1, args.trials + 1):
        for who in dice.sample('AB', 2):
            asked, new = fresh(), fresh()
            ask(cluster, 'A', asked)
            for prompt in dice.sample((asked, new), 2):
                known = prompt is asked
                *ms, cached = ask(cluster, who, prompt)
                wanted = (args.prompt - 1) // PAGE * PAGE if who == 'A' and known else 0
                assert cached >= wanted if wanted else cached <= (4 * done >= 250), f'{who}, {"asked" if known else "new"}: {cached} tokens cached'
                for figure, value in zip(FIGURES, ms):
                    times[who][figure][0 if known else 1].append(value)
    return times


def computed(args, cluster, dice):
    """B's prompt is read anew, row by row; A's own is not."""
    prompt = [dice.randint(3, 258) for _ in range(args.prompt)]
    took = []
    for tenant in 'A', 'B', 'A':
        before = rows(cluster)
        ask(cluster, tenant, prompt)
        cluster.pages_back(5)
        wait_until(lambda: rows(cluster) > before, 5, 'the rows are told')
        wait_until(lambda seen=[]: seen.append(rows(cluster)) or seen[-3:].count(seen[-1]) == 3, 5, 'all rows are told', every=0.3)
        took.append(rows(cluster) - before)
    print(f'rows computed for a prompt of {args.prompt} tokens: A {took[0]}, then B {took[1]}, then A {took[2]}')
    assert took[1] == took[0] >= args.prompt and took[2] <= took[0] - args.prompt + 2 * PAGE, took


def main():
    args = arguments(trials=1000, prompt=1200, auc=0, seed=1)
    dice, wrong = random.Random(args.seed), []
    check_auc()
    for layout, flags in LAYOUTS.items():
        with Cluster(args, '--threads', 1, '--speculate', 'off', '--http', 'off', '--page-tokens', PAGE, *flags) as cluster:
            computed(args, cluster, dice)
            for who, figures in trials(args, cluster, dice).items():
                for figure, (asked, new) in figures.items():
                    found = auc(asked, new)
                    print(f'{layout}, {who} asks, TTFT {figure}: AUC {found:.3f} of {len(asked)} trials; median of what A had asked '
                          f'{sorted(asked)[len(asked) // 2]:.2f} ms, of new prompts {sorted(new)[len(new) // 2]:.2f} ms', flush=True)
                    if not (ACROSS[0] <= found <= ACROSS[1] if who == 'B' else found > WITHIN):
                        wrong.append((layout, who, figure, found))
    assert not (args.auc and wrong), f'expected {ACROSS} across tenants, above {WITHIN} within one: {wrong}'


if __name__ == '__main__':
    main()
