"""The whole path: a prompt is prefilled by one process and decoded by another, and a user can see it."""
import json, re, subprocess

from harness import *


def run(args, *words, check=True):
    done = subprocess.run([args.baton, *words], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, (words, done.returncode, done.stderr)
    return done


def separate_processes(args, cluster):
    nodes = json.loads(run(args, 'nodes', '--server', cluster.server, '--json').stdout)
    assert sorted(n['role'] for n in nodes) == ['coordinator', 'decode', 'prefill'], nodes
    assert len({n['pid'] for n in nodes}) == 3 and all(alive(n['pid']) for n in nodes)
    for n in nodes:
        name = open(f'/proc/{n["pid"]}/cmdline').read().split('\0')[1]
        assert name == n['role'], (name, n)
    table = run(args, 'nodes', '--server', cluster.server).stdout
    assert all(n['id'] in table for n in nodes), table


def named_nodes_and_times(args, cluster):
    done = run(args, 'generate', '--server', cluster.server, '--prompt', long_text(1200), '--max-tokens', '24', '--json')
    answer = json.loads(done.stdout)
    assert answer['nodes'] == {'prefill': 'prefill-1', 'decode': 'decode-1'}, answer['nodes']
    assert set(answer['timings_ms']) == {'tokenise', 'queue', 'prefill', 'kv_transfer', 'ttft', 'decode'}
    assert all(v >= 0 for v in answer['timings_ms'].values()) and answer['timings_ms']['prefill'] > 0
    assert set(answer['speculation']) == {'proposed_tokens', 'accepted_tokens', 'draft_ms'}
    assert answer['usage']['completion_tokens'] == len(answer['tokens']) <= 24
    plain = run(args, 'generate', '--server', cluster.server, '--prompt', long_text(1200), '--max-tokens', '24').stdout
    assert plain.strip() == answer['text'].strip()


def pages_travel_while_prefill_computes(cluster):
    """The log is the trace: the first page of a request lands before its prefill has ended."""
    cluster.generate(request(long_text(6000, 3000), max_tokens=4, request_id='traced'))
    lines = [l for l in cluster.log_text().splitlines() if 'req=traced ' in l]
    print('\n'.join(lines))
    event = lambda name: next(i for i, l in enumerate(lines) if f' {name} ' in l)
    at = lambda name: lines[event(name)].split()[0]
    assert at('kv.landing') < at('prefill.computed'), 'no page travelled while prefill computed'
    hidden, wire = (float(re.search(k + r'=([0-9]+)', lines[event('prefill.sent')]).group(1)) for k in (' hidden_us', ' us'))
    assert 0 < hidden <= wire


def main():
    args = arguments()
    with Cluster(args, '--prefill-policy', 'remote', '--chunk', 128, '--no-prefix-cache') as cluster:
        separate_processes(args, cluster)
        named_nodes_and_times(args, cluster)
        pages_travel_while_prefill_computes(cluster)
        server, pids = cluster.server, [n.pid for n in cluster.nodes()]
    wait_until(lambda: not any(alive(p) for p in pids), 5, 'every process is gone')
    assert run(args, 'generate', '--server', server, '--prompt', 'x', check=False).returncode == 3


if __name__ == '__main__':
    main()
