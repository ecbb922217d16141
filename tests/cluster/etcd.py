"""Nodes and coordinators that find each other through a real etcd, while requests run: nodes join, drain and are
replaced; etcd is stopped, killed, wiped, compacted, loses its leases, loses one of three members, wants a password.
No request may fail or answer other tokens. Every fault is seen to have happened before its effect is looked at."""
import base64, contextlib, shutil, threading, urllib.error

from etcd_member import *
from harness import *

BACK_S = 5          # registered again after etcd came back: issue 7


class Process:
    """A coordinator or node that is registered at the endpoints."""

    def __init__(self, args, directory, role, id, endpoints, user='', listen='127.0.0.1:0', flags=None):
        self.id, self.log_path = id, f'{directory}/{id}-{time.monotonic_ns()}.log'
        registry = f'etcd://{user}{",".join(endpoints)}/story'
        if flags is None:
            flags = ['--heartbeat-ms', 3000, '--route', 'round-robin'] if role == 'coordinator' else []
        command = [args.baton, role, '--model', args.model, '--id', id, '--listen', listen, '--registry', registry, *map(str, flags)]
        with open(self.log_path, 'w') as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        atexit.register(self.kill)
        self.pid = self.process.pid
        line = self.process.stdout.readline()
        assert line.startswith('ready grpc='), (command, line, self.log())
        self.address = line.split()[1].removeprefix('grpc=')

    def log(self):
        return pathlib.Path(self.log_path).read_text()

    def said(self, event):
        return self.log().count(f' {event} ')

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()

    def drain(self, code=0):
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == code, (self.id, self.process.returncode, self.log()[-2000:])

    @contextlib.contextmanager
    def stopped(self):
        with stopped(self.pid):
            yield


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) == 'T', 2, f'{pid} is stopped')
    yield
    assert process_state(pid) == 'T', f'{pid} woke up by itself'
    os.kill(pid, signal.SIGCONT)


class Load:
    """Two clients that ask without end; each answer must be the first one's."""

    def __init__(self, coordinator):
        self.client, self.done, self.failures, self.over = Client(coordinator.address), 0, [], False
        self.nodes = set()
        self.want = self.client.generate(self.asked())[0]
        self.threads = [threading.Thread(target=self.run) for _ in range(2)]
        for t in self.threads:
            t.start()

    @staticmethod
    def asked():
        return request(tokens=range(1, 60), max_tokens=24, seed=7, temperature=1.0)

    def run(self):
        while not self.over and not self.failures:
            try:
                tokens, _, finish = self.client.generate(self.asked(), PATIENCE_S)
                assert tokens == self.want, 'other tokens'
                self.nodes.add(finish.decode_node)
                self.done += 1
            except Exception as e:
                self.failures.append(e)

    def goes_on(self, count=2):
        """That many requests that began after now are answered (each thread may have one that began before)."""
        goal = self.done + count + len(self.threads)
        wait_until(lambda: self.done >= goal or self.failures, PATIENCE_S, 'requests go on')
        assert not self.failures, self.failures

    def goes_on_for(self, seconds):
        end = time.monotonic() + seconds
        self.goes_on()
        while time.monotonic() < end:
            time.sleep(1)
            self.goes_on()

    def end(self):
        self.over = True
        for t in self.threads:
            t.join()
        assert not self.failures, self.failures


def ready_ids(client):
    return {n.id for n in client.nodes() if n.role != 'coordinator' and n.state == 'ready'}


def sees(coordinator, ids, seconds=PATIENCE_S):
    with Client(coordinator.address) as c:
        wait_until(lambda: ready_ids(c) == ids, seconds, f'{coordinator.id} sees {ids}, not {ready_ids(c)}')


def within_back_s(true, since, what):
    """Within BACK_S of `since`, not counting the time in which this loop itself was held up by other load."""
    end = looked = max(time.monotonic(), since)
    end += BACK_S - (looked - since)
    while not true():
        assert time.monotonic() < end, f'not within {BACK_S} s: {what()}'
        time.sleep(0.05)
        gap, looked = time.monotonic() - looked, time.monotonic()
        end += gap if gap > 0.25 else 0


def registered(member, ids, since, token=None):
    within_back_s(lambda: member.ids(token) == ids, since, lambda: f'registered are {member.ids(token)}, expected {ids}')


