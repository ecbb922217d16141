"""Who is let in: a cluster with TLS made by `baton certs`, asked by everybody with everything; what it listens on; what its
logs say; what somebody sees, and can do, who sits between a prefill and a decode node.

    python tests/cluster/security.py [--baton build/baton] [--model FILE]
"""
import concurrent.futures, glob, json, shutil, ssl, struct, threading

from google.protobuf import descriptor_pb2

from harness import *
from listeners import census, children

PROMPT = 'canary-prompt-5f3a the quick brown fox'
TOKEN_A, TOKEN_ROOT = 'token-of-team-a-9b1c7e', 'token-of-root-4d2f8a'


def run(args, *words, code=0):
    p = subprocess.run([args.baton, *map(str, words)], capture_output=True, text=True, timeout=60,
                       env={k: v for k, v in os.environ.items() if not k.startswith('BATON_') or k == 'BATON_CACHE_DIR'})
    assert p.returncode == code, (words, p.returncode, p.stdout, p.stderr)
    return p.stdout + p.stderr


class Folder:
    """Certificates and tokens."""

    def __init__(self, args, path):
        self.args, self.path = args, pathlib.Path(path)
        for words in (['ca'], ['coordinator,node', 'here', '--hosts', '127.0.0.1'], ['client', 'team-a'], ['client', 'team-b'],
                      ['admin', 'ops'], ['node', 'n1'], ['coordinator', 'c1']):
            run(args, 'certs', *words, '--dir', self.path)
        self.secret('tokens', f'{TOKEN_A} team-a\n{TOKEN_ROOT} root admin\n')
        self.secret('token', TOKEN_A + '\n')

    def secret(self, name, text):
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o600)

    def read(self, name):
        return (self.path / name).read_bytes()

    def flags(self, name):
        return ['--tls-ca', self.path / 'ca.crt', *(['--tls-cert', self.path / f'{name}.crt', '--tls-key', self.path / f'{name}.key'] if name else [])]

    def channel(self, server, name=None):
        pair = [self.read(f'{name}.key'), self.read(f'{name}.crt')] if name else [None, None]
        # Nodes have no host names in their certificates: it is the role that baton checks.
        return grpc.secure_channel(server, grpc.ssl_channel_credentials(self.read('ca.crt'), *pair))


def ask_as(client, channel):
    client.channel.close()
    client.channel = channel
    client.inference = pb_grpc.InferenceStub(channel)
    client.control = pb_grpc.ClusterStub(channel)


class SecureCluster(Cluster):
    def __init__(self, args, folder, *flags):
        super().__init__(args, *folder.flags('here'), '--tokens-file', folder.path / 'tokens', *flags)
        ask_as(self, folder.channel(self.server, 'ops'))


def certificates_are_kept(args, folder):
    assert 'is there already' in run(args, 'certs', 'client', 'team-a', '--dir', folder.path, code=1)
    assert 'is there already' in run(args, 'certs', 'ca', '--dir', folder.path, code=1)
    assert 'ends before' in run(args, 'certs', 'client', 'late', '--days', 20000, '--dir', folder.path, code=2)
    for key in folder.path.glob('*.key'):
        assert key.stat().st_mode & 0o7777 == 0o600, key
    assert not (folder.path / 'late.key').exists()


def methods():
    """'/package.Service/Method' of every .proto that baton serves."""
    found = []
    for path in sorted(glob.glob(f'{ROOT}/proto/*.proto')):
        if path.endswith('etcd.proto'):
            continue                    # that is etcd's
        with tempfile.NamedTemporaryFile() as out:
            assert protoc.main(['', f'-I{ROOT}/proto', f'--descriptor_set_out={out.name}', os.path.basename(path)]) == 0
            files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(out.name).read_bytes())
        found += [f'/{f.package}.{s.name}/{m.name}' for f in files.file for s in f.service for m in s.method]
    assert len(found) >= 19, found
    return found


