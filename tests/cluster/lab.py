"""A cluster over hosts that are network namespaces: two coordinators, two prefill and two decode nodes, three members of etcd.

    bt-hub-PID (the test, its clients)
      br0 -+- bt-c1-PID, bt-c2-PID      coordinators       each at ADDRESS:7001
           |- bt-p1-PID, bt-p2-PID      prefill nodes
           |- bt-d1-PID, bt-d2-PID      decode nodes
           `- bt-e1-PID ... bt-e3-PID   etcd

Decode nodes keep no prefixes, so that each request moves pages; everything else is as users get it.
"""
import contextlib, os

from cable import plain_packets
from etcd_member import Member
from harness import *
from netns import address

NAMES = ('c1', 'c2', 'p1', 'p2', 'd1', 'd2', 'e1', 'e2', 'e3')
ROLES = {'c': 'coordinator', 'p': 'prefill', 'd': 'decode', 'e': 'etcd'}
HUB = f'bt-hub-{os.getpid()}'
NAMESPACES = [f'bt-{name}-{os.getpid()}' for name in NAMES]
GRPC, KV, ETCD, PEER = 7001, 7002, 2379, 2380
START_S = 30


class Host:
    """One namespace with one process."""

    def __init__(self, place, name, listens):
        self.name, self.role, self.hub, self.listens = name, ROLES[name[0]], HUB, listens
        self.namespace, self.port, self.address = NAMESPACES[place], f'p{place}', address(place)
        self.within = ['ip', 'netns', 'exec', self.namespace]
        plain_packets(HUB, self.port, self.namespace)


class EtcdHost(Host):
    def __init__(self, place, name, directory):
        super().__init__(place, name, ETCD)
        cluster = ','.join(f'{n}=http://{address(i)}:{PEER}' for i, n in enumerate(NAMES) if n[0] == 'e')
        self.member = Member(name, ETCD, PEER, cluster, f'{directory}/{name}', self.address, self.within)

    def start(self):
        self.member.start()

    @property
    def process(self):
        return self.member.process

    def log(self):
        return pathlib.Path(self.member.log.name).read_text()


class BatonHost(Host):
    def __init__(self, place, name, args, directory, registry):
        super().__init__(place, name, GRPC)
        self.log_path, self.process = f'{directory}/{name}.log', None
        at = ['--listen', f'{self.address}:{GRPC}', '--insecure', '--http', 'off']
        if self.role == 'coordinator':
            flags = ['--prefill-policy', 'remote', '--expect-prefill', 2, '--expect-decode', 2]
        else:
            flags = ['--kv-listen', f'{self.address}:{KV}', '--threads', 1, '--kv-pages', 4096]
        if self.role == 'decode':
            flags += ['--no-prefix-cache']
        self.command = [*self.within, args.baton, self.role, '--model', args.model, '--id', name, '--registry', registry, *at, *map(str, flags)]

    def start(self):
        with open(self.log_path, 'a') as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, text=True)

    def ready(self):
        line = self.process.stdout.readline()
        assert line.startswith('ready grpc='), (self.name, line, self.log()[-2000:])

    def log(self):
        return pathlib.Path(self.log_path).read_text()


class Lab:
    """Everything runs and is ready from here to the end of the context."""

    def __init__(self, args, directory):
        self.hosts = {n: EtcdHost(i, n, directory) for i, n in enumerate(NAMES) if n[0] == 'e'}
        registry = 'etcd://' + ','.join(f'{h.address}:{ETCD}' for h in self.hosts.values()) + '/lab'
        for h in self.hosts.values():
            h.member.ready()
        self.hosts |= {n: BatonHost(i, n, args, directory, registry) for i, n in enumerate(NAMES) if n[0] != 'e'}
        self.coordinators = []

    def __enter__(self):
        try:
            batons = [h for h in self.hosts.values() if h.role != 'etcd']
            for h in batons:
                h.start()
            for h in batons:
                h.ready()
            self.coordinators = [Client(f'{h.address}:{GRPC}') for h in batons if h.role == 'coordinator']
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for c in self.coordinators:
            c.channel.close()
        for h in self.hosts.values():
            if h.process and h.process.poll() is None:
                h.process.kill()
                h.process.wait()

    def nodes(self):
        """Of each coordinator: what it says of the nodes, by id."""
        return [{n.id: n for n in c.nodes() if n.role != 'coordinator'} for c in self.coordinators]

    def ready(self):
        """None, or what is missing: every coordinator says of every node that it is ready."""
        try:
            views = self.nodes()
        except grpc.RpcError as e:
            return f'a coordinator does not answer: {e.code()}'
        for view in views:
            if set(view) != {n for n in NAMES if n[0] in 'pd'}:
                return f'nodes are {sorted(view)}'
            for n in view.values():
                if n.state != 'ready':
                    return f'{n.id} is {n.state}'
        return None

    def healed(self):
        """None, or what is still wrong."""
        why = self.ready()
        if why:
            return why
        views = self.nodes()
        for view in views:
            for n in view.values():
                if n.running or n.waiting or n.pages.pinned or n.pages.free + n.pages.cached != n.pages.total:
                    return f'{n.id} runs {n.running}, {n.waiting} wait, pages {" ".join(str(n.pages).split())}'
        said = [{n.id: (n.role, n.state, n.epoch, n.address, n.pages.total) for n in view.values()} for view in views]
        if said[0] != said[1]:
            return f'coordinators differ: {said}'
        return next((f'{h.name} does not answer' for h in self.hosts.values() if h.role == 'etcd' and not h.member.answers()), None)
