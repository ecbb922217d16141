"""Hosts as network namespaces: a hub with a bridge (where the test itself runs, if it enters it), the others on cables to it."""
import contextlib, ctypes, os, subprocess

from harness import needs, skip


def ip(*words):
    subprocess.run(['ip', *words], check=True, capture_output=True, text=True)


def enter(namespace):
    """This thread, and what it starts from now on."""
    with open(f'/run/netns/{namespace}') as f:
        if ctypes.CDLL(None, use_errno=True).setns(f.fileno(), 0x40000000):      # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), 'setns')


@contextlib.contextmanager
def namespaces(hub, others):
    """others: names. Addresses come from address()."""
    try:
        for name in (hub, *others):
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('-n', hub, 'link', 'add', 'br0', 'type', 'bridge')
        for i, name in enumerate(others):
            ip('-n', hub, 'link', 'add', f'p{i}', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name)
            ip('-n', hub, 'link', 'set', f'p{i}', 'master', 'br0', 'up')
            ip('-n', name, 'address', 'add', f'{address(i)}/24', 'dev', 'eth0')
            ip('-n', name, 'link', 'set', 'eth0', 'up')
        ip('-n', hub, 'address', 'add', f'{address()}/24', 'dev', 'br0')
        ip('-n', hub, 'link', 'set', 'br0', 'up')
        yield
    finally:
        for name in (hub, *others):
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)


def address(i=None):
    """Of the i-th of the others; without: the hub's."""
    return '10.177.0.1' if i is None else f'10.177.0.{10 + i}'


def permitted():
    needs('ip', 'iproute2')
    name = f'bt-probe-{os.getpid()}'
    tried = subprocess.run(['ip', 'netns', 'add', name], capture_output=True, text=True)
    subprocess.run(['ip', 'netns', 'del', name], capture_output=True)
    if tried.returncode:
        skip(f'network namespaces are not permitted: {tried.stderr.strip()}')
