"""deploy/hosts.sh, on three hosts that are network namespaces: etcd's three members, a coordinator, a prefill and a decode node,
with TLS; pages travel sealed. Installed, started, started again, asked from outside, stopped; then nothing is left. And the example of
deploy/README.md as it stands there, but for its addresses.

    bt-hub-PID (this script, a client)
      br0 --- bt-a-PID  e1, c1
          |-- bt-b-PID  e2, p1
          `-- bt-c-PID  e3, d1
"""
import json, tarfile

from harness import *
from netns import *

HUB, A, B, C = (f'bt-{name}-{os.getpid()}' for name in ('hub', 'a', 'b', 'c'))
PROMPT = ','.join(str(i) for i in range(100, 200))
HOSTS = f"""# three hosts
e1 {A} etcd {address(0)}
e2 {B} etcd {address(1)}
e3 {C} etcd {address(2)}
c1 {A} coordinator {address(0)}:50051 --prefill-policy remote --http off --expect-prefill 1 --expect-decode 1
p1 {B} prefill {address(1)}:50100 --kv-pages 256 --threads 1
d1 {C} decode {address(2)}:50100 --kv-pages 256 --threads 1 --no-prefix-cache
"""


def run(*words, env=None, code=0):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=180, env={**os.environ, **(env or {})})
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done


def generate(args, *flags):
    words = [args.baton, 'generate', '--tokens', PROMPT, '--max-tokens', 40, '--ignore-eos', '--json', *flags]
    return json.loads(run(*words).stdout)


def started(root):
    return {path.name: int(path.read_text()) for path in (root / 'run').iterdir()}


def recording_ssh(folder):
    """Stands for ssh: runs the command in the namespace, and keeps what tar is sent."""
    (folder / 'sent').mkdir()
    (folder / 'ssh').write_text(f"""#!/bin/sh
host=$1; shift
[ "$1" = tar ] || exec ip netns exec "$host" "$@"
tee "$(mktemp {folder}/sent/"$host".XXXXXX)" | ip netns exec "$host" "$@"
""")
    (folder / 'ssh').chmod(0o755)
    return str(folder / 'ssh')


def left_over(root):
    """Processes whose command names the folder."""
    found = []
    for entry in pathlib.Path('/proc').iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(root).encode() in (entry / 'cmdline').read_bytes():
                found.append((entry / 'cmdline').read_bytes())
    return found


def story(args, folder):
    root, certs, hosts = folder / 'root', folder / 'certs', folder / 'hosts'
    hosts.write_text(HOSTS)
    run(args.baton, 'certs', 'ca', '--dir', certs)
    run(args.baton, 'certs', 'coordinator', 'c1', '--dir', certs)
    run(args.baton, 'certs', 'node', 'p1', '--dir', certs)
    run(args.baton, 'certs', 'node', 'd1', '--dir', certs)
    run(args.baton, 'certs', 'client', 'someone', '--dir', certs)
    script = ROOT / 'deploy' / 'hosts.sh'
    env = {'SSH': 'ip netns exec', 'ROOT': str(root), 'CERTS': str(certs), 'MODEL': args.model, 'BATON': os.path.abspath(args.baton)}
    run(script, hosts, 'install', env=env)
    assert 'kv-pages: "256"\n' in (root / 'etc/baton/d1.yaml').read_text() and (root / 'etc/baton/d1.env').read_text() == 'ROLE=decode\n'
    try:
        run(script, hosts, 'start', env=env)
        first = started(root)
        again = run(script, hosts, 'start', env=env).stdout
        assert sorted(re.findall(r'^(\w+) runs already, process (\d+)$', again, re.M)) == sorted((n[:-4], str(p)) for n, p in first.items()), again
        assert started(root) == first and len(first) == 6 and all(alive(pid) for pid in first.values())
        shown = run(script, hosts, 'status', env=env).stdout.split('\n')
        assert len([line for line in shown if line.endswith(' active')]) == 6, shown
        server = ('--server', f'{address(0)}:50051', '--tls-ca', certs / 'ca.crt')
        answer = generate(args, *server, '--tls-cert', certs / 'someone.crt', '--tls-key', certs / 'someone.key')
        # The tiny model's answer may be over before the prefill node's first token was heard: its pages are what counts.
        assert answer['nodes']['decode'] == 'd1', answer['nodes']
        assert 'decode.landed tokens=99 status=ST_OK' in (root / 'log' / 'd1').read_text()
        with Cluster(args) as alone:
            assert generate(args, '--server', alone.server)['tokens'] == answer['tokens']
        denied = subprocess.run([args.baton, 'generate', '--tokens', '1', *map(str, server)], capture_output=True, text=True, timeout=60)
        assert denied.returncode == 4, (denied.returncode, denied.stderr)
        run(script, hosts, 'stop', 'p1', env=env)
        assert re.search(r'^p1 .* inactive$', run(script, hosts, 'status', env=env).stdout, re.M)
        run(script, hosts, 'start', 'p1', env=env)
    finally:
        run(script, hosts, 'stop', env=env)
    assert not left_over(root), left_over(root)
    hosts.write_text(HOSTS.replace('p1', 'd1'))
    assert 'd1 stands there twice' in run(script, hosts, 'start', env=env, code=1).stderr