def join_and_drain(start, member, coordinators, load):
    late = start('decode', 'decode-2')
    for c in coordinators:
        sees(c, {'prefill-1', 'decode-1', 'decode-2'})
    wait_until(lambda: 'decode-2' in load.nodes, PATIENCE_S, 'the node that joined answers')
    late.drain()
    assert member.ids() == {'prefill-1', 'decode-1'}, 'a drained node leaves its entry behind'
    load.goes_on()


def etcd_stopped_and_killed(member, processes, load, away_s):
    with stopped(member.process.pid):
        assert not member.answers(), 'a stopped etcd answers'
        load.goes_on()
    member.ready()
    found = [p.said('registry.found') for p in processes]
    member.kill()
    assert not member.answers(), 'a dead etcd answers'
    wait_until(lambda: all(p.said('registry.away') > 0 for p in processes), PATIENCE_S, 'everyone has seen that etcd is away')
    load.goes_on_for(away_s)
    member.start()
    back = member.ready()
    for p, before in zip(processes, found):
        within_back_s(lambda: p.said('registry.found') > before, back, lambda: f'{p.id} found etcd again')
    registered(member, {'prefill-1', 'decode-1'}, back)


def etcd_wiped(member, load, away_s):
    _, before = member.entries()
    member.kill()
    shutil.rmtree(member.directory)
    load.goes_on_for(away_s)
    member.start()
    back = member.ready()
    registered(member, {'prefill-1', 'decode-1'}, back)
    _, after = member.entries()
    assert after < before, f'the store was not wiped: revision {before}, then {after}'
    load.goes_on()


def leases_lost(member, load):
    """What an etcd does that was stopped for longer than leases last: all of them end at once."""
    old = {kv['lease'] for kv in member.entries()[0].values()}
    for lease in member.ask('/v3/lease/leases', {})['leases']:
        member.ask('/v3/lease/revoke', lease)
    lost = time.monotonic()
    assert not old & {kv['lease'] for kv in member.entries()[0].values()}, 'a lease was not revoked'
    load.goes_on()
    registered(member, {'prefill-1', 'decode-1'}, lost)


def compacted_while_stopped(start, member, first, second, load):
    """`first` is stopped; a node joins, the history of that is forgotten, then it goes on. The watch of `second` tells
    it what a list must tell `first`."""
    with first.stopped():
        before = member.entries()[1]
        late = start('decode', 'decode-2')
        sees(second, {'prefill-1', 'decode-1', 'decode-2'})
        member.ask('/v3/kv/compaction', {'revision': member.entries()[1]})
        try:
            member.ask('/v3/kv/range', {'key': base64.b64encode(b'x').decode(), 'revision': before})
            raise AssertionError('the history was not compacted')
        except urllib.error.HTTPError as e:
            assert b'compacted' in e.read()
        load.goes_on()
    sees(first, {'prefill-1', 'decode-1', 'decode-2'})
    return late


def zombie_with_the_same_id(start, member, old, coordinators, load):
    """`old` is stopped, a process with its id takes its place; continued, it must give way: code 4."""
    with old.stopped():
        new = start('decode', old.id)
        wait_until(lambda: new.said('member.registered'), PATIENCE_S, 'the later process takes the entry over')
        entry = member.entries()[0][old.id]['value']
    assert old.process.wait(PATIENCE_S) == 4, old.process.returncode
    assert old.said('member.displaced') == 1
    assert member.entries()[0][old.id]['value'] == entry, 'the older process took the entry back'
    for c in coordinators:
        sees(c, {'prefill-1', 'decode-1', old.id})
    load.goes_on()
    new.drain()


