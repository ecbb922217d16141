"""What the prefix cache saves, counted: in a conversation of 10 turns and behind a system prompt of 1,000 tokens exactly the new
tokens are computed and exactly their bytes moved. Nothing is timed.

Rows that a node computed (baton_node_tokens_total) and bytes that it packed (baton_kv_bytes_sent_total) are compared with what
follows from the rules: a decode node keeps whole pages of prompt and answer, a prefill node of the prompts it read; the last
token of an answer is nobody's row; a part of a page is found behind a shared beginning.

    python tests/cluster/prefix.py [--baton build/baton] [--model FILE] [--turns 10] [--system 1000]
"""
from harness import *

PAGE = 16
FLAGS = ['--decode', 1, '--speculate', 'off', '--page-tokens', PAGE]
NODES = ('decode-1', 'prefill-1')


def whole(tokens):
    return tokens // PAGE * PAGE


def some(count, start):
    """Two texts that start apart share nothing."""
    return [3 + start % 250] + [3 + (start * 31 + i * i + i) % 250 for i in range(count - 1)]


class Counted:
    """Rows computed and bytes packed since the last look."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.nodes = [n for n in NODES if n in {m.id for m in cluster.nodes()}]
        self.seen = self.now()

    def now(self):
        return {id: (self.cluster.counter(id, 'baton_node_tokens_total'), self.cluster.counter(id, 'baton_kv_bytes_sent_total'))
                for id in self.nodes}

    def expect(self, more, what):
        """more: {node: (rows, bytes)}. A node tells its counters a moment later."""
        want = {id: tuple(a + b for a, b in zip(self.seen[id], more[id])) for id in self.nodes}
        try:
            wait_until(lambda: self.now() == want, 5, what)
        except AssertionError:
            raise AssertionError(f'{what}: (rows, bytes) {self.now()}, expected {want}')
        self.seen = want


def ask(cluster, prompt, max_tokens):
    tokens, _, finish = cluster.generate(request(tokens=prompt, max_tokens=max_tokens))
    cluster.pages_back(5)
    return tokens, finish.usage.cached_tokens


def conversation(args, cluster, counted, remote, token_bytes):
    """What each had after the turn before: the decode node the whole of it, a prefill node the prompt."""
    prompt, on_decode, on_prefill, new = some(90, 1), 0, 0, 0
    for turn in range(args.turns):
        answer, cached = ask(cluster, prompt, 20 + turn)
        count, moved = len(prompt), len(prompt) - 1 - on_decode
        rows = {'decode-1': (1 if remote else count - on_decode) + len(answer) - 1, 'prefill-1': count - on_prefill}
        counted.expect({'decode-1': (rows['decode-1'], 0), 'prefill-1': (rows['prefill-1'], moved * token_bytes)}, f'turn {turn + 1}')
        assert remote or cached == on_decode, (turn, cached, on_decode)
        new += moved
        on_decode, on_prefill = whole(count + len(answer) - 1), whole(count)
        prompt = prompt + answer + some(12 + 3 * turn, 50 + turn)
    return new


def shared_beginning(args, cluster, counted, remote, token_bytes):
    system, new = some(args.system, 2), 0
    for user in range(4):
        prompt = system + some(40 + 9 * user, 100 + user)
        had = args.system if user else 0
        answer, cached = ask(cluster, prompt, 8)
        moved = len(prompt) - 1 - had
        counted.expect({'decode-1': ((1 if remote else len(prompt) - had) + len(answer) - 1, 0),
                        'prefill-1': (len(prompt) - had, moved * token_bytes)}, f'user {user + 1}')
        assert remote or cached == had, (user, cached, had)
        new += moved
    return new


def bytes_of_a_token(cluster):
    """By a prompt of which nobody has anything."""
    prompt = some(65, 200)
    before = cluster.counter('prefill-1', 'baton_kv_bytes_sent_total')
    ask(cluster, prompt, 1)
    moved = lambda: cluster.counter('prefill-1', 'baton_kv_bytes_sent_total') - before
    wait_until(moved, 5, 'a prompt has moved')
    assert moved() % 64 == 0, moved()
    return moved() // 64


def main():
    args = arguments(turns=10, system=1000)
    for layout, flags in (('local', ['--prefill', 0]), ('remote', ['--prefill', 1, '--prefill-policy', 'remote'])):
        remote = layout == 'remote'
        with Cluster(args, *FLAGS, *flags) as cluster:
            token_bytes = bytes_of_a_token(cluster) if remote else 0
        with Cluster(args, *FLAGS, *flags) as cluster:
            counted = Counted(cluster)
            talk = conversation(args, cluster, counted, remote, token_bytes)
            system = shared_beginning(args, cluster, counted, remote, token_bytes)
        print(f'{layout}: {args.turns} turns, {talk} tokens {"moved" if remote else "read"} in all; 4 users of {args.system} tokens, {system}')


if __name__ == '__main__':
    main()
