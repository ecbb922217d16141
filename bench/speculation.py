"""What speculation is worth here: tokens a second with it to without, interleaved.

    build/venv/bin/python bench/speculation.py --model F16.gguf --draft Q4_0.gguf [--rounds 5] [--tokens 160]

Clusters of one decode node each, all running, one asked at a time: without speculation, with prompt lookup, with lookahead,
with the draft. A round asks every one of them the same; a row is the median over the rounds of its ratio to the one without.
The bytes are compared as well. `baton quantize` makes both files.
"""
import concurrent.futures, contextlib, pathlib, statistics, sys, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'tests' / 'cluster'))
from harness import *

TEXT = long_text(1200)
TASKS = {
    'copies': f'Repeat the following text exactly.\n\n{TEXT}\n\nThe text again:\n\n{TEXT[:300]}',
    'writes': 'The history of the village began when',
}
PLAIN = 'none'


def run(cluster, prompt, batch, tokens, temperature):
    """(seconds from the first token to the last, answers, tokens proposed, accepted, ms of the draft)."""
    asked = [request(prompt if i == 0 else f'{i}. {prompt}', max_tokens=tokens, temperature=temperature, seed=100 + i)
             for i in range(batch)]
    with concurrent.futures.ThreadPoolExecutor(batch) as pool:
        answers = list(pool.map(cluster.generate, asked))
    timings = [finish.timings.decode for _, _, finish in answers]
    usage = [finish.usage for _, _, finish in answers]
    return (max(timings) / 1000, [tokens for tokens, _, _ in answers], sum(u.proposed_tokens for u in usage),
            sum(u.accepted_tokens for u in usage), sum(f.timings.draft for _, _, f in answers))


def measure(clusters, task, batch, temperature, args):
    ratios, last = {name: [] for name in clusters}, {}
    for _ in range(args.rounds + 1):                     # the first warms up
        took = {}
        for name, cluster in clusters.items():
            took[name], answers, *last[name] = run(cluster, TASKS[task], batch, args.tokens, temperature)
            assert answers == last.setdefault('answers', answers), f'{name}: another answer'
        for name in clusters:
            ratios[name].append(took[PLAIN] / took[name])
    rate = batch * (args.tokens - 1) / took[PLAIN]
    for name in clusters:
        if name == PLAIN:
            continue
        r, (proposed, accepted, draft_ms) = sorted(ratios[name][1:]), last[name]
        print(f'| {task} | {temperature:g} | {batch} | {rate:.0f} | {name} | {statistics.median(r):.2f} | {r[0]:.2f} to {r[-1]:.2f} | '
              f'{accepted} of {proposed} | {100 * draft_ms / 1000 / took[name]:.0f} % |', flush=True)


def main():
    args = arguments(draft='', rounds=5, tokens=160, threads=0, only='', batches='1,8', temperatures='0,1')
    modes = {PLAIN: ['--speculate', 'off'], 'ngram': ['--speculate', 'ngram'], 'lookahead': ['--speculate', 'lookahead']}
    for file in filter(None, args.draft.split(',')):
        modes[f'draft {pathlib.Path(file).stem}'] = ['--draft', file]
    modes = {name: flags for name, flags in modes.items() if not args.only or name == PLAIN or name.split()[0] in args.only.split(',')}
    print('| task | temperature | batch | tokens/s without | with | ratio | least to most | accepted | of its time the draft |')
    print('|---|---:|---:|---:|---|---:|---|---|---:|')
    with contextlib.ExitStack() as stack:
        clusters = {name: stack.enter_context(Cluster(args, '--prefill', 0, '--threads', args.threads, *flags))
                    for name, flags in modes.items()}
        for temperature in map(float, args.temperatures.split(',')):
            for batch in map(int, args.batches.split(',')):
                for task in TASKS:
                    measure(clusters, task, batch, temperature, args)


if __name__ == '__main__':
    main()
