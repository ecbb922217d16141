"""Ranks change how sums are rounded, not what is said: each layout of ranks against nodes of one rank.

Greedy answers to the golden prompts are compared token by token with the reference's (prefill and decode nodes of one
rank each). While both have said the same, every one of the top logprobs differs by less than BOUND; where they part,
the reference's two best tokens were closer than twice that, so that either may win.

    python tests/cluster/layouts.py [--layouts 2/2,1/2,2/1,3/3,2/3] [--tokens 32] [--prompts 6]
"""
import json

from harness import *

# Of logprobs. Activations are rounded to 8 bits, so a sum that is rounded otherwise may tip some of them over. Seen on
# the test model: 0.072 at most, half of all positions below 0.015 (--prompts 14 --tokens 64, all layouts).
BOUND = 0.15
TOP = 20


def golden_prompts(count):
    cases = json.loads((ROOT / 'tests' / 'golden' / 'smollm2-q4_1.json').read_text())['cases']
    return {c['name']: c['tokens'] for c in cases[::max(1, len(cases) // count)][:count]}


def answers(args, layout, prompts):
    """By prompt: a list of (token, {token: logprob}), one a position."""
    prefill_tp, decode_tp = layout.split('/')
    with Cluster(args, '--prefill-policy', 'remote', '--prefill-tp', prefill_tp, '--decode-tp', decode_tp,
                 '--threads', 1) as cluster:
        ranks = {n.role: max(len(n.ranks), 1) for n in cluster.nodes()}
        assert (ranks['prefill'], ranks['decode']) == (int(prefill_tp), int(decode_tp)), ranks
        def answer(tokens):
            asked = request(tokens=tokens, max_tokens=args.tokens)
            asked.logprobs = TOP
            said = cluster.inference.GenerateOnce(asked, timeout=120).choices[0]
            assert said.finish.prefill_node == 'prefill-1' or len(tokens) == 1, said.finish
            return [(t.token, {x.token: x.logprob for x in t.top}) for t in said.tokens]
        return {name: answer(tokens) for name, tokens in prompts.items()}


def difference(mine, other):
    """The largest between two lists of top logprobs. A token that one does not list is at most that list's last."""
    def beyond(a, b):
        last = min(b.values())
        return max(abs(x - b[t]) if t in b else x - last for t, x in a.items())
    return max(beyond(mine, other), beyond(other, mine))


def gap(top):
    best = sorted(top.values())
    return best[-1] - best[-2]


class Comparison:
    def __init__(self):
        self.positions = self.parted = 0
        self.largest, self.wrong = 0.0, []

    def compare(self, where, want, got):
        for at, ((token, top), (their_token, their_top)) in enumerate(zip(want, got)):
            d = difference(top, their_top)
            self.positions += 1
            self.largest = max(self.largest, d)
            if d >= BOUND:
                self.wrong.append(f'{where}, answer token {at}: a logprob differs by {d:.4f}')
            if token != their_token:
                self.parted += 1
                if gap(top) >= 2 * BOUND:
                    self.wrong.append(f'{where}, answer token {at}: {their_token} instead of {token}, which led by {gap(top):.4f}')
                return


def main():
    args = arguments(layouts='2/2,1/2,2/1,3/3,2/3', tokens=32, prompts=6)
    prompts = golden_prompts(args.prompts)
    want, wrong = answers(args, '1/1', prompts), []
    for layout in args.layouts.split(','):
        c = Comparison()
        got = answers(args, layout, prompts)
        for name in prompts:
            c.compare(f'{layout}: {name}', want[name], got[name])
        print(f'{layout}: {c.positions} positions, largest difference {c.largest:.4f}, {c.parted} of {len(prompts)} answers part', flush=True)
        wrong += c.wrong
    assert not wrong, '\n'.join(wrong)


if __name__ == '__main__':
    main()
