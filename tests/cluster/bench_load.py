"""`baton bench load` against real clusters: what was planned is what is sent, counted and answered. No figure that depends
on the machine's speed is judged."""
import json, tempfile

from harness import *


def bench(args, *flags, code=0, **variables):
    p = subprocess.run([args.baton, 'bench', 'load', '--json', *map(str, flags)], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, timeout=300, env=os.environ | variables)
    assert p.returncode == code, (p.returncode, p.stderr[-2000:])
    return json.loads(p.stdout) if code == 0 else p.stderr


def plan(args, *flags):
    return bench(args, '--dry-run', '--model', args.model, *flags)['requests']


def counts(report, **want):
    found = {name: report['requests'][name] for name in want}
    assert found == want, (found, want)


def everything_arrives(args, cluster):
    load = ['--rate', 60, '--requests', 60, '--seed', 5, '--prompt-lengths', 'uniform:8-200', '--answer-lengths', 'uniform:2-12']
    asked = plan(args, *load)
    with tempfile.NamedTemporaryFile(suffix='.svg') as plot:
        r = bench(args, '--server', cluster.server, '--svg', plot.name, '--slo-ttft', 1e6, '--slo-itl', 1e6, *load)
        assert plot.read().startswith(b'<svg ')
    counts(r, planned=60, sent=60, answered=60, refused=0, failed={}, not_sent=0, unfinished=0, short_answers=0)
    assert round(r['answer_tokens_s'] * r['seconds']) == sum(q['output_length'] for q in asked), r
    assert round(r['prompt_tokens_s'] * r['seconds']) == sum(len(q['tokens']) for q in asked), r
    assert r['slo']['met'] == 60 and r['ttft_ms']['count'] == 60 and r['late_ms']['count'] == 60, r
    assert all(r[k]['p50'] <= r[k]['p90'] <= r[k]['p99'] <= r[k]['max'] for k in ('ttft_ms', 'itl_ms', 'e2e_ms')), r
    assert r['ttft_ms']['max'] <= r['e2e_ms']['max'] and r['stages_ms']['prefill'] > 0, r
    for role in ('prefill', 'decode'):
        parts = r['nodes_s'][role]
        assert all(parts[k] > 0 for k in ('attention', 'ffn', 'embedding_logits', 'sampling', 'idle')), r
        assert parts['device'] == parts['collective'] == 0, r
    assert bench(args, '--server', cluster.server, '--slo-ttft', 0, *load)['slo']['met'] == 0


def equal_hashes_are_equal_blocks(args, cluster):
    """The second and third request find the first one's block."""
    rows = [{'timestamp': 1000 * i, 'input_length': 640, 'output_length': 2, 'hash_ids': [7, 100 + i]} for i in range(3)]
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as trace:
        trace.write('\n'.join(map(json.dumps, rows)))
        trace.flush()
        r = bench(args, '--server', cluster.server, '--trace', trace.name, '--seed', 9)
        trace.write('\n{"timestamp": "soon"}')
        trace.flush()
        assert f'{trace.name}:4: timestamp' in bench(args, '--server', cluster.server, '--trace', trace.name, code=2)
    counts(r, planned=3, answered=3)
    cached = round(r['cached_tokens_s'] * r['seconds'])
    assert 2 * 512 <= cached < 2 * 528, r              # less than a page more is chance


def guessed(args, cluster):
    """What the answers' last messages say adds up to what the decode node has counted so far: nothing is placed again here."""
    r = bench(args, '--server', cluster.server, '--rate', 50, '--requests', 4, '--prompt-lengths', 'fixed:64', '--answer-lengths', 'fixed:200')
    counts(r, planned=4, answered=4)
    s = r['speculation']
    assert 0 < s['accepted_tokens'] < s['of_tokens'] == 800 and abs(s['share'] - s['accepted_tokens'] / 800) < 1e-6, s
    wait_until(lambda: cluster.counter('decode-1', 'baton_node_accepted_tokens_total') == s['accepted_tokens'], 5, f'the node counts {s} too')


def too_many_streams(args, cluster):
    r = bench(args, '--server', cluster.server, '--rate', 1000, '--requests', 8, '--burst', 8, '--streams', 2)
    counts(r, planned=8, sent=2, answered=2, not_sent=6)


def interrupted(args, cluster):
    p = subprocess.Popen([args.baton, 'bench', 'load', '--json', '--server', cluster.server, '--rate', '30', '--requests',
                          '10000', '--prompt-lengths', 'fixed:20', '--answer-lengths', 'fixed:4'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not re.search(r'[1-9]\d* answered', p.stderr.readline()):
        assert p.poll() is None, p.stdout.read()
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=30)
    r = json.loads(out)
    assert p.returncode == 0 and 0 < r['requests']['answered'] <= r['requests']['sent'] < r['requests']['planned'], r


def slow_readers(args, cluster):
    r = bench(args, '--server', cluster.server, '--slow-readers', 3, '--rate', 50, '--requests', 20, '--prompt-lengths',
              'fixed:20', '--answer-lengths', 'fixed:4')
    counts(r, planned=20, answered=20)
    assert r['slow_readers']['count'] == 3, r


def refused(args):
    with Cluster(args, '--queue', 1, '--sequences', 1) as cluster:
        r = bench(args, '--server', cluster.server, '--rate', 1000, '--requests', 12, '--burst', 12, '--prompt-lengths',
                  'fixed:64', '--answer-lengths', 'fixed:64')
        n = r['requests']
        assert n['refused'] > 0 and n['refused'] == n['refused_with_hint'] == r['refusal_ms']['count'], n
        assert n['answered'] > 0 and n['answered'] + n['refused'] == 12, n
        assert r['slo']['met'] <= n['answered'], r


def its_own_cluster(args):
    r = bench(args, '--model', args.model, '--prefill', 0, '--rate', 50, '--requests', 5, '--prompt-lengths', 'fixed:40',
              BATON_SPECULATE='off', BATON_SPECULATE_ADAPT='false')
    counts(r, planned=5, answered=5)
    assert r['speculation']['accepted_tokens'] == 0 < r['speculation']['of_tokens'], r     # BATON_SPECULATE was heard
    assert r['stages_ms']['kv_transfer'] == 0, r       # --prefill 0 was heard
    bench(args, '--model', args.model, '--server', '127.0.0.1:1', code=2)
    bench(args, '--server', '127.0.0.1:1', code=3)


def main():
    args = arguments()
    with Cluster(args, '--no-speculate-adapt') as cluster:       # guesses, however fast steps are
        for story in (guessed, everything_arrives, too_many_streams, slow_readers, interrupted):
            story(args, cluster)
            cluster.pages_back(5)
            print(story.__name__, 'ok')
    with Cluster(args, '--prefill', 0) as cluster:     # one node, which knows exactly what it found
        equal_hashes_are_equal_blocks(args, cluster)
    refused(args)
    its_own_cluster(args)


if __name__ == '__main__':
    main()
