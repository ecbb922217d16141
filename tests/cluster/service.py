"""baton as a service of systemd: READY=1 once it serves, STOPPING=1 when it drains, both from the process that systemd started
and from no other; and the unit in deploy/ is one (systemd-analyze verify, where that is there)."""
import shutil, struct

from harness import *

args = arguments()


def heard(sock, count, seconds):
    """The next so many notifications: [(pid, text)]."""
    sock.settimeout(seconds)
    out = []
    for _ in range(count):
        text, extra, _, _ = sock.recvmsg(200, socket.CMSG_SPACE(struct.calcsize('3i')))
        out.append((struct.unpack('3i', extra[0][2])[0], text.decode()))
    return out


with tempfile.TemporaryDirectory(prefix='bt-') as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.bind(f'{folder}/notify')
    for command, *flags in (('up',), ('decode',), ('coordinator', '--nodes', '127.0.0.1:9')):
        p = subprocess.Popen([args.baton, command, '--model', args.model, '--listen', '127.0.0.1:0', '--http', 'off', '--log-level', 'error', *flags],
                             stdout=subprocess.DEVNULL, env={**os.environ, 'NOTIFY_SOCKET': f'{folder}/notify'})
        try:
            assert heard(sock, 1, 60) == [(p.pid, 'READY=1')], command
            assert p.poll() is None
            p.send_signal(signal.SIGTERM)
            assert heard(sock, 1, 30) == [(p.pid, 'STOPPING=1')], command
            assert p.wait(30) == 0
        finally:
            p.kill()
            p.wait()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(f'{command}: one more notification: {sock.recv(200)}')

    if shutil.which('systemd-analyze'):
        unit = (ROOT / 'deploy' / 'systemd' / 'baton@.service').read_text()
        assert '/usr/local/bin/baton ' in unit
        path = pathlib.Path(folder) / 'baton@.service'
        path.write_text(unit.replace('/usr/local/bin/baton ', f'{os.path.realpath(args.baton)} '))
        done = subprocess.run(['systemd-analyze', 'verify', '--man=no', path], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and not done.stderr.strip(), done.stderr
        print('systemd-analyze: nothing to say')
    else:
        print('systemd-analyze: not here, its check is skipped')
