"""Clients ask without a pause while the cluster under them changes: decode nodes go from 1 to 4 and back, then prefill nodes;
nodes are drained, undrained and given the other role at random; every process is stopped and started again, one after
another, nodes first. Nodes find their coordinators by etcd. Nothing is lost, every answer has the tokens that a lone node
gives, who joins has its share of the load within --spread seconds.

A client knows both coordinators and goes on at the other when its stream breaks (harness.resilient); nothing else is asked
twice. The orders are a function of --seed.

    python tests/cluster/scaling.py [--baton build/baton] [--model FILE] [--orders 12] [--rounds 1] [--clients 8]
                                      [--seed 1] [--route cost] [--spread 10]
"""
import collections, concurrent.futures, itertools, random, threading

from etcd import Process
from etcd_member import PATIENCE_S, etcd
from harness import *

PROMPTS = 32
WORDS = range(3, 259)                  # tokens that every model here has
# One decode node is just too small for the clients. Without a prefix cache every prompt is read by a prefill node, as new prompts are.
NODE_FLAGS = ['--threads', 1, '--no-prefix-cache', '--sequences', 6]
FLAGS = {'coordinator': ['--http', 'off', '--prefill-policy', 'remote'], 'prefill': NODE_FLAGS, 'decode': NODE_FLAGS}

Done = collections.namedtuple('Done', 'began ended decode prefill attempts resumed gap')


