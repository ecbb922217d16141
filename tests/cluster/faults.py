"""The fault laboratory: a cluster over namespaces (lab.py), requests of which the answers are known (crew.py), and one fault at a time
while they run: each fault on each kind of host. What must happen then: every request is answered with the bytes of a run without
a fault; afterwards every node is ready, every page is back, and the coordinators tell the same.

A cell is one fault on one host. It
  1. begins when at least IN_FLIGHT_MIN requests are under way (fewer: void, and repeated),
  2. proves itself: the process is gone, is in state T, packets were dropped, a handshake took longer,
  3. is mended, and the host that had it must serve again.
Before it, its control: the same with the fault left out, which must fail for want of that proof.

What is measured: the longest time without a token within a stream. It is told beside the bound of 3 s after the fault was
noticed, and fails a cell only as a hang (HANG_S): machines that run tests are busy. Where this process itself was held up for
over HELD_UP_S the figure is void.

    python tests/cluster/faults.py [--cells all|few|FAULT/HOST,...] [--requests 800] [--answer 300] [--table FILE] [--logs DIR]

Exits with 77 where namespaces are not permitted.
"""
import collections, contextlib, tempfile

from cable import *
from crew import *
from harness import *
from lab import *
from netns import *

IN_FLIGHT_MIN, TRIES = 50, 3
HANG_S, HELD_UP_S, HEAL_S, BEGIN_S = 30, 0.1, 60, 120
PROMISE_S = 3.0                          # after it was noticed
NOTICED_S = {'coordinator': 5.0, 'prefill': 1.5, 'decode': 1.5, 'etcd': 0.0}     # clients ping, coordinators count heartbeats


class Killed:
    def __init__(self, what):
        self.what = what

    def begin(self, host):
        host.process.kill()

    def happened(self, host):
        return f'pid {host.process.pid} ended by signal {-host.process.wait(5)}' if not alive(host.process.pid) else None

    def end(self, host):
        if host.process.poll() is not None:
            host.start()
            if host.role != 'etcd':
                host.ready()


class Stopped:
    def __init__(self, what):
        self.what = what

    def begin(self, host):
        os.kill(host.process.pid, signal.SIGSTOP)
        wait_until(lambda: process_state(host.process.pid) == 'T', 2, f'{host.name} is stopped')

    def happened(self, host):
        return 'state T' if process_state(host.process.pid) == 'T' else None

    def end(self, host):
        os.kill(host.process.pid, signal.SIGCONT)


Fault = collections.namedtuple('Fault', 'how seconds')
ONE_OF_A_HUNDRED = 'numgen random mod 1000 < 10'
FAULTS = {
    'kill': Fault(Killed('kill -9, started again after 3 s'), 3),
    'stop5': Fault(Stopped('SIGSTOP 5 s'), 5),
    'stop60': Fault(Stopped('SIGSTOP 60 s'), 60),
    'cut': Fault(Dropped('cut off 12 s', True, True), 12),
    'deaf': Fault(Dropped('hears nothing 12 s', False, True), 12),
    'mute': Fault(Dropped('is not heard 12 s', True, False), 12),
    'reset': Fault(Dropped('connections reset 12 s', True, True, 'tcp flags & rst == 0', 'reject with tcp reset'), 12),
    'apart': Fault(Dropped('cut off from decode 1 alone 12 s', False, True, f'ip saddr {address(NAMES.index("d1"))}'), 12),
    'loss': Fault(Dropped('1 % loss 10 s', True, True, ONE_OF_A_HUNDRED), 10),
    'delay': Fault(Delayed('200 ms later each way 10 s', 200), 10),
    'slow': Fault(Slow('1 Mbit/s (etcd: 8 kbit/s) 10 s', '1mbit', etcd='8kbit'), 10),
}
VICTIMS = {f: ('c1', 'p1', 'd1', 'e1') for f in FAULTS} | {'apart': ('p1',)}
FEW = ('kill/c1', 'kill/d1', 'stop5/p1', 'mute/d1')


class Void(Exception):
    """Not enough was under way: says nothing."""


Figures = collections.namedtuple('Figures', 'proof in_flight answered lost wrong again resumed longest first held_up ready_s began')


