"""Who is let in: a cluster with TLS made by `baton certs`, asked by everybody with everything; what it listens on; what its
logs say.

    python tests/cluster/security.py [--baton build/baton] [--model FILE]
"""
import glob, ipaddress, json, shutil, ssl, struct

from google.protobuf import descriptor_pb2

from harness import *

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


class SecureCluster(Cluster):
    def __init__(self, args, folder, *flags):
        super().__init__(args, *folder.flags('here'), '--tokens-file', folder.path / 'tokens', *flags)
        self.channel.close()
        self.channel = folder.channel(self.server, 'ops')
        self.inference = pb_grpc.InferenceStub(self.channel)
        self.control = pb_grpc.ClusterStub(self.channel)


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


def listeners(pids):
    """(pid, protocol, address, port) of every TCP socket that they listen on, and every UDP socket they have."""
    inodes = {}
    for pid in pids:
        for fd in glob.glob(f'/proc/{pid}/fd/*'):
            with contextlib.suppress(FileNotFoundError):
                inodes.setdefault(os.readlink(fd), set()).add(pid)
    found = set()
    for table in ('tcp', 'tcp6', 'udp', 'udp6'):
        for line in pathlib.Path(f'/proc/net/{table}').read_text().splitlines()[1:]:
            word = line.split()
            if f'socket:[{word[9]}]' not in inodes or (table.startswith('tcp') and word[3] != '0A'):
                continue
            digits, port = word[1].split(':')
            words = struct.unpack(f'={len(digits) // 8}I', bytes.fromhex(digits))    # in the order of this machine
            address = ipaddress.ip_address(struct.pack(f'>{len(words)}I', *words))
            address = getattr(address, 'ipv4_mapped', None) or address
            found |= {(pid, table[:3], str(address), int(port, 16)) for pid in inodes[f'socket:[{word[9]}]']}
    return found


def children(pid):
    found = []
    for task in glob.glob(f'/proc/{pid}/task/*/children'):
        for child in pathlib.Path(task).read_text().split():
            found += [int(child), *children(int(child))]
    return found


def census(cluster):
    """gRPC and HTTP of each process and KV of each rank of a node, all told by Topology or the log; on loopback."""
    def ports(text):
        return {int(a.rpartition(':')[2]) for a in text.split(',')}
    documented = ports(cluster.server) | {p for a in re.findall(r'http.listening address=(\S+)', cluster.log_text()) for p in ports(a)}
    for n in cluster.nodes():
        if n.role != 'coordinator':
            documented |= ports(n.address) | ports(n.kv_address)
    found = listeners([cluster.process.pid, *children(cluster.process.pid)])
    assert {f[3] for f in found} == documented, (found, documented)
    assert {f[1:3] for f in found} == {('tcp', '127.0.0.1')}, found
    print(f'{len(documented)} ports, all on loopback')


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
    assert len(log) > 5000 and 'call.denied' in log, len(log)
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
        census(cluster)
        renewal(args, cluster, folder, pathlib.Path(f'{top}/fresh'))
        logs_say_nothing(args, cluster, folder, [text] if len(text) > 12 else [])
        cluster.pages_back()
    etcd_with_tls(args, folder)
    with Cluster(args, '--prefill-tp', 2) as cluster:        # and as it comes, with ranks
        cluster.generate(request(PROMPT, max_tokens=4))
        census(cluster)
