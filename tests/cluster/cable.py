"""What can be wrong with a host's cable, and how one sees that it was. A host stands in a namespace: its end of the cable is eth0 there, the
other end `port` in the hub, on the bridge (netns.py).

Packets are dropped where they arrive: what a host sends at the hub's end, what is sent to it at eth0. So they are lost on
the way, as in a network; dropped at the sender, its TCP would be told. Each packet dropped is counted.

A delay is relay.py's: this kernel may have no netem."""
import json, os, re, socket, subprocess, sys, time

from netns import ip

TABLE = 'fault'


def run(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def plain_packets(hub, port, namespace):
    """Without this "1 % loss" drops one of a hundred 64 KiB super-packets."""
    ip('-n', namespace, 'link', 'set', 'eth0', 'gso_max_size', '1500', 'gso_max_segs', '1')
    ip('-n', hub, 'link', 'set', port, 'gso_max_size', '1500', 'gso_max_segs', '1')


def lacking():
    """What this kernel cannot do to a cable; None: it can."""
    name = f'bt-probe-{os.getpid()}'
    ip('netns', 'add', name)
    try:
        run('ip', 'netns', 'exec', name, 'nft', 'add table netdev t; add chain netdev t c { type filter hook ingress device "lo" priority 0; }; '
            'add rule netdev t c numgen random mod 1000 < 10 counter drop')
        run('tc', '-n', name, 'qdisc', 'add', 'dev', 'lo', 'root', 'tbf', 'burst', '4kb', 'latency', '200ms', 'rate', '1mbit')
    except subprocess.CalledProcessError as e:
        return f'{" ".join(e.cmd[:6])} ...: {e.stderr.strip()}'
    finally:
        ip('netns', 'del', name)
    return None


class Dropped:
    """Packets of one direction, or both, of which `which` says which (all, if nothing). how: what happens to them."""

    def __init__(self, what, out, back, which='', how='drop'):
        self.what, self.out, self.back, self.which, self.how = what, out, back, which, how

    def places(self, host):
        return [(host.hub, host.port)] * self.out + [(host.namespace, 'eth0')] * self.back

    def begin(self, host):
        for namespace, device in self.places(host):
            run('ip', 'netns', 'exec', namespace, 'nft', f'add table netdev {TABLE}; add chain netdev {TABLE} drops '
                f'{{ type filter hook ingress device "{device}" priority 0; }}; add rule netdev {TABLE} drops {self.which} counter {self.how}')

    def happened(self, host):
        """What it has done; None: nothing, in one direction at least."""
        told = []
        for namespace, _ in self.places(host):
            try:
                rules = run('ip', 'netns', 'exec', namespace, 'nft', 'list', 'table', 'netdev', TABLE)
            except subprocess.CalledProcessError:
                return None
            packets, size = map(int, re.search(rf'counter packets (\d+) bytes (\d+) {self.how}', rules).groups())
            if not packets:
                return None
            assert size <= 1600 * packets, f'super-packets: {size} bytes in {packets} packets'
            told.append(str(packets))
        return f'{" + ".join(told)} packets: {self.how}'

    def end(self, host):
        for namespace, _ in self.places(host):
            run('ip', 'netns', 'exec', namespace, 'nft', 'delete', 'table', 'netdev', TABLE)


class Slow:
    """Both ends send so many bits a second; rates: of roles that would not notice."""

    def __init__(self, what, rate, **rates):
        self.what, self.rate, self.rates = what, rate, rates

    @staticmethod
    def places(host):
        return [(host.hub, host.port), (host.namespace, 'eth0')]

    def begin(self, host):
        for namespace, device in self.places(host):
            run('tc', '-n', namespace, 'qdisc', 'add', 'dev', device, 'root', 'tbf', 'burst', '4kb', 'latency', '200ms',
                'rate', self.rates.get(host.role, self.rate))

    def happened(self, host):
        told = []
        for namespace, device in self.places(host):
            shown = [q for q in json.loads(run('tc', '-n', namespace, '-s', '-j', 'qdisc', 'show', 'dev', device)) if q['kind'] == 'tbf']
            if not shown:
                return None
            told.append((shown[0]['overlimits'], shown[0]['drops']))
        return f'packets that waited/were dropped: {told[0][0]}/{told[0][1]} and {told[1][0]}/{told[1][1]}' if any(t[0] for t in told) else None

    def end(self, host):
        for namespace, device in self.places(host):
            run('tc', '-n', namespace, 'qdisc', 'del', 'dev', device, 'root')


class Delayed:
    """Each packet comes so much later, both ways. late_s: how much later than that one came, where the relay had no processor."""

    def __init__(self, what, ms):
        self.what, self.ms, self.relay, self.late_s = what, ms, None, 0.0

    def switch(self, host, *lines):
        subprocess.run(['ip', '-n', host.hub, '-batch', '-'], input='\n'.join(lines), check=True, text=True)

    def begin(self, host):
        within = ('ip', 'netns', 'exec', host.hub)
        script = os.path.join(os.path.dirname(__file__), 'relay.py')
        self.relay = subprocess.Popen([*within, sys.executable, script, host.port, str(self.ms)], stdout=subprocess.PIPE, text=True)
        tap = self.relay.stdout.readline().strip()
        assert tap, 'no relay'
        self.switch(host, f'link set {host.port} nomaster', f'link set {tap} master br0 up')
        run(*within, 'nft', f'add table netdev {TABLE}; add chain netdev {TABLE} only_the_relay '
            f'{{ type filter hook ingress device "{host.port}" priority 0; policy drop; }}')

    def happened(self, host):
        """A handshake takes a packet there and one back."""
        began = time.monotonic()
        socket.create_connection((host.address, host.listens), timeout=10).close()
        took = time.monotonic() - began
        return f'a handshake took {took:.2f} s' if took >= 2 * self.ms / 1000 else None

    def end(self, host):
        self.relay.terminate()
        self.switch(host, f'link set {host.port} master br0')
        run('ip', 'netns', 'exec', host.hub, 'nft', 'delete', 'table', 'netdev', TABLE)
        self.late_s = int(self.relay.communicate(timeout=10)[0]) / 1000