def broken(fault, host, seconds, left_out):
    """The fault, for that long; returns its proof."""
    if not left_out:
        fault.how.begin(host)
    try:
        time.sleep(seconds)
        proof = fault.how.happened(host)
        assert proof, 'the fault did not happen'
        return proof
    finally:
        if not left_out:
            fault.how.end(host)


def until(well, what):
    """How long it took until it said None."""
    began, why = time.monotonic(), 'never looked'
    while why:
        assert time.monotonic() - began < HEAL_S, f'{what}: not within {HEAL_S} s: {why}'
        why = well()
        time.sleep(0.05)
    return time.monotonic() - began


def heal(lab):
    until(lab.healed, 'well again')


def inject(lab, crew, fault, host, count, seconds, left_out=False):
    with crew.send(count) as run:
        wait_until(lambda: len(run.answered) >= CLIENTS or run.lost, BEGIN_S, 'requests are answered')
        under_way = run.in_flight
        if under_way < IN_FLIGHT_MIN:
            raise Void(f'{under_way} requests under way, expected {IN_FLIGHT_MIN}')
        began = time.monotonic()
        proof = broken(fault, host, seconds, left_out)
        ready_s = until(lab.ready, 'every node ready')
        run.finish()
    late_s = 0 if left_out else getattr(fault.how, 'late_s', 0)
    heal(lab)
    return Figures(proof, under_way, len(run.answered), run.lost, run.wrong, *run.again(), run.longest(), run.first(), max(run.heartbeat.gap, late_s),
                   ready_s, began)


def serves_again(lab, crew, host):
    """Requests go through the host that had the fault."""
    if host.role == 'etcd':
        return
    began = time.monotonic()
    while time.monotonic() - began < HEAL_S:             # a link that was slow is tried after 10 s, a node that flaps is held out
        with crew.send(2 * CLIENTS) as run:
            run.finish()
        assert not run.lost and not run.wrong, (run.lost[:3], run.wrong[:3])
        if host.role == 'coordinator' or host.name in run.nodes():
            heal(lab)
            return
    raise AssertionError(f'no request goes through {host.name} any more')


def control(lab, crew, fault, host):
    try:
        inject(lab, crew, fault, host, CLIENTS * STREAMS, 0.3, left_out=True)
    except AssertionError as e:
        assert str(e) == 'the fault did not happen', e
    else:
        raise AssertionError('a run without the fault passes as one with it')
    heal(lab)


def cell(lab, crew, name):
    fault, host = FAULTS[name.split('/')[0]], lab.hosts[name.split('/')[1]]
    control(lab, crew, fault, host)
    for _ in range(TRIES):
        try:
            figures = inject(lab, crew, fault, host, len(crew.asked), fault.seconds)
            break
        except Void as e:
            print(f'{name}: void, {e}', flush=True)
            heal(lab)
    else:
        raise AssertionError(f'void {TRIES} times')
    assert not figures.lost, f'{len(figures.lost)} requests lost: {figures.lost[:3]}'
    assert not figures.wrong, f'{len(figures.wrong)} answers wrong: {figures.wrong[:3]}'
    assert figures.longest.longest < HANG_S, f'{figures.longest.longest:.1f} s without a token'
    serves_again(lab, crew, host)
    return figures


# ---- the table -----------------------------------------------------------------------------------

HEAD = ('fault', 'host', 'proof', 'in flight', 'answered', 'placed again', 'other coordinator', 'longest gap, s', 'bound, s', 'first token, s', 'ready after, s')


def row(name, f):
    what, host = name.split('/')
    bound = PROMISE_S + (0 if what == 'kill' else NOTICED_S[ROLES[host[0]]])
    end = f.longest.over - f.began
    at = time.strftime('%H:%M:%S', time.gmtime(time.time() - time.monotonic() + f.began))
    print(f'{name}: began {at}; longest gap in {f.longest.request.request_id}, {end - f.longest.longest:.2f} s to {end:.2f} s after that')
    held_up = f' (void: the harness was held up {f.held_up:.2f} s)' if f.held_up > HELD_UP_S else ''
    return (FAULTS[what].how.what, ROLES[host[0]], f.proof, f.in_flight, f'{f.answered}, 0 lost, 0 wrong', f.again, f.resumed,
            f'{f.longest.longest:.2f}{held_up}', f'{bound:.1f}', f'{f.first:.2f}', f'{f.ready_s:.2f}')


