"""What operators see over HTTP: /metrics of a coordinator and of nodes, held against what the requests were, after a failover and
a move, too; /healthz and /readyz while nodes come and go. promtool judges the text where it is there (tests/run.sh fetches it). And `baton top`."""
import fcntl, pty, shutil, signal, struct, subprocess, termios, urllib.error, urllib.request

from harness import *

args = arguments()


def get(address, path):
    try:
        with urllib.request.urlopen(f'http://{address}{path}', timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def values(address):
    """{'name{labels}': value} of all series."""
    code, text = get(address, '/metrics')
    assert code == 200, code
    return {line.rsplit(' ', 1)[0]: float(line.rsplit(' ', 1)[1]) for line in text.splitlines() if not line.startswith('#')}


def check_with_promtool(address):
    promtool = shutil.which('promtool') or ROOT / 'build' / 'promtool'
    if not os.path.exists(promtool):
        print('promtool: not here, its check is skipped')
        return
    code, text = get(address, '/metrics')
    own = '\n'.join(l for l in text.splitlines() if 'vllm:' not in l) + '\n'      # it objects to the colon, and to nothing else
    done = subprocess.run([promtool, 'check', 'metrics'], input=own, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout and not done.stderr, (done.returncode, done.stdout, done.stderr)
    print('promtool: clean')


FLAGS = '--prefill-policy', 'remote', '--http', '127.0.0.1:0'


def family(v, name):
    """{labels: value} of what is not 0."""
    return {series.partition('{')[2].rstrip('}'): value for series, value in v.items() if series.partition('{')[0] == name and value}


def is_just(v, name, expected):
    assert family(v, name) == expected, (name, family(v, name))


def each_says_its_own(*addresses):
    """No two of vLLM's names have the same HELP."""
    for address in addresses:
        texts = re.findall(r'^# HELP (vllm:\S+) (.+)$', get(address, '/metrics')[1], re.M)
        assert len(texts) >= 8 and len({text for _, text in texts}) == len(texts), sorted(texts, key=lambda t: t[1])


# What a node or a coordinator counts is there before it was counted: an alert on its increase sees the first one, too.
EACH = ['baton_log_lines_dropped_total', *(f'baton_calls_refused_total{{reason="{r}"}}' for r in ('no_credential', 'wrong_credential', 'not_allowed'))]
KV = ['baton_kv_bytes_sent_total', 'baton_kv_frames_sent_total', 'baton_kv_bytes_received_total', 'baton_kv_frames_received_total', 'baton_kv_links',
      *(f'baton_kv_frames_refused_total{{reason="{r}"}}' for r in ('crc', 'epoch', 'ticket', 'bounds', 'type', 'duplicate', 'header', 'sealing', 'tag', 'replay'))]
NODE = [*EACH, *KV, 'baton_node_steps_total', 'baton_node_tokens_total{kind="prefill"}', 'baton_node_tokens_total{kind="decode"}',
        'baton_node_step_tokens_count', 'baton_node_landed_tokens_total', 'baton_node_promotions_total', 'baton_node_readers_slow_total',
        'baton_node_requests_total{status="ST_OK"}', 'baton_node_requests_total{status="ST_DEVICE"}',
        *(f'baton_node_{what}_total{{proposed="{p}"}}' for what in ('decode_seconds', 'decoded_tokens') for p in ('no', 'yes')),
        *(f'baton_node_preemptions_total{{by="{by}"}}' for by in ('recompute', 'swap')),
        *(f'baton_node_prefix_tokens_total{{result="{r}"}}' for r in ('hit', 'miss')), 'baton_prefill_held_total', 'baton_prefill_unpinned_total']
SPECULATE = ['baton_node_speculated_steps_total', 'baton_node_proposed_tokens_total', 'baton_node_accepted_tokens_total',
             'baton_node_accepted_tokens_at_total{position="0"}']


def begin_as_zero(here, prefill, decode):
    for address, names in ((here, EACH), (prefill, NODE), (decode, NODE + SPECULATE)):
        v = values(address)
        missing = [name for name in names if name not in v]
        assert not missing, (address, missing)
        counted = {name: v[name] for name in names if v[name] and name != 'baton_kv_links'}
        assert not counted, (address, counted)


def nothing_again(v):
    """Three requests for one prompt, which the decode node caches from the first one on, of nobody who showed a credential."""
    is_just(v, 'baton_placements_total', {'role="decode",reason="only"': 3, 'role="prefill",reason="only"': 1, 'role="prefill",reason="local"': 2})
    is_just(v, 'baton_tenant_requests_total', {'tenant=""': 3})
    assert abs(v['baton_tenant_queue_seconds_total{tenant=""}'] - v['baton_request_queue_seconds_sum']) < 1e-4
    for nothing in 'baton_placed_again_total', 'baton_tokens_computed_again_total', 'baton_failover_gap_seconds_count':
        assert len([series for series in v if series.startswith(nothing)]) > 1 and not family(v, nothing), nothing


def link(cluster, here, prefill, v, p):
    """What a prefill node says it has sent is what the coordinator counts of its link. An answer that nobody reads goes on until then."""
    stream = cluster.inference.Generate(request(tokens=range(3, 200), max_tokens=5000, logprobs=20), timeout=60)
    next(stream)
    of, name, sent = 'from="prefill-1",to="decode-1"', 'baton_link_kv_bytes_total', 'baton_kv_bytes_sent_total'
    wait_until(lambda: family(values(here), name).get(of, 0) > family(v, name).get(of, 0), 20, 'the transfer is counted')
    w = values(here)
    assert family(w, name)[of] - family(v, name).get(of, 0) == values(prefill)[sent] - p[sent] > 0, (family(v, name), family(w, name))
    parts = [w[f'baton_link_kv_seconds_total{{{of},part="{part}"}}'] for part in ('hidden', 'exposed')]
    assert min(parts) >= 0 and sum(parts) > 0, parts
    stream.cancel()
    cluster.pages_back()


def begin(cluster, id, first):
    """A long answer of which a few tokens were read, its tokens so far, and the node that says them; nobody reads on, so it lasts."""
    job = request(tokens=range(first, first + 100), max_tokens=4000, logprobs=20, request_id=id)
    stream = cluster.inference.Generate(job, timeout=60)
    tokens = []
    while len(tokens) < 8:
        tokens += [t.token for t in next(stream).tokens]
    return stream, tokens, cluster.node(cluster.worker('Decode', id))


def failover_and_move():
    """A decode node is killed, another drained, each under an answer: why it was placed again, the pause, and what was computed
    again. The prompt's pages come from the prefill node, all but the last 4 tokens, which fill none."""
    with Cluster(args, '--prefill', 1, '--decode', 2, *FLAGS) as cluster:
        stream, tokens, node = begin(cluster, 'killed', 100)
        os.kill(node.pid, signal.SIGKILL)
        tokens += [t.token for chunk in stream for t in chunk.tokens]
        v = values(cluster.http)
        is_just(v, 'baton_placed_again_total', {'cause="peer_lost"': 1})
        is_just(v, 'baton_failover_gap_seconds_count', {'after="failure"': 1})
        again = family(v, 'baton_tokens_computed_again_total')
        assert again['of="prompt"'] == 4 and 6 <= again['of="answer"'] < len(tokens), (again, len(tokens))
        assert family(v, 'baton_placements_total')['role="prefill",reason="holder"'] == 1
        wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()), 30, 'the killed node is back')
        assert cluster.generate(request(tokens=range(100, 200), max_tokens=4000))[0] == tokens, 'other tokens after the failover'
        stream, _, node = begin(cluster, 'moved', 120)
        cluster.control.Drain(pb.NodeRequest(id=node.id), timeout=10)
        for _ in stream:
            pass
        w = values(cluster.http)
        is_just(w, 'baton_placed_again_total', {'cause="peer_lost"': 1, 'cause="moved"': 1})
        is_just(w, 'baton_failover_gap_seconds_count', {'after="failure"': 1, 'after="move"': 1})
        assert family(w, 'baton_placements_total')['role="prefill",reason="holder"'] == 2
        more = sum(family(w, 'baton_tokens_computed_again_total').values()) - sum(again.values())
        assert more < 16, f'{more} tokens computed again for a move: its node has all of its pages but the last'
        other = next(n.id for n in cluster.nodes('decode') if n.id != node.id)
        assert f'from="{node.id}",to="{other}"' in family(w, 'baton_link_kv_bytes_total')
        check_with_promtool(cluster.http)