class Load:
    """Clients that ask one request after another. Of each prompt the longest answer is known from a node alone; a request
    wants a part of it."""

    def __init__(self, args, prompt):
        dice = random.Random(args.seed)
        self.prompts = [[dice.choice(WORDS) for _ in range(dice.randint(prompt // 2, prompt))] for _ in range(PROMPTS)]
        self.most, self.number, self.over = args.tokens, itertools.count(), threading.Event()
        self.done, self.failures = [], []
        with Cluster(args, '--prefill', 0, '--decode', 1, '--no-prefix-cache', '--http', 'off') as alone, \
                concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.want = [a[0] for a in pool.map(lambda i: alone.generate(self.asked(i, self.most, '')), range(PROMPTS))]

    def asked(self, i, max_tokens, id):
        return request(tokens=self.prompts[i], max_tokens=max_tokens, seed=i, temperature=float(i % 2), request_id=id)

    def start(self, clients, addresses):
        self.threads = [threading.Thread(target=self.run, args=(addresses[k % len(addresses):] + addresses[:k % len(addresses)],))
                        for k in range(clients)]
        for t in self.threads:
            t.start()

    def run(self, addresses):
        while not self.over.is_set():
            k = next(self.number)
            tokens, began = self.most // 2 + k * 37 % (self.most // 2), time.monotonic()
            try:
                a = resilient(addresses, self.asked(k % PROMPTS, tokens, f'scale-{k}'), PATIENCE_S)
                assert a.tokens == self.want[k % PROMPTS][:tokens], 'other tokens than alone'
                self.done.append(Done(began, time.monotonic(), a.finish.decode_node, a.finish.prefill_node, a.finish.attempts,
                                      a.resumed, a.gap))
            except Exception as e:
                self.failures.append(f'scale-{k} by {addresses}: {e}')

    def fine(self):
        assert not self.failures, f'{len(self.failures)} of {len(self.failures) + len(self.done)} requests: {self.failures[:3]}'

    def since(self, began):
        self.fine()
        return [d for d in self.done if d.began >= began]

    def goes_on(self):
        """As many as there are clients begin after now, and are answered."""
        now = time.monotonic()
        wait_until(lambda: self.failures or len(self.since(now)) >= len(self.threads), PATIENCE_S, 'requests go on')
        self.fine()

    def end(self):
        self.over.set()
        for t in self.threads:
            t.join()
        self.fine()


class Scene:
    """Two coordinators, and the nodes that there are."""

    def __init__(self, args, directory):
        self.args, self.directory = args, directory
        self.etcd = etcd(directory, 1)[0]
        self.processes, self.clients = {}, {}
        for id in 'coordinator-1', 'coordinator-2', 'prefill-1', 'decode-1':
            self.start(id)
        self.all_see(id for id in self.processes)

    def start(self, id, listen='127.0.0.1:0'):
        role = id.partition('-')[0]
        p = self.processes[id] = Process(self.args, self.directory, role, id, [self.etcd.endpoint], listen=listen,
                                         flags=FLAGS[role] + (['--route', self.args.route] if role == 'coordinator' else []))
        if role == 'coordinator':
            self.clients[id] = Client(p.address)
        return p

    def addresses(self):
        return [c.server for c in self.clients.values()]

    def stop(self, id):
        """SIGTERM: it drains and ends with 0."""
        if id in self.clients:
            self.clients.pop(id).channel.close()
        self.processes.pop(id).drain()

    def any(self):
        return next(iter(self.clients.values()))

    def all_see(self, ids, role=None, state='ready'):
        """Every coordinator has these nodes in that state."""
        ids = {id for id in ids if not id.startswith('coordinator')}

        def told(client):
            return ids <= {n.id for n in client.nodes() if n.state == state and role in (None, n.role)}
        for client in self.clients.values():
            wait_until(lambda: told(client), PATIENCE_S, f'{client.server} sees {ids} {role or ""} {state}: '
                       f'{[(n.id, n.role, n.state) for n in client.nodes()]}')

    def nodes(self):
        return [id for id in self.processes if not id.startswith('coordinator')]

    def works(self, id):
        """Waits a while for it: an order to an idle node proves little."""
        end = time.monotonic() + 1
        while time.monotonic() < end:
            n = self.any().node(id)
            if n.running + n.waiting > 0:
                return True
        return False

    def pages_back(self):
        ids = set(self.nodes())
        for client in self.clients.values():
            wait_until(lambda: all(n.pages.pinned == 0 and n.running == 0 and n.pages.free + n.pages.cached == n.pages.total
                                   for n in client.nodes() if n.id in ids), 5, 'every page is back')

    def end(self):
        for id in [*self.nodes(), *self.clients]:
            self.stop(id)
        self.etcd.kill()


def spread(load, role, ids, since, limit):
    """How soon each of these nodes has a quarter of an equal share of the requests that began since, 5 at least: who goes by
    costs does not share evenly, and a machine that is busy otherwise makes them differ."""
    def shares():
        return collections.Counter(getattr(d, role) for d in load.since(since))

    while True:
        took, after = shares(), time.monotonic() - since
        told = f'{", ".join(f"{id} {n}" for id, n in sorted(took.items()))} after {after:.1f} s'
        if all(took[id] >= max(5, took.total() / len(ids) / 4) for id in ids):
            return told
        assert after < limit, f'not each of {ids} has its share: {told}'
        time.sleep(0.05)


def in_one_stream(done):
    """As long as the coordinators stay, none of their clients notices anything."""
    broken = [d for d in done if d.resumed]
    assert not broken, f'{len(broken)} of {len(done)} streams were refused or broke: {broken[:3]}'
    return done


def used(role, done):
    """Nodes; a decode node that read a prompt itself, because the prefill nodes were full, is none of those."""
    return {getattr(d, role) for d in done} & {f'{role}-{k}' for k in range(1, 5)}


def scale(scene, load, role):
    """1 -> 4 -> 1, while the other role stays as it is."""
    other = 'prefill' if role == 'decode' else 'decode'
    began, ids = time.monotonic(), [f'{role}-{k}' for k in range(1, 5)]
    for id in ids[1:]:
        scene.start(id)
    scene.all_see(ids)
    told, hit = spread(load, role, ids, time.monotonic(), scene.args.spread), 0
    print(f'{role} 1 -> 4: {told}', flush=True)
    for id in ids[1:]:
        hit += scene.works(id)
        if id != ids[1]:                       # the first one only gets SIGTERM, which drains as well
            scene.any().control.Drain(pb.NodeRequest(id=id), timeout=10)
            scene.all_see([id], state='drained')
        scene.stop(id)
    gone = time.monotonic()
    load.goes_on()
    assert used(role, load.since(gone)) == {ids[0]}, 'a node that is gone answers'
    assert used(other, in_one_stream(load.since(began))) == {f'{other}-1'}, f'the {other} nodes changed'
    print(f'{role} 4 -> 1: {len(load.since(began))} requests since the first joined, {hit} of 3 nodes had work when they were told to go', flush=True)
    return hit


class Orders:
    """Drains, undrains and role switches at random; each role keeps a node that serves."""

    def __init__(self, scene, seed):
        self.scene, self.dice = scene, random.Random(seed)
        self.role = {id: id.partition('-')[0] for id in scene.nodes()}
        self.drained, self.given, self.serving, self.hit = set(), collections.Counter(), 0, 0

    def can_spare(self, id):
        return id in self.drained or sum(self.role[k] == self.role[id] for k in self.role if k not in self.drained) > 1

    def may(self):
        for id in sorted(self.role):
            if self.can_spare(id):
                yield id, 'role'
            if id in self.drained:
                yield id, 'undrain'
            elif self.can_spare(id):
                yield id, 'drain'

    def give(self):
        id, order = self.dice.choice(list(self.may()))
        self.given[order] += 1
        if id not in self.drained:
            self.serving += 1
            self.hit += self.scene.works(id)
        self.obey(id, order)
        time.sleep(self.dice.random() * 0.3)

    def obey(self, id, order):
        control, node = self.scene.any().control, pb.NodeRequest(id=id)
        if order == 'role':
            self.role[id] = 'prefill' if self.role[id] == 'decode' else 'decode'
            control.SetRole(pb.SetRoleRequest(id=id, role=self.role[id]), timeout=10)
        elif order == 'drain':
            self.drained.add(id)
            control.Drain(node, timeout=10)
        else:
            self.drained.remove(id)
            control.Undrain(node, timeout=10)
        if id not in self.drained:             # the next order may rely on it
            self.scene.all_see([id], self.role[id])

    def as_it_was(self):
        for id in sorted(self.drained):
            self.obey(id, 'undrain')
        while wrong := [id for id, role in self.role.items() if not id.startswith(role)]:
            self.obey(next(id for id in wrong if self.can_spare(id)), 'role')


def orders(scene, load, seed, count):
    for id in 'prefill-2', 'prefill-3', 'decode-2', 'decode-3':
        scene.start(id)
    scene.all_see(scene.nodes())
    began, given = time.monotonic(), Orders(scene, seed)
    while given.given.total() < count:
        given.give()
        load.fine()
    given.as_it_was()
    load.goes_on()
    answered = in_one_stream(load.since(began))
    print(f'{count} orders: {dict(given.given)}, {given.serving} of them to a node that served, {given.hit} while it worked; {len(answered)} requests, '
          f'{sum(d.attempts - 1 for d in answered)} placed again', flush=True)
    assert 2 * given.hit >= given.serving, 'too few orders came to a node with work'


def rolling(scene, load):
    """SIGTERM, wait, start again at the same address; nodes first."""
    began = time.monotonic()
    for ids in scene.nodes(), list(scene.clients):
        for id in ids:
            address = scene.processes[id].address
            scene.stop(id)
            scene.start(id, address)
            scene.all_see(scene.nodes())
            load.goes_on()
        if ids[0] not in scene.clients:
            in_one_stream(load.since(began))
    answered = load.since(began)
    print(f'every process restarted: {len(answered)} requests, {sum(d.attempts - 1 for d in answered)} placed again, '
          f'{sum(d.resumed for d in answered)} times at another coordinator, longest gap {max(d.gap for d in answered):.2f} s', flush=True)


def story(args, directory):
    load, scene = Load(args, args.prompt), Scene(args, directory)
    load.start(args.clients, scene.addresses())
    try:
        load.goes_on()
        hit = sum(scale(scene, load, role) for role in ('decode', 'prefill'))
        assert hit, 'no node had work when it was told to go'
        orders(scene, load, args.seed, args.orders)
        for _ in range(args.rounds):
            rolling(scene, load)
    finally:
        load.end()
    scene.pages_back()
    flapped = [p.id for p in scene.processes.values() if p.said('node.held_out')]
    assert not flapped, f'{flapped}: a node that was told to go is held to flap'
    scene.end()


def main():
    args = arguments(orders=12, rounds=1, clients=8, seed=1, route='cost', spread=10, prompt=800, tokens=160)
    needs('etcd', 'etcd-server')
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='bt-scaling-') as directory:
        try:
            story(args, directory)
        except BaseException:
            for log in sorted(pathlib.Path(directory).glob('*.log')):
                print(f'--- end of {log.name}\n{log.read_text()[-2500:]}', file=sys.stderr)
            raise
    print(f'nothing lost, {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