def quiet(lab, crew):
    """All requests without a fault: the answers that are right, and what the figures are then."""
    with crew.send() as run:
        run.finish()
    assert not run.lost, run.lost[:3]
    heal(lab)
    return ('none', '-', '-', '-', f'{len(run.answered)}, 0 lost', *run.again(), f'{run.longest().longest:.2f}', '-', f'{run.first():.2f}', '-')


def told(rows):
    return ''.join('| ' + ' | '.join(map(str, r)) + ' |\n' for r in (HEAD, ['---'] * len(HEAD), *rows))


def page(args, rows, failed):
    """tests/cluster/FAULTS.md."""
    load = ' '.join(f'{x:.1f}' for x in os.getloadavg())
    return f"""# Faults, and what clients see of them

Two coordinators, two prefill and two decode nodes and three members of etcd, each in a network namespace of its own; {CLIENTS} clients wait for
{STREAMS} answers each, ask {args.requests} requests or more while a fault lasts, and go on at the other coordinator when a stream breaks. Every answer is
compared with the one of a run without a fault, token by token with its logprob. Placed again are those whose attempt failed; leaving a
slow link is no failure. What the columns say, and what else is checked:
[faults.py](faults.py), which wrote this:

    build/venv/bin/python tests/cluster/faults.py --model {os.path.relpath(args.model, ROOT)} --requests {args.requests} --answer {args.answer} --table tests/cluster/FAULTS.md

{time.strftime('%F')}, {os.cpu_count()} cores for all of it, load average when it ended: {load}.{' Failed: ' + '; '.join(failed) if failed else ''}

{told(rows)}"""


def show_logs(lab):
    for h in lab.hosts.values():
        print(f'--- end of {h.name}\n{h.log()[-1500:]}', file=sys.stderr)


def keep_logs(lab, where):
    if where:
        os.makedirs(where, exist_ok=True)
        for h in lab.hosts.values():
            pathlib.Path(f'{where}/{h.name}.log').write_text(h.log())


def matrix(args, names, directory):
    """Rows, and the cells that failed. After a failure everything is started anew."""
    crew = Crew([f'{address(NAMES.index(n))}:{GRPC}' for n in ('c1', 'c2')], args.requests, args.answer)
    rows, failed, left = [], [], collections.deque(names)
    for life in range(len(names)):
        os.mkdir(f'{directory}/{life}')
        with Lab(args, f'{directory}/{life}') as lab:
            if not rows:
                rows.append(quiet(lab, crew))
                print(told(rows), end='', flush=True)
            while left:
                name = left.popleft()
                try:
                    rows.append(row(name, cell(lab, crew, name)))
                    print('| ' + ' | '.join(map(str, rows[-1])) + ' |', flush=True)
                except Exception as e:
                    failed.append(f'{name}: {type(e).__name__} {e}')
                    print(f'FAILED {failed[-1]}', flush=True)
                    show_logs(lab)
                    break
            keep_logs(lab, args.logs and f'{args.logs}/{life}')
        if not left:
            return rows, failed


def main():
    args = arguments(cells='all', requests=800, answer=300, table='', logs='')
    permitted()
    for tool, package in (('etcd', 'etcd-server'), ('nft', 'nftables'), ('tc', 'iproute2')):
        needs(tool, package)
    if lacking():
        skip(f'this kernel cannot break a cable: {lacking()}')
    names = {'all': [f'{f}/{v}' for f in FAULTS for v in VICTIMS[f]], 'few': FEW}.get(args.cells) or args.cells.split(',')
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))        # so that nothing is left behind
    with namespaces(HUB, NAMESPACES), tempfile.TemporaryDirectory(prefix='bt-faults-') as directory:
        enter(HUB)
        rows, failed = matrix(args, names, directory)
    if args.table:
        pathlib.Path(args.table).write_text(page(args, rows, failed))
    print(f'{len(names) - len(failed)} of {len(names)} cells as they should be, {time.monotonic() - began:.0f} s')
    assert not failed, failed


if __name__ == '__main__':
    main()