def tenants():
    """Whose credential is known here has a series; who only calls itself something has none."""
    with tempfile.NamedTemporaryFile('w') as file:
        file.write('token-of-team-a-9b1c7e team-a\n')
        file.flush()
        with Cluster(args, '--prefill', 0, '--decode', 1, '--tokens-file', file.name, *FLAGS) as cluster:
            bearer = ('authorization', 'Bearer token-of-team-a-9b1c7e'), ('baton-tenant', 'team-a')
            collect(cluster.inference.Generate(request(tokens=[5] * 20, max_tokens=4), timeout=60, metadata=bearer))
            is_just(values(cluster.http), 'baton_tenant_requests_total', {'tenant="team-a"': 1})
            check_with_promtool(cluster.http)
    with Cluster(args, '--prefill', 0, '--decode', 1, *FLAGS) as cluster:
        for name in 'team-a', 'team-b':
            collect(cluster.inference.Generate(request(tokens=[5] * 20, max_tokens=4), timeout=60, metadata=(('baton-tenant', name),)))
        v = values(cluster.http)
        is_just(v, 'baton_tenant_requests_total', {'tenant=""': 2})
        is_just(v, 'baton_placements_total', {'role="decode",reason="only"': 2, 'role="prefill",reason="local"': 2})


def top(cluster, count, **variables):
    """Its screens."""
    done = subprocess.run([args.baton, 'top', '--server', cluster.server, '--count', str(count), '--interval-ms', '1200'], capture_output=True,
                          text=True, timeout=60, env={k: v for k, v in os.environ.items() if k != 'COLUMNS'} | variables)
    assert done.returncode == 0 and '\x1b' not in done.stdout, (done.stderr, done.stdout)
    screens = done.stdout.split('baton top  ')[1:]
    assert len(screens) == count, done.stdout
    return screens