def code_of(channel, path, metadata=()):
    """How an empty request ends; streams are left after their first message."""
    call = channel.unary_stream(path)(b'', timeout=10, metadata=metadata)
    try:
        next(call)
        return grpc.StatusCode.OK
    except StopIteration:
        return grpc.StatusCode.OK
    except grpc.RpcError as e:
        return e.code()
    finally:
        call.cancel()


def bearer(token):
    return [('authorization', 'Bearer ' + token)]


def everybody_is_checked(cluster, folder, other):
    code = grpc.StatusCode
    servers = [cluster.server, *(n.address for n in cluster.nodes() if n.role != 'coordinator')]
    assert len(servers) == 3, servers
    client = ('/baton.v1.Inference/', '/grpc.')
    callers = [  # who, their certificate, their headers, what they may call, how else they end
        ('nobody', None, [], (), code.UNAUTHENTICATED),
        ('unknown token', None, bearer('x' * 20), (), code.UNAUTHENTICATED),
        ("other tenant's", 'team-a', [('baton-tenant', 'team-b')], (), code.PERMISSION_DENIED),
        ('client', 'team-a', [], client, code.PERMISSION_DENIED),
        ("client's token", None, bearer(TOKEN_A), client, code.PERMISSION_DENIED),
        ('node', 'n1', [], ('/grpc.health',), code.PERMISSION_DENIED),
        ('admin', 'ops', [], ('/baton.v1.', '/grpc.'), code.PERMISSION_DENIED),
        ('coordinator', 'c1', [], ('/baton.node.v1.', '/grpc.health'), code.PERMISSION_DENIED),
    ]
    asked = 0
    for server in servers:
        for who, certificate, headers, may, otherwise in callers:
            with folder.channel(server, certificate) as channel:
                for path in methods():
                    got = code_of(channel, path, headers)
                    if otherwise == code.UNAUTHENTICATED or ('Bearer' in str(headers) and server != cluster.server):
                        fine = got == code.UNAUTHENTICATED                     # nodes know no tokens
                    elif may and path.startswith(may):
                        fine = got not in (code.UNAUTHENTICATED, code.PERMISSION_DENIED, code.UNAVAILABLE)
                    else:
                        fine = got in (otherwise, code.UNIMPLEMENTED)          # the second: another server's
                    assert fine, (server, who, path, got)
                    asked += 1
        for who, channel in (('another CA', other.channel(server, 'team-a')), ('no TLS', grpc.insecure_channel(server))):
            with channel:
                for path in methods():
                    assert code_of(channel, path) == code.UNAVAILABLE, (server, who, path)
                    asked += 1
    print(f'{asked} calls by {len(callers) + 2} kinds of callers')


def commands(args, cluster, folder, other):
    ask = ['generate', '--server', cluster.server, '--prompt', PROMPT, '--max-tokens', 8, '--json', '--ignore-eos']
    plain = json.loads(run(args, *ask, *folder.flags('team-a')))
    token = json.loads(run(args, *ask, *folder.flags(None), '--token-file', folder.path / 'token'))
    assert plain['tokens'] == token['tokens'] and len(plain['tokens']) == 8
    assert 'no credential' in run(args, *ask, *folder.flags(None), code=4)
    assert 'may not call' in run(args, 'nodes', '--server', cluster.server, *folder.flags('team-a'), code=4)
    assert 'may not call' in run(args, 'drain', 'decode-1', '--server', cluster.server, *folder.flags('team-a'), code=4)
    assert 'decode-1' in run(args, 'nodes', '--server', cluster.server, *folder.flags('ops'))
    run(args, *ask, code=3)                                  # without TLS
    assert 'certificate verify failed' in run(args, *ask, *other.flags('team-a'), code=3)
    nodes = [n.address for n in cluster.nodes('decode')]
    assert "has role 'coordinator,node'" not in run(args, 'nodes', '--server', nodes[0], *folder.flags('ops'), code=4)


