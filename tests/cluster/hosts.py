"""deploy/hosts.sh, on three hosts that are network namespaces: etcd's three members, a coordinator, a prefill and a decode node,
with TLS; pages travel sealed. Installed, started, asked from outside, stopped; then nothing is left.

    bt-hub-PID (this script, a client)
      br0 --- bt-a-PID  e1, c1
          |-- bt-b-PID  e2, p1
          `-- bt-c-PID  e3, d1
"""
import json, shutil

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


def main():
    args = arguments()
    permitted()
    if not shutil.which('etcd'):
        skip('no `etcd` here (package etcd-server)')
    with namespaces(HUB, (A, B, C)), tempfile.TemporaryDirectory(prefix='bt-hosts-') as folder:
        enter(HUB)
        story(args, pathlib.Path(folder))


if __name__ == '__main__':
    main()
