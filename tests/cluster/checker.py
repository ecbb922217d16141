"""Promise 1 over all that serving does at once: each schedule, preempted by swap and by recompute, prompts read by the decode
node or by a prefill node, found in the prefix cache of either, whole or in part, each proposer, several samples of a prompt,
the prompt's logprobs, 32 mixed requests sent together. Every answer is compared with the same request answered alone by a plain node: one process,
no prefix cache, no speculation, one thread.

A round is 32 requests with 40 answers. A cell is one schedule, way to preempt, reader and proposer: a cluster that has too
few pages for a round. What an answer went through is read from its Finish and from the nodes' log lines, what the
answers of a cell did to one another from its counters; a mode that its cell is there for and that never happened fails.

    python tests/cluster/checker.py [--baton build/baton] [--model FILE] [--cells all|few] [--rounds 7] [--pages 128]

All cells and 7 rounds are 10,080 comparisons.
"""
import collections, concurrent.futures, itertools, random, tempfile

from harness import *

SCHEDULES = ('fcfs', 'decode-first', 'mlfq')
PREEMPTIONS = ('recompute', 'swap')
READERS = {'local': ['--prefill', 0], 'remote': ['--prefill', 1, '--prefill-policy', 'remote']}
PROPOSERS = ('ngram', 'draft', 'lookahead')
FEW = [('fcfs', 'recompute', 'remote', 'ngram'), ('decode-first', 'swap', 'local', 'draft'), ('mlfq', 'swap', 'remote', 'lookahead')]
BATCH, SAMPLES, PAGE, WORDS = 32, 3, 16, range(3, 259)     # WORDS: tokens that every model here has


