"""Bad input hurts only its sender: each gets one line that says what was wrong, and a request that runs
beside all of it is not disturbed."""
import os, random, socket, subprocess, tempfile, threading, time

from harness import *

Code = grpc.StatusCode
ASK = dict(prompt='Hello', max_tokens=4)


def refused(cluster, code, part, call=None, **fields):
    r = pb.GenerateRequest(**fields)
    try:
        (call or cluster.inference.GenerateOnce)(r, timeout=30)
    except grpc.RpcError as e:
        assert e.code() == code, (fields, e.code(), e.details())
        assert part in e.details() and '\n' not in e.details(), (fields, part, e.details())
        return
    raise AssertionError(f'{fields} was accepted')


def bad_requests(cluster):
    bad = Code.INVALID_ARGUMENT
    s = pb.Sampling
    model = cluster.inference.ListModels(pb.ListModelsRequest()).models[0]
    context, vocabulary = model.context, model.vocabulary
    refused(cluster, bad, 'prompt')
    refused(cluster, bad, 'prompt', prompt='', max_tokens=4)
    refused(cluster, bad, 'context', tokens=pb.Tokens(ids=[50] * (context + 1)), max_tokens=4)
    refused(cluster, bad, str(context), tokens=pb.Tokens(ids=[50] * (context + 1)), max_tokens=4)
    refused(cluster, bad, str(vocabulary), tokens=pb.Tokens(ids=[1, 2, vocabulary]), max_tokens=4)
    refused(cluster, bad, '-1', tokens=pb.Tokens(ids=[-1]), max_tokens=4)
    refused(cluster, bad, 'max_tokens', prompt='a', max_tokens=0)
    refused(cluster, bad, 'max_tokens', prompt='a', max_tokens=-3)
    for field, value in (('temperature', float('nan')), ('temperature', -1.0), ('top_p', float('nan')), ('top_p', -0.1),
                         ('min_p', float('nan')), ('top_k', -1), ('repetition_penalty', float('inf')),
                         ('presence_penalty', float('nan')), ('frequency_penalty', 99.0)):
        refused(cluster, bad, field.removesuffix('_penalty'), **ASK, sampling=s(**{field: value}))
    refused(cluster, bad, 'n ', **ASK, n=0)
    refused(cluster, bad, 'logprobs', **ASK, logprobs=21)
    refused(cluster, bad, 'logprobs', **ASK, logprobs=-1)
    refused(cluster, bad, 'stop', **ASK, stop=[''])
    refused(cluster, bad, 'stop_tokens', **ASK, stop_tokens=[1 << 30])
    refused(cluster, bad, 'logit_bias', **ASK, sampling=s(logit_bias=[pb.TokenBias(token=999999, bias=1)]))
    refused(cluster, Code.NOT_FOUND, 'no-such-model', model='no-such-model', **ASK)
    bad_continuations(cluster)


def bad_continuations(cluster):
    """What no broken stream can have told."""
    def stream(r, timeout):
        return list(cluster.inference.Generate(r, timeout=timeout))

    ids = list(cluster.inference.Tokenize(pb.TokenizeRequest(text='abc')).tokens) * 2
    seen = [pb.Seen(tokens=ids)]
    refused(cluster, Code.INVALID_ARGUMENT, 'seen: GenerateOnce', prompt='Hello', seen=seen)
    refused(cluster, Code.INVALID_ARGUMENT, 'expected at most 1', stream, prompt='Hello', max_tokens=1, seen=seen)
    refused(cluster, Code.INVALID_ARGUMENT, 'sampling.seed', stream, prompt='Hello', seen=seen, sampling=pb.Sampling(temperature=1))
    refused(cluster, Code.INVALID_ARGUMENT, 'a stop string is complete before the last', stream, prompt='Hello', seen=seen, stop=['a'])
    refused(cluster, Code.INVALID_ARGUMENT, 'index', stream, prompt='Hello', seen=[pb.Seen(index=1 << 30, tokens=ids)])
    whole = stream(pb.GenerateRequest(prompt='Hello', max_tokens=len(ids), seen=seen), 30)        # the largest that fits: its end
    assert [(c.finish.reason, len(c.tokens), c.text) for c in whole] == [(pb.FINISH_REASON_LENGTH, 0, '')], whole