def with_a_password(start, member, coordinator):
    for path, body in [('user/add', {'name': 'root', 'password': 'p@ss/w%'}), ('role/add', {'name': 'root'}),
                       ('user/grant', {'user': 'root', 'role': 'root'}), ('enable', {})]:
        member.ask(f'/v3/auth/{path}', body)
    try:
        member.ids()
        raise AssertionError('etcd does not ask for a password')
    except urllib.error.HTTPError:
        pass
    token = member.ask('/v3/auth/authenticate', {'name': 'root', 'password': 'p@ss/w%'})['token']
    wrong = start('decode', 'decode-8', 'root:MISTAKEN@')
    right = start('decode', 'decode-9', 'root:p%40ss%2fw%25@')
    seen = start('coordinator', 'coordinator-9', 'root:p%40ss%2fw%25@')
    wait_until(lambda: 'decode-9' in member.ids(token), PATIENCE_S, 'registered with a password')
    wait_until(lambda: 'invalid user ID or password' in wrong.log(), PATIENCE_S, 'a wrong password is said')
    assert 'decode-8' not in member.ids(token)
    wait_until(lambda: 'decode-9' in {n.id for n in Client(seen.address).nodes()}, PATIENCE_S, 'seen with a password')
    for p in (wrong, right, seen):
        assert 'MISTAKEN' not in p.log() and 'p@ss' not in p.log() and 'p%40' not in p.log(), 'a password is in the log'
        p.drain()


def one_member(args, directory):
    """etcd is away for --away seconds, and again before it is back wiped."""
    member = etcd(directory, 1)[0]

    def start(role, id, user=''):
        return Process(args, directory, role, id, [member.endpoint], user)
    processes = [start('coordinator', 'coordinator-1'), start('coordinator', 'coordinator-2'), start('prefill', 'prefill-1'),
                 start('decode', 'decode-1')]
    coordinators = processes[:2]
    for c in coordinators:
        sees(c, {'prefill-1', 'decode-1'})
    load = Load(coordinators[1])
    marks = [time.monotonic()]

    def did(what):
        marks.append(time.monotonic())
        print(f'{what}: {marks[-1] - marks[-2]:.1f} s, {load.done} requests answered so far', flush=True)
    try:
        join_and_drain(start, member, coordinators, load)
        did('a node joined and drained')
        etcd_stopped_and_killed(member, processes, load, args.away)
        did('etcd stopped, killed, back')
        leases_lost(member, load)
        did('all leases lost')
        etcd_wiped(member, load, args.away)
        did('etcd wiped')
        late = compacted_while_stopped(start, member, *coordinators, load)
        did('compacted while a coordinator was stopped')
        zombie_with_the_same_id(start, member, late, coordinators, load)
        did('a zombie gave way')
    finally:
        load.end()
    for p in processes[2:]:
        assert p.said('member.registered') >= 3, f'{p.id}: expected to have registered after the leases and after the wipe'
    lost = [l for l in coordinators[1].log().splitlines() if ' node.lost ' in l and 'decode-2' not in l]
    assert not lost, f'a node was lost though it never left: {lost}'
    with_a_password(start, member, coordinators[0])
    did('a password')
    for p in processes:
        p.drain()
    member.kill()


def one_of_three_dead(args, directory):
    members = etcd(directory, 3)
    endpoints = [m.endpoint for m in members]
    members[0].kill()
    wait_until(members[1].answers, PATIENCE_S, 'two of three members answer')

    def start(role, id):
        return Process(args, directory, role, id, endpoints)
    processes = [start('coordinator', 'coordinator-3'), start('prefill', 'prefill-3'), start('decode', 'decode-3')]
    sees(processes[0], {'prefill-3', 'decode-3'})
    members[0].start()                               # the other way round: one that may be in use dies
    members[0].ready()
    members[1].kill()
    assert not members[1].answers()
    wait_until(lambda: members[2].answers(3), PATIENCE_S, 'two of three members answer')
    late = start('decode', 'decode-4')
    sees(processes[0], {'prefill-3', 'decode-3', 'decode-4'})
    registered(members[2], {'prefill-3', 'decode-3', 'decode-4'}, time.monotonic())
    for p in (*processes, late):
        p.drain()
    for m in members:
        m.kill()


def main():
    args = arguments(away=0)
    needs('etcd', 'etcd-server')
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='bt-etcd-') as directory:
        os.mkdir(f'{directory}/one'), os.mkdir(f'{directory}/three')
        try:
            one_member(args, f'{directory}/one')
            one_of_three_dead(args, f'{directory}/three')
        except BaseException:
            for log in sorted(pathlib.Path(directory).glob('*/*.log')):
                print(f'--- end of {log.name}\n{log.read_text()[-2500:]}', file=sys.stderr)
            raise
    print(f'etcd: all as it should be, {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