def renewal(args, cluster, folder, fresh):
    """A certificate moved over the old one is shown to the next who connects; a stream that runs is not disturbed."""
    host, _, port = cluster.server.rpartition(':')
    before = ssl.get_server_certificate((host, int(port)))
    running = cluster.inference.Generate(request(PROMPT, max_tokens=200), timeout=60)
    next(running)
    run(args, 'certs', 'coordinator,node', 'here', '--hosts', '127.0.0.1', '--dir', fresh)
    for name in ('here.key', 'here.crt'):
        os.replace(fresh / name, folder.path / name)
    wait_until(lambda: ssl.get_server_certificate((host, int(port))) != before, 10, 'the new certificate is shown', every=0.3)
    assert 'security.reloaded' in cluster.log_text()
    list(running)
    cluster.generate(request(PROMPT, max_tokens=4))
    (folder.path / 'tokens').write_text('nothing\n')         # cannot be used: the old one is kept, and said
    wait_until(lambda: code_of_token(cluster, folder) and 'security.kept' in cluster.log_text(), 10, 'the old tokens are kept', every=0.3)
    folder.secret('tokens', f'{TOKEN_ROOT} root admin\n')
    wait_until(lambda: not code_of_token(cluster, folder), 10, 'the token is taken back', every=0.3)


def code_of_token(cluster, folder):
    with folder.channel(cluster.server) as channel:
        return code_of(channel, '/baton.v1.Inference/ListModels', bearer(TOKEN_A)) == grpc.StatusCode.OK


def logs_say_nothing(args, cluster, folder, texts):
    for bad in (dict(temperature=-5.0), dict(top_p=7.0)):
        with contextlib.suppress(grpc.RpcError):
            cluster.generate(request(PROMPT, **bad))
    log = cluster.log_text()
    assert len(log) > 5000 and re.search(r'call.refused peer=ipv4:127.0.0.1:\d+ method=/baton', log), len(log)
    secrets = [PROMPT, PROMPT.split()[0], TOKEN_A, TOKEN_ROOT, *texts]
    secrets += [line for key in folder.path.glob('*.key') for line in key.read_text().splitlines()[1:-1]]
    for s in secrets:
        assert s not in log, f'in the log: {s!r}'
    for pid in [cluster.process.pid, *children(cluster.process.pid)]:
        words = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().decode()
        assert not any(s in words for s in secrets), words


def etcd_with_tls(args, folder):
    """A node and a coordinator that find each other through an etcd that wants certificates."""
    if not shutil.which('etcd'):
        print('no etcd here: not asked over TLS')
        return
    run(args, 'certs', 'coordinator', 'etcd', '--hosts', '127.0.0.1', '--dir', folder.path)
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
    client, peer = (f'127.0.0.1:{s.getsockname()[1]}' for s in sockets)
    for s in sockets:
        s.close()
    command = ['etcd', '--name', 'm', '--data-dir', folder.path / 'etcd', '--listen-client-urls', f'https://{client}',
               '--advertise-client-urls', f'https://{client}', '--listen-peer-urls', f'http://{peer}', '--initial-cluster', f'm=http://{peer}',
               '--initial-advertise-peer-urls', f'http://{peer}', '--cert-file', folder.path / 'etcd.crt', '--key-file', folder.path / 'etcd.key',
               '--trusted-ca-file', folder.path / 'ca.crt', '--client-cert-auth', '--log-level', 'error', '--logger', 'zap']
    with tempfile.TemporaryFile() as log:
        etcd = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            def flags(name):
                return ['--registry', f'etcd://{client}/tls', '--etcd-ca', folder.path / 'ca.crt', '--etcd-cert', folder.path / f'{name}.crt',
                        '--etcd-key', folder.path / f'{name}.key', *folder.flags(name)]
            with node(args, 'decode', 'decode-1', '--tp', 2, *flags('n1')):
                with process(args, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--http', 'off', '--expect-decode', 1,
                             *flags('c1')) as server:
                    assert 'decode-1' in run(args, 'nodes', '--server', server, *folder.flags('ops'))
        finally:
            etcd.kill()
            etcd.wait()
    print('etcd over TLS')