def bad_bytes(cluster):
    """Invalid UTF-8 in a string field, and messages that are no protobuf."""
    raw = cluster.channel.unary_unary('/baton.v1.Inference/GenerateOnce')
    for body, part in ((b'\x12\x02\xc3\x28', 'UTF-8'), (b'\xff\xff\xff\xff', ''), (b'\x12\x7fabc', '')):
        try:
            raw(body, timeout=10)
            raise AssertionError(f'{body} was accepted')
        except grpc.RpcError as e:
            assert e.code() == Code.INVALID_ARGUMENT and part in e.details(), (body, e.code(), e.details())
    try:
        cluster.channel.unary_unary('/baton.v1.Inference/NoSuchMethod')(b'', timeout=10)
        raise AssertionError('an unknown method was served')
    except grpc.RpcError as e:
        assert e.code() == Code.UNIMPLEMENTED, e


def random_bytes_on_every_port(cluster):
    dice = random.Random(5)
    nodes = cluster.nodes()
    before = {n.id: threads_and_files(n.pid) for n in nodes}
    for address in [a for n in nodes for a in (n.address, n.kv_address) if a]:
        for _ in range(20):
            with connect(address) as s:
                try:
                    s.sendall(dice.randbytes(dice.choice([1, 64, 300, 5000])))
                    s.settimeout(0.05)
                    s.recv(100)
                except OSError:
                    pass
    wait_until(lambda: all(threads_and_files(n.pid)[1] <= before[n.id][1] for n in nodes), 15, 'the sockets are closed')
    assert [n.pid for n in cluster.nodes()] == [n.pid for n in nodes], 'a process died'


def bad_files_and_flags(args, cluster):
    model = open(args.model, 'rb').read(1 << 20)
    files = {'no gguf': (b'hello, no model', 'GGUF'), 'empty': (b'', ''), 'cut': (model[:len(model) * 3 // 4], ''),
             'lying counts': (model[:8] + b'\xff' * 16 + model[24:], '')}
    for what, (content, part) in files.items():
        with tempfile.NamedTemporaryFile(prefix='bt-bad-', suffix='.gguf') as f:
            f.write(content)
            f.flush()
            for command in (['tokenize', '--text', 'x'], ['up']):
                done = subprocess.run([args.baton, command[0], '--model', f.name, *command[1:]], capture_output=True, text=True, timeout=20)
                assert done.returncode == 1 and part in done.stderr and f.name in done.stderr, (what, command, done)
    taken = cluster.server
    for words, code, part in ((['up'], 2, '--model'), (['no-such-command'], 2, 'no-such-command'), (['generate', '--no-such-flag'], 2, '--no-such-flag'),
                              (['generate', '--server', cluster.server, '--prompt', 'a', '--temperature', 'hot'], 2, 'hot'),
                              (['generate', '--server', cluster.server, '--prompt', ''], 4, 'prompt'),
                              (['up', '--model', args.model, '--listen', taken], 1, taken),
                              (['up', '--model', args.model, '--listen', '127.0.0.1:0', '--kv-pages', '2000000000'], 1, 'pages'),
                              (['up', '--model', '/no/such/file'], 1, '/no/such/file')):
        done = subprocess.run([args.baton, *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == code and part in done.stderr and not done.stdout, (words, done)


def main():
    args = arguments()
    with Cluster(args) as cluster:
        want = cluster.generate(request(long_text(500), max_tokens=300))
        undisturbed = []
        thread = threading.Thread(target=lambda: undisturbed.append(cluster.generate(request(long_text(500), max_tokens=300))))
        thread.start()
        bad_requests(cluster)
        bad_bytes(cluster)
        random_bytes_on_every_port(cluster)
        bad_files_and_flags(args, cluster)
        thread.join()
        assert undisturbed and undisturbed[0][0] == want[0]
        cluster.pages_back(2)


if __name__ == '__main__':
    main()
