"""What listens: every socket by which somebody could reach a process of baton, of `baton up` and of a cluster that etcd holds
together, is one that is documented (README, Security: Ports), and on loopback where nobody said otherwise. TCP, UDP and raw
sockets, and names in the Unix namespace, from /proc alone.

    python tests/cluster/listeners.py [--baton build/baton] [--model FILE]
"""
import contextlib, glob, ipaddress, shutil, struct

from etcd import Process
from etcd_member import etcd, free_ports
from harness import *

CORES = '@baton-up-cores'             # a name that is taken, so that two clusters of a machine do not pin the same cores
LISTENS = 0x10000                     # a flag of /proc/net/unix: SO_ACCEPTCON


def sockets(pids):
    """inode -> the processes that have it open."""
    found = {}
    for pid in pids:
        for fd in glob.glob(f'/proc/{pid}/fd/*'):
            with contextlib.suppress(FileNotFoundError):
                if (socket := re.fullmatch(r'socket:\[(\d+)\]', os.readlink(fd))):
                    found.setdefault(socket[1], set()).add(pid)
    return found


def table(name):
    with contextlib.suppress(FileNotFoundError):             # IPv6 may be off
        return [line.split() for line in pathlib.Path(f'/proc/net/{name}').read_text().splitlines()[1:]]
    return []


def listeners(pids):
    """(pid, protocol, address, port) of every TCP socket that they listen on, and every UDP or raw socket they have."""
    inodes, found = sockets(pids), set()
    for name in ('tcp', 'tcp6', 'udp', 'udp6', 'raw', 'raw6'):
        for word in table(name):
            if word[9] not in inodes or (name.startswith('tcp') and word[3] != '0A'):
                continue
            digits, port = word[1].split(':')
            words = struct.unpack(f'={len(digits) // 8}I', bytes.fromhex(digits))    # in the order of this machine
            address = ipaddress.ip_address(struct.pack(f'>{len(words)}I', *words))
            address = getattr(address, 'ipv4_mapped', None) or address
            found |= {(pid, name[:3], str(address), int(port, 16)) for pid in inodes[word[9]]}
    return found


def unix_names(pids):
    """Names in the Unix namespace, abstract ones with an @, that they have taken or listen on; '' for a listener without one."""
    inodes, found = sockets(pids), set()
    for word in table('unix'):
        name = word[7].rstrip('@') if len(word) > 7 else ''
        if word[6] in inodes and (name or int(word[3], 16) & LISTENS):
            found.add(name)
    return found


def children(pid):
    found = []
    for task in glob.glob(f'/proc/{pid}/task/*/children'):
        for child in pathlib.Path(task).read_text().split():
            found += [int(child), *children(int(child))]
    return found


def ports(text):
    return {int(a.rpartition(':')[2]) for a in text.split(',')}


def told(cluster, log):
    """gRPC and HTTP of each process and KV of each rank of a node, by Topology and the log."""
    found = ports(cluster.server) | {p for a in re.findall(r'http.listening address=(\S+)', log) for p in ports(a)}
    for n in cluster.nodes():
        if n.role != 'coordinator':
            found |= ports(n.address) | ports(n.kv_address)
    return found


def check(found, documented):
    """Returns how many ports."""
    assert {f[3] for f in found} == documented, (found, documented)
    assert {f[1:3] for f in found} == {('tcp', '127.0.0.1')}, found
    return len(documented)


def census(cluster):
    """Of `baton up` and its children; returns how many ports."""
    pids = [cluster.process.pid, *children(cluster.process.pid)]
    assert unix_names(pids) <= {CORES}, unix_names(pids)     # another cluster of this machine may have it
    return check(listeners(pids), told(cluster, cluster.log_text()))


def up(args):
    for what, flags in (('as it comes', []), ('without HTTP', ['--http', 'off']),
                        ('2 ranks each', ['--http', '127.0.0.1:0', '--prefill', 2, '--prefill-tp', 2, '--decode-tp', 2])):
        with Cluster(args, *flags) as cluster:
            cluster.generate(request(tokens=range(3, 200), max_tokens=4))
            print(f'baton up, {what}: {census(cluster)} ports, all on loopback')


def of_several_processes(args, folder):
    """As etcd holds them together; KV goes through shared memory, so that its ports are taken and nobody listens there."""
    if not shutil.which('etcd'):
        print('no etcd here: a cluster of separate processes was not looked at')
        return
    member, http = etcd(folder, 1)[0], ['--http', '127.0.0.1:0']
    start = lambda role, *flags: Process(args, folder, role, f'{role}-1', [member.endpoint], flags=[*http, *flags])
    nodes = [start('prefill', '--kv-transport', 'shm'), start('decode', '--kv-transport', 'shm', '--tp', 2)]
    coordinator = start('coordinator', '--expect-prefill', 1, '--expect-decode', 1, '--prefill-policy', 'remote')
    with Client(coordinator.address) as client:
        client.generate(request(tokens=range(3, 200), max_tokens=4))
        kv = {p for n in client.nodes() if n.kv_address for p in ports(n.kv_address)}
        pids = [p for started in (coordinator, *nodes) for p in (started.pid, *children(started.pid))]
        documented = told(client, ''.join(p.log() for p in (coordinator, *nodes))) - kv
        count = check(listeners(pids), documented)
        assert unix_names(pids) == {f'@baton-kv-{p}' for p in kv}, (unix_names(pids), kv)
    print(f'separate processes: {count} ports, all on loopback, and {len(kv)} names for KV')
    for p in (coordinator, *nodes):
        p.drain()
    member.kill()


def while_ranks_gather(args):
    """Two of three ranks that meet over TCP: the second listens for the third, and nowhere but where it reaches the first."""
    group = free_ports(1)[0]
    command = [args.baton, 'decode', '--model', args.model, '--tp', '3', '--group', f'127.0.0.1:{group}', '--listen', '127.0.0.1:0', '--http', 'off']
    ranks = [subprocess.Popen([*command, '--rank', str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for rank in (0, 1)]
    try:
        for p in ranks:
            wait_until(lambda: listeners([p.pid]), 20, 'a rank listens')
        found = listeners([p.pid for p in ranks])
        assert {f[3] for f in found if f[0] == ranks[0].pid} == {group}, found
        assert check(found, {f[3] for f in found}) == 2, found
    finally:
        for p in ranks:
            p.kill()
            p.wait()
    print('ranks that gather: one port each, on loopback')


if __name__ == '__main__':
    args = arguments()
    up(args)
    while_ranks_gather(args)
    with tempfile.TemporaryDirectory(prefix='bt-listeners-') as folder:
        of_several_processes(args, folder)