def screens_of_top(cluster):
    """Three screens while requests run, the first without rates; then as wide as COLUMNS says."""
    load = subprocess.Popen([args.baton, 'bench', 'load', '--server', cluster.server, '--rate', '20', '--duration', '4', '--prompt-lengths', 'list:64',
                             '--answer-lengths', 'list:16', '--json'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first, _, last = top(cluster, 3)
    load.communicate(timeout=120)
    for screen in (first, last):
        assert re.search(r'^prefill-1 +prefill +ready ', screen, re.M) and re.search(r'^decode-1 +decode +ready ', screen, re.M), screen
        assert ' 0 failed since its start\n' in screen, screen
    assert ' - requests/s in, - tokens/s out, mean TTFT -, mean ITL -\n' in first, first
    assert len(re.findall(r'^\S+ +\S+ +ready +- .*\d/\d+( +-){6}$', first, re.M)) == 2, first
    rates = re.search(r' ([\d.]+) requests/s in, (\d+) tokens/s out, mean TTFT ([\d.]+) ms, mean ITL ([\d.]+) ms\n', last)
    assert rates and all(float(rates[k]) > 0 for k in (1, 2, 3)), last
    v = values(cluster.http)
    for name in 'baton_time_to_first_token_seconds', 'baton_inter_token_latency_seconds':
        assert cluster.counter('coordinator-1', name + '_count') == v[name + '_count'] > 0, name
        assert abs(cluster.counter('coordinator-1', name + '_sum') - v[name + '_sum'] * 1e6) < 2, name
    for columns, shown in (20, 2), (40, 5), (80, 10), (99, 12), (100, 13), (160, 13):
        screen = top(cluster, 1, COLUMNS=str(columns))[0]
        lines = screen.split('\n')[1:]                        # the first one's words, "baton top", were split off
        assert max(map(len, lines)) <= columns, (columns, screen)
        heads = next(l for l in lines if l.startswith('NODE ')).replace('PAGES HELD', 'PAGES').split()
        assert len(heads) == shown and ('Left' in screen) == (shown < 13), (columns, screen)
    for word in 'RUN: ', 'WAIT: ', 'PAGES HELD: ', '# that', '+ only', '. free', 'IN: MB/s of KV', 'OUT: MB/s of KV':
        assert word in ' '.join(lines), (word, screen)


def screen_of_a_terminal(cluster):
    """Its width counts, not that of COLUMNS."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    subprocess.run([args.baton, 'top', '--server', cluster.server, '--count', '1'], stdout=there, timeout=60, check=True, env=os.environ | {'COLUMNS': '120'})
    os.close(there)
    screen = ''
    with contextlib.suppress(OSError):                        # the other end is closed: all was read
        while piece := os.read(here, 4096):
            screen += piece.decode()
    os.close(here)
    assert re.search(r'WRITE/s CACHED\r\n', screen) and 'Ctrl-C ends.' in screen, screen


began = time.monotonic()
with Cluster(args, '--prefill', 1, '--decode', 1, *FLAGS) as cluster:
    here = cluster.http
    there = {name: re.search(rf'{name} .*http.listening address=(\S+)', cluster.log_text())[1] for name in ('prefill-1', 'decode-1')}
    assert get(here, '/healthz') == (200, 'ok\n')
    assert get(here, '/readyz') == (200, 'ready\n')
    begin_as_zero(here, there['prefill-1'], there['decode-1'])
    prompt = list(range(100, 180))
    for _ in range(3):
        tokens, _, _ = cluster.generate(request(tokens=prompt, max_tokens=12))
        assert len(tokens) == 12
    cluster.pages_back()
    v = values(here)
    model = re.sub(r'\.gguf$', '', os.path.basename(args.model))
    name = f'{{model_name="{model}"}}'
    assert v['baton_requests_total'] == 3 and v['baton_answers_total{reason="length"}'] == 3
    assert v[f'vllm:prompt_tokens_total{name}'] == 240 and v[f'vllm:generation_tokens_total{name}'] == 36
    assert v[f'vllm:time_to_first_token_seconds_count{name}'] == 3
    assert v[f'vllm:e2e_request_latency_seconds_count{name}'] == 3
    assert v[f'vllm:num_requests_running{name}'] == 0
    p, d = values(there['prefill-1']), values(there['decode-1'])
    nothing_again(v)
    link(cluster, here, there['prefill-1'], v, p)
    assert p['baton_node_tokens_total{kind="prefill"}'] >= 79, p
    assert d['baton_node_landed_tokens_total'] > 0
    told = [d.get(f'baton_node_decoded_tokens_total{{proposed="{proposed}"}}', 0) for proposed in ('no', 'yes')]
    assert sum(told) == 36 and d['baton_node_decode_seconds_total{proposed="no"}'] > 0, (told, d)
    for node in (p, d):
        spent = {part: node[f'baton_node_engine_seconds_total{{part="{part}"}}']
                 for part in ('attention', 'ffn', 'embedding_logits', 'collective', 'device', 'sampling', 'schedule', 'other', 'idle')}
        assert sum(spent.values()) <= time.monotonic() - began, spent      # no moment is counted twice
        assert all(spent[k] > 0 for k in ('attention', 'ffn', 'embedding_logits', 'sampling', 'idle')), spent
        assert spent['collective'] == spent['device'] == 0, spent
    assert d[f'vllm:prompt_tokens_by_source_total{{model_name="{model}",source="external_kv_transfer"}}'] == d['baton_node_landed_tokens_total']
    assert d['baton_node_requests{state="running"}'] == 0 and d['baton_node_pages{state="running"}'] == 0
    assert d['baton_node_pages{state="cached"}'] > 0 and 0 <= d[f'vllm:kv_cache_usage_perc{name}'] <= 1
    each_says_its_own(here, *there.values())
    for address in (here, *there.values()):
        check_with_promtool(address)
    cluster.control.Drain(pb.NodeRequest(id='decode-1'), timeout=10)
    wait_until(lambda: get(here, '/readyz') == (503, 'no decode node is ready\n'), 5, 'the coordinator is not ready')
    assert get(there['decode-1'], '/readyz') == (503, 'draining: no new requests\n')
    assert get(there['decode-1'], '/healthz') == (200, 'ok\n')
    cluster.control.Undrain(pb.NodeRequest(id='decode-1'), timeout=10)
    wait_until(lambda: get(here, '/readyz') == (200, 'ready\n'), 5, 'the coordinator is ready')
    # who asks for an address that is taken is told
    second = subprocess.run([args.baton, 'up', '--model', args.model, '--listen', '127.0.0.1:0', '--http', here], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and f'--http: cannot listen on {here}' in second.stderr, (second.returncode, second.stderr[-2000:])
    screens_of_top(cluster)
    screen_of_a_terminal(cluster)
failover_and_move()
tenants()