# ---- between a prefill and a decode node ----------------------------------------------------------------------------

HEADER, SEAL = 64, 24                                        # kvtransfer/frame.c


class Relay:
    """Carries a prefill node's KV links to a decode node's port and keeps what it sees; with flip, one bit of the next
    frame's payload is another one."""

    def __init__(self):
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.address = '127.0.0.1:%d' % self.listener.getsockname()[1]
        self.target, self.flip, self.seen = None, False, []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return                                       # closed
            far = connect(self.target)
            self.seen.append(bytearray())
            for way in ((near, far, self.seen[-1]), (far, near, None)):
                threading.Thread(target=self.carry, args=way, daemon=True).start()

    def carry(self, source, sink, seen):
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                if seen is not None:
                    seen += data
                    if self.flip and len(data) > HEADER + SEAL + 100:
                        data[HEADER + SEAL + 100] ^= 16
                        self.flip = False
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def frames(stream):
    """(kind, sealed, payload) of each whole frame of a link."""
    at = 0
    while at + HEADER <= len(stream):
        kind, flags, bytes = stream[at + 5], stream[at + 6], struct.unpack_from('<I', stream, at + 52)[0]
        body = at + HEADER + (SEAL if flags & 1 else 0)
        yield kind, flags & 1, stream[body:body + bytes]
        at = body + bytes


@contextlib.contextmanager
def stand_in(node_pb, relay, address, channel, credentials):
    """A decode node to the coordinator: the one at address, but its pages arrive at the relay."""

    def forward(path):
        def handler(request, context):
            call = channel.unary_stream(path)(request)
            context.add_callback(call.cancel)
            try:
                for message in call:
                    if path.endswith('/Decode'):
                        event = node_pb.DecodeEvent.FromString(message)
                        if event.HasField('reserved') and event.reserved.ticket:
                            relay.target, event.reserved.kv_address = event.reserved.kv_address, relay.address
                            keys.append(event.reserved.kv_key)
                        message = event.SerializeToString()
                    yield message
            except grpc.RpcError as e:
                context.abort(e.code(), e.details())
        return grpc.unary_stream_rpc_method_handler(handler)

    keys = []
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    service = 'baton.node.v1.Node'
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
        service, {name: forward(f'/{service}/{name}') for name in ('Decode', 'Watch', 'Control')})])
    port = server.add_secure_port('127.0.0.1:0', credentials) if credentials else server.add_insecure_port('127.0.0.1:0')
    server.start()
    yield f'127.0.0.1:{port}', keys
    server.stop(None)


def with_relay(args, folder, node_pb, story):
    """story(client, relay, keys) for a cluster whose pages go through a relay; folder None: without TLS."""
    def flags(name):
        return folder.flags(name) if folder else []

    relay = Relay()
    with node(args, 'prefill', 'prefill-1', '--no-prefix-cache', *flags('n1')) as p, \
            node(args, 'decode', 'decode-1', '--no-prefix-cache', *flags('here')) as d:     # Python checks the host
        channel = folder.channel(d, 'c1') if folder else grpc.insecure_channel(d)
        credentials = folder and grpc.ssl_server_credentials([(folder.read('n1.key'), folder.read('n1.crt'))], folder.read('ca.crt'), True)
        with stand_in(node_pb, relay, d, channel, credentials) as (face, keys):
            with process(args, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--http', 'off', '--nodes', f'{p},{face}',
                         '--expect-prefill', 1, '--expect-decode', 1, '--prefill-policy', 'remote', *flags('here')) as server:
                with Client(server) as client:
                    if folder:
                        ask_as(client, folder.channel(server, 'ops'))
                    result = story(client, relay, keys)
                    client.pages_back(5)
        channel.close()
    relay.listener.close()
    return result


