"""The wall clock of every process jumps an hour ahead, two back, and to where it was, while requests run: nobody is lost, no lease
ends, no request fails or answers other tokens, and one that waits for its deadline waits as long as it said. Lines of the log show
that the clock did jump (shifted_clock.c)."""
import calendar, mmap

from etcd import *

HOUR_S = 3600
LEASE_S = 10         # longer than a node's lease and every heartbeat that may be missed
PROCESSES = [('c1', 'coordinator', '--prefill-policy', 'remote', '--route', 'round-robin'), ('p1', 'prefill'),   # each has something
             ('d1', 'decode', '--no-prefix-cache'), ('d2', 'decode', '--no-prefix-cache')]                      # to do and to log


def unmoved(processes, seconds):
    """Last lines that are not of the shifted time."""
    now, last = time.time() + seconds, [p.log().splitlines()[-1] for p in processes]
    return [line for line in last if abs(calendar.timegm(time.strptime(line[:19], '%Y-%m-%dT%H:%M:%S')) - now) > HOUR_S / 2]


def deadline_holds(client):
    """A request that cannot be done in time, because nobody reads its answer, ends then, not an hour sooner or later."""
    began = time.monotonic()
    stream = client.inference.Generate(request(tokens=range(1, 60), max_tokens=5000, logprobs=20), timeout=1.5)
    code, took = stream.code(), time.monotonic() - began
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED and 1.4 < took < PATIENCE_S, (code, took)


def jump(everyone, member, load, shift):
    coordinator, nodes, entries = everyone['c1'], set(everyone) - {'c1'}, member.entries()
    for seconds in (HOUR_S, -HOUR_S, 0):
        shift[:] = seconds.to_bytes(8, sys.byteorder, signed=True)
        load.goes_on_for(LEASE_S)
        assert not unmoved(everyone.values(), seconds), unmoved(everyone.values(), seconds)
        deadline_holds(load.client)
        sees(coordinator, nodes, 1)
        assert coordinator.said('node.lost') == coordinator.said('node.held_out') == 0, coordinator.log()[-3000:]
        assert member.entries() == entries, 'somebody has registered again'


def main():
    args = arguments(shifted_clock=str(ROOT / 'build' / 'tests' / 'libshifted_clock.so'))
    needs('etcd', 'etcd-server')
    with tempfile.TemporaryDirectory(prefix='bt-clock-') as directory, open(f'{directory}/clock', 'w+b') as clock:
        clock.write(bytes(8))
        clock.flush()
        member = etcd(directory, 1)[0]
        os.environ |= {'LD_PRELOAD': args.shifted_clock, 'BATON_TEST_CLOCK': clock.name}
        everyone = {id: Process(args, directory, role, id, [member.endpoint], flags=flags) for id, role, *flags in PROCESSES}
        del os.environ['LD_PRELOAD']
        sees(everyone['c1'], set(everyone) - {'c1'})
        load = Load(everyone['c1'])
        try:
            jump(everyone, member, load, mmap.mmap(clock.fileno(), 8))
        finally:
            load.over = True
        load.end()
        load.client.pages_back(PATIENCE_S)
        for id in reversed(everyone):
            everyone[id].drain()
        member.kill()


if __name__ == '__main__':
    main()
