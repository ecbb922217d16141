"""What operators see over HTTP: /metrics of a coordinator and of nodes, held against what the requests were, /healthz and
/readyz while nodes come and go. promtool judges the text where it is there (tests/run.sh fetches it). And `baton top`."""
import shutil, subprocess, urllib.error, urllib.request

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


began = time.monotonic()
with Cluster(args, '--prefill', 1, '--decode', 1, '--prefill-policy', 'remote', '--http', '127.0.0.1:0') as cluster:
    here = cluster.http
    there = {name: re.search(rf'{name} .*http.listening address=(\S+)', cluster.log_text())[1] for name in ('prefill-1', 'decode-1')}
    assert get(here, '/healthz') == (200, 'ok\n')
    assert get(here, '/readyz') == (200, 'ready\n')
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
    # baton top: two screens, the second with rates; a stream of requests runs meanwhile
    load = subprocess.Popen([args.baton, 'bench', 'load', '--server', cluster.server, '--rate', '20', '--duration', '4', '--prompt-lengths', 'list:64',
                             '--answer-lengths', 'list:16', '--json'], stdout=subprocess.PIPE)
    screens = subprocess.run([args.baton, 'top', '--server', cluster.server, '--count', '3', '--interval-ms', '1200'], capture_output=True, text=True, timeout=60)
    assert screens.returncode == 0, screens.stderr
    load.communicate(timeout=120)
    first, *_, last = screens.stdout.split('baton top  ')[1:]
    for screen in (first, last):
        assert re.search(r'^prefill-1 +prefill +ready ', screen, re.M) and re.search(r'^decode-1 +decode +ready ', screen, re.M), screen
    assert float(re.search(r'([\d.]+) requests/s', last)[1]) > 0 and not re.search(r'\x1b', last), last