def somebody_between(args, folder):
    node_pb, _ = stubs('node')
    ask = request(tokens=[(7 * i) % 200 + 3 for i in range(100)], max_tokens=12)

    def clear(client, relay, keys):
        tokens, _, finish = client.generate(ask)
        assert keys == [b''] and len(relay.seen) == 1, (keys, relay.seen)
        found = [f for f in frames(relay.seen[0]) if f[0] == 2]
        assert found and not any(sealed for _, sealed, _ in found)
        return tokens, b''.join(payload for *_, payload in found)

    def sealed(client, relay, keys):
        assert client.generate(ask)[0] == expected
        assert [len(k) for k in keys] == [32] and len(relay.seen) == 1
        found = [f for f in frames(relay.seen[0]) if f[0] in (2, 3, 4)]
        assert len(found) > 1 and all(sealed for _, sealed, _ in found), found
        assert sum(len(payload) for *_, payload in found) == len(rows)
        pieces = {rows[at:at + 16] for at in range(0, len(rows), 16)}
        pieces -= {b'\0' * 16}
        assert len(pieces) > 100 and not any(piece in relay.seen[0] for piece in pieces)
        assert client.counter('decode-1', 'baton_kv_frames_refused_total') == 0
        relay.flip = True                                    # the same again, and one bit on its way is another
        assert client.generate(ask)[0] == expected
        assert not relay.flip
        wait_until(lambda: client.counter('decode-1', 'baton_kv_frames_refused_total', 'reason="tag"') == 1, 5, 'it is counted')
        assert client.counter('decode-1', 'baton_kv_frames_refused_total') == 1
        assert len(set(keys)) == len(keys) >= 2              # of a ticket each

    expected, rows = with_relay(args, None, node_pb, clear)
    with_relay(args, folder, node_pb, sealed)
    print(f'{len(rows)} bytes of rows, none of them seen on the wire')


def far_away(args, folder):
    """Where KV pages may be listened for beyond loopback: with TLS, where they are sealed. 192.0.2.1 is nobody's."""
    listen = ['decode', '--model', args.model, '--listen', '127.0.0.1:0', '--kv-listen', '192.0.2.1:0']
    assert 'travels unencrypted' in run(args, *listen, code=2)
    assert 'UCX believes' in run(args, *listen, '--kv-transport', 'ucx', *folder.flags('n1'), code=2)
    assert 'KV listen address "192.0.2.1:0"' in run(args, *listen, *folder.flags('n1'), code=1)


args = arguments()
with tempfile.TemporaryDirectory(prefix='bt-certs-') as top:
    os.mkdir(f'{top}/fresh')
    folder, other = Folder(args, f'{top}/certs'), Folder(args, f'{top}/other')
    certificates_are_kept(args, folder)
    for name in ('ca.crt', 'ca.key'):
        shutil.copy(folder.path / name, f'{top}/fresh')
    with SecureCluster(args, folder, '--log-level', 'debug') as cluster:
        _, text, _ = cluster.generate(request(PROMPT, max_tokens=24))
        commands(args, cluster, folder, other)
        everybody_is_checked(cluster, folder, other)
        print(f'{census(cluster)} ports, all on loopback')
        renewal(args, cluster, folder, pathlib.Path(f'{top}/fresh'))
        logs_say_nothing(args, cluster, folder, [text] if len(text) > 12 else [])
        cluster.pages_back()
    far_away(args, folder)
    somebody_between(args, folder)
    etcd_with_tls(args, folder)
    ranks = ['--prefill-tp', 2, '--decode-tp', 3, '--prefill-policy', 'remote', '--no-prefix-cache']
    with Cluster(args, *ranks) as cluster:                   # and as it comes, with ranks
        expected, _, _ = cluster.generate(request(PROMPT, max_tokens=4))
        print(f'{census(cluster)} ports, all on loopback')
    with SecureCluster(args, folder, *ranks) as cluster:     # each of them has the ticket's key
        assert cluster.generate(request(PROMPT, max_tokens=4))[0] == expected
        wait_until(lambda: all(r.kv_bytes_in > 0 for r in cluster.node('decode-1').ranks), 5, 'each rank has told what came to it')
        assert cluster.counter('decode-1', 'baton_kv_frames_refused_total') == 0