def mixed_seed(seed, index):
    """The seed of a request's sample `index`, as coordinator/generate.c makes it: so each can be asked for alone."""
    mask = (1 << 64) - 1
    if index == 0:
        return seed
    x = (seed + index * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    return x ^ x >> 31


class Asked:
    """One request of a round, and the answers that are right."""

    def __init__(self, tokens, max_tokens, place, seed):
        self.tokens, self.max_tokens, self.seed = tokens, max_tokens, seed
        self.samples = SAMPLES if place % 8 == 5 else 1
        self.once = place % 2 == 0                       # GenerateOnce or a stream
        self.priority = (place % 3 - 1) * 2
        self.logprobs = None if place % 5 == 4 else 0    # with: a sum that is rounded otherwise shows
        self.prompt_logprobs = 2 if place % 8 in (2, 5) else None
        self.sampling = {}
        if place // 4 % 2:
            self.sampling = dict(temperature=0.9, top_k=60, top_p=0.95)
            if place % 3 == 0:
                self.sampling |= dict(repetition_penalty=1.2, frequency_penalty=0.3)
        self.want = []

    def message(self, seed, samples=1, request_id='', prompt_logprobs=None):
        r = request(tokens=self.tokens, max_tokens=self.max_tokens, logprobs=self.logprobs, request_id=request_id, seed=seed,
                    prompt_logprobs=prompt_logprobs, **self.sampling)
        r.n, r.priority = samples, self.priority
        return r

    def learn(self, plain):
        """The prompt is told with the first sample."""
        for i in range(self.samples):
            prompt, tokens, _ = plain.told(self.message(mixed_seed(self.seed, i), prompt_logprobs=None if i else self.prompt_logprobs))
            self.want.append(prompt + tokens)

    def answers(self, cluster, request_id):
        """[(tokens, finish)] by sample."""
        r = self.message(self.seed, self.samples, request_id, self.prompt_logprobs)
        told = lambda infos: [(t.token, t.logprob) if t.HasField('logprob') else t.token for t in infos]
        if self.once:
            result = cluster.inference.GenerateOnce(r, timeout=300)
            choices = sorted(result.choices, key=lambda c: c.index)
            return [((told_prompt(result.prompt) if c.index == 0 else []) + told(c.tokens), c.finish) for c in choices]
        tokens, finish = [[] for _ in range(self.samples)], [None] * self.samples
        for chunk in cluster.inference.Generate(r, timeout=300):
            tokens[chunk.index] += told_prompt(chunk.prompt) + told(chunk.tokens)
            if chunk.HasField('finish'):
                finish[chunk.index] = chunk.finish
        return list(zip(tokens, finish))


def plan(rounds, plain):
    """Requests by round. Their prompts: new ones; the same in each round; a common beginning that ends within a page, and
    another end; the conversation of the round before with its answer and more. The last need that answer."""
    dice = random.Random(7)
    some = lambda least, most: [dice.choice(WORDS) for _ in range(dice.randint(least, most))]
    again, head = [some(20, 70) for _ in range(BATCH // 4)], some(43, 43)
    talks = [some(20, 40) for _ in range(BATCH // 4)]
    for number in range(rounds):
        asked = []
        for place in range(BATCH):
            kind, of = place % 4, place // 4
            prompt = [some(20, 70), again[of], head + some(5, 40), talks[of]][kind]
            if kind == 0 and of % 2:
                prompt = prompt[:5] * (len(prompt) // 5)                  # where prompt lookup finds something at once
            max_tokens = 24 if kind == 3 else dice.randint(50, 120)
            asked.append(Asked(prompt, max_tokens, place, 1000 * number + place))
            asked[-1].learn(plain)
            if kind == 3:
                answer = [t[0] if isinstance(t, tuple) else t for t in asked[-1].want[0]]
                talks[of] = prompt + answer + some(3, 12)
        yield asked


def looked(cluster, since):
    """What the nodes' logs say of each answer: {id: (tokens that the decode node had, tokens that the prefill node had)}."""
    text, found = cluster.log_text(since), {}
    for id, cached in re.findall(r' req=(\S+) decode\.reserved cached=(\d+) ', text):
        found[id] = (int(cached), 0)
    for id, cached in re.findall(r' req=(\S+) prefill\.computed cached=(\d+) ', text):
        found[id] = (found.get(id, (0, 0))[0], int(cached))
    return found


def modes_of(asked, finish, on_decode, on_prefill):
    """Names of what this answer went through."""
    usage = finish.usage
    remote = finish.prefill_node != finish.decode_node
    yield 'read by a prefill node' if remote else 'read by the decode node'
    if on_decode:
        yield 'prefix on D'
    if remote and on_prefill > on_decode:
        yield 'prefix on P'
    if on_decode % PAGE:
        yield 'prefix that ends within a page'
    if not on_decode and not on_prefill:
        yield 'no prefix'
    if usage.accepted_tokens:
        yield 'accepted tokens'
    if usage.proposed_tokens > usage.accepted_tokens:
        yield 'refused tokens'
    if asked.samples > 1:
        yield 'one of several samples'
    if asked.prompt_logprobs is not None:
        yield 'prompt told'


def one_round(cluster, asked, name, modes, wrong):
    since = cluster.log_size()
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda i: asked[i].answers(cluster, f'{name}-{i}'), range(len(asked))))
    found = looked(cluster, since)
    for i, answers in enumerate(got):
        assert len(answers) == asked[i].samples, (name, i, len(answers))
        for s, (tokens, finish) in enumerate(answers):
            id = f'{name}-{i}' + (f'/{s + 1}' if s else '')
            if tokens != asked[i].want[s]:
                wrong.append(id)
                print(f'WRONG {id}: {len(tokens)} tokens, {len(asked[i].want[s])} expected', flush=True)
            modes.update(modes_of(asked[i], finish, *found.get(id, (0, 0))))
            modes['answers'] += 1


def expected(preemption, reader):
    yield from ('prefix on D', 'prefix that ends within a page', 'no prefix', 'accepted tokens', 'refused tokens', 'one of several samples',
                'prompt told')
    yield f'preempted by {preemption}'
    yield from ('read by a prefill node', 'prefix on P') if reader == 'remote' else ('read by the decode node',)


def cell(args, draft, rounds, number, schedule, preemption, reader, proposer):
    """(modes and how often each, ids of answers that differ)."""
    modes, wrong = collections.Counter(), []
    speculation = ['--speculate', proposer, '--no-speculate-adapt', '--speculate-tokens', 4]
    speculation += ['--draft', draft] if proposer == 'draft' else []
    with Cluster(args, '--decode', 1, '--threads', 1, '--kv-pages', args.pages, '--schedule', schedule, '--preemption', preemption,
                 '--swap-bytes', 1 << 26, *READERS[reader], *speculation) as cluster:
        for i, asked in enumerate(rounds):
            one_round(cluster, asked, f'c{number}-{i}', modes, wrong)
        cluster.pages_back(5)
        for how in PREEMPTIONS:
            modes[f'preempted by {how}'] = cluster.counter('decode-1', 'baton_node_preemptions_total', f'by="{how}"')
    missing = [m for m in expected(preemption, reader) if not modes[m]]
    assert not missing, f'{schedule}, {preemption}, {reader}, {proposer}: never happened: {missing}; {dict(modes)}'
    return modes, wrong


def main():
    args = arguments(cells='all', rounds=7, pages=128)
    began, wrong, all_modes = time.monotonic(), [], collections.Counter()
    cells = FEW if args.cells == 'few' else list(itertools.product(SCHEDULES, PREEMPTIONS, READERS, PROPOSERS))
    with tempfile.TemporaryDirectory(prefix='bt-draft-') as folder:
        draft = f'{folder}/draft.gguf'                     # right now and then, as a draft is
        subprocess.run([args.baton, 'quantize', args.model, draft, '--type', 'q4_0'], check=True, capture_output=True)
        with Cluster(args, '--prefill', 0, '--decode', 1, '--no-prefix-cache', '--threads', 1, '--speculate', 'off') as plain:
            rounds = list(plan(args.rounds, plain))
        print(f'{sum(len(a.want) for r in rounds for a in r)} answers alone, {time.monotonic() - began:.0f} s', flush=True)
        for number, names in enumerate(cells):
            modes, differ = cell(args, draft, rounds, number, *names)
            all_modes += modes
            wrong += differ
            print(f'{", ".join(names)}: {modes.pop("answers")} comparisons, {len(differ)} differ, {time.monotonic() - began:.0f} s; '
                  + ', '.join(f'{m} {n}' for m, n in sorted(modes.items())), flush=True)
    comparisons = all_modes.pop('answers')
    print(f'{comparisons} comparisons, {len(wrong)} differ')
    for mode, times in sorted(all_modes.items()):
        print(f'  {mode}: {times}')
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