def example():
    """The commands of deploy/README.md under 'Several hosts'."""
    text = (ROOT / 'deploy' / 'README.md').read_text().partition('## Several hosts')[2]
    return text.split('```')[1]


def documented(args, folder):
    """A token's file goes along. Where two processes share a host, the model comes to it once."""
    root, token = folder / 'root', 'token-of-team-a-9b1c7e'
    commands = example()
    for i, host in enumerate((A, B, C)):
        commands = commands.replace(f'10.0.0.{i + 1}', address(i)).replace(f'host-{"abc"[i]}', host)
    assert '10.0.0.' not in commands and 'host-' not in commands, commands
    commands = commands.replace('8192\nEND', f'8192\nd2  {C}  decode  {address(2)}:50101  --kv-pages 64\nEND') \
        .replace('certs node d1', 'certs node d1 && build/baton certs node d2')
    (folder / 'build').mkdir()
    (folder / 'build' / 'baton').symlink_to(os.path.abspath(args.baton))
    (folder / 'deploy').symlink_to(ROOT / 'deploy')
    for name in 'tokens', 'token':
        (folder / name).write_text(token + (' team-a\n' if name == 'tokens' else '\n'))
        (folder / name).chmod(0o600)
    env = {**os.environ, 'SSH': recording_ssh(folder), 'ROOT': str(root), 'MODEL': os.path.abspath(args.model), 'TOKENS': 'tokens',
           'BATON': os.path.abspath(args.baton)}
    try:
        done = subprocess.run(['bash', '-e'], input=commands, capture_output=True, text=True, timeout=180, env=env, cwd=folder)
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        assert re.search(r'^p1 +prefill +ready ', done.stdout, re.M) and re.search(r'^d1 +decode +ready ', done.stdout, re.M), done.stdout
        ask = [args.baton, 'generate', '--server', f'{address(0)}:50051', '--tls-ca', folder / 'certs/ca.crt', '--prompt', 'x']
        run(*ask, '--token-file', folder / 'token', '--max-tokens', 4)
        assert 'no credential' in run(*ask, code=4).stderr
    finally:
        run(folder / 'deploy/hosts.sh', folder / 'hosts', 'stop', env={**env, 'CERTS': str(folder / 'certs')})
    assert not left_over(root), left_over(root)
    sent = {host: [] for host in (A, B, C)}
    for path in sorted((folder / 'sent').iterdir()):
        with tarfile.open(path) as tar:
            sent[path.name.rpartition('.')[0]] += [m for m in tar.getmembers() if m.isfile()]
    for host, files in sent.items():
        models = [m for m in files if os.path.basename(m.name) == os.path.basename(args.model)]
        assert [m.size for m in models] == [os.path.getsize(args.model)], (host, models)
        keys = {os.path.basename(m.name) for m in files if m.name.endswith('.key')}
        assert keys == {A: {'c1.key'}, B: {'p1.key'}, C: {'d1.key', 'd2.key'}}[host], (host, keys)


def packages(folder):
    """What a host is asked to install, by an ssh that only writes it down: nothing here is changed, there is no ROOT."""
    asked = folder / 'asked'
    asked.mkdir()
    (folder / 'ssh').write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} >"$(mktemp {asked}/XXXXXX)"\n')
    (folder / 'ssh').chmod(0o755)
    (folder / 'hosts').write_text(HOSTS + f'd2 {C} decode {address(2)}:50101\n')
    run(ROOT / 'deploy' / 'hosts.sh', folder / 'hosts', 'install', env={'SSH': str(folder / 'ssh'), 'ROOT': '', 'MODEL': '/dev/null', 'BATON': '/dev/null'})
    script = (ROOT / 'deploy' / 'install.sh').read_text()
    installs = sorted(text.partition('\n')[0] for text in (path.read_text(errors='replace') for path in asked.iterdir()) if text.endswith(script))
    assert installs == sorted(f'{host} bash -s {what}' for host in (A, B, C) for what in ('etcd', 'runtime')), installs


def main():
    args = arguments()
    permitted()
    needs('etcd', 'etcd-server')
    with namespaces(HUB, (A, B, C)), tempfile.TemporaryDirectory(prefix='bt-hosts-') as folder:
        enter(HUB)
        for part in 'story', 'documented', 'packages':
            (pathlib.Path(folder) / part).mkdir()
        packages(pathlib.Path(folder) / 'packages')
        story(args, pathlib.Path(folder) / 'story')
        documented(args, pathlib.Path(folder) / 'documented')


if __name__ == '__main__':
    main()
