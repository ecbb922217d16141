"""Ranks on two machines, as two network namespaces: they talk over TCP. The bytes are those of ranks that share memory. One
rank is killed, stopped, or cut off: its group is gone within 5 s, what it had is finished elsewhere with the same bytes.

    bt-hub-PID (this script, coordinator, prefill node, a decode node of ranks in shared memory)
      br0 --- bt-r0-PID (decode node over TCP, rank 0)
          `-- bt-r1-PID (rank 1)

Exits with 77 where namespaces are not permitted.

    python tests/cluster/ranks_netns.py [--baton build/baton] [--model FILE] [--tokens 100]
"""
import os, signal, subprocess

from harness import *
from load import *
from netns import *

PROMISE_S = 5.0
HUB, R0, R1 = (f'bt-{name}-{os.getpid()}' for name in ('hub', 'r0', 'r1'))
ADDRESS = {HUB: address(), R0: address(0), R1: address(1)}
GRPC_PORT, GROUP_PORT = 7001, 7002


class Group:
    """The decode node over TCP: each rank is started by hand, in its namespace."""

    def __init__(self, args):
        self.log = tempfile.NamedTemporaryFile(prefix='bt-group-', suffix='.log', mode='w+')
        self.ranks = [self.start(args, rank, name) for rank, name in enumerate((R0, R1))]
        assert self.ranks[0].stdout.readline().startswith('ready grpc='), self.log_text()

    def start(self, args, rank, namespace):
        command = ['ip', 'netns', 'exec', namespace, args.baton, 'decode', '--model', args.model, '--id', f'tcp.{rank}' if rank else 'tcp',
                   '--tp', '2', '--rank', str(rank), '--group', f'{ADDRESS[R0]}:{GROUP_PORT}',
                   '--no-prefix-cache', '--speculate', 'off', '--threads', '1',
                   '--listen', f'{ADDRESS[namespace]}:{GRPC_PORT}', '--kv-listen', f'{ADDRESS[namespace]}:0', '--insecure']
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        """Rank 0 drains and dismisses the others; who was told to die may have."""
        if kind is not None:
            print(f'--- end of the log of the ranks\n{self.log_text()[-3000:]}', file=sys.stderr)
        self.ranks[0].terminate()
        for p in self.ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(10)
            p.kill()
            p.wait()

    def pids(self):
        return [p.pid for p in self.ranks]

    def log_text(self):
        return pathlib.Path(self.log.name).read_text()


def kill(group):
    os.kill(group.pids()[1], signal.SIGKILL)


def stop(group):
    os.kill(group.pids()[1], signal.SIGSTOP)
    wait_until(lambda: process_state(group.pids()[1]) == 'T', 2, 'rank 1 is stopped')


def cut_off(group):
    ip('-n', R1, 'link', 'set', 'eth0', 'down')
    shown = subprocess.run(['ip', '-n', R1, '-br', 'link', 'show', 'eth0'], capture_output=True, text=True, check=True).stdout
    assert ' DOWN ' in shown, shown


def mended(group):
    """The end of a fault: what was stopped goes on, and must find out by itself that it is alone."""
    ip('-n', R1, 'link', 'set', 'eth0', 'up')
    if alive(group.pids()[1]):
        os.kill(group.pids()[1], signal.SIGCONT)
    wait_until(lambda: not any(map(alive, group.pids())), PROMISE_S, 'no rank is left')


def fault(client, load, group, what, break_it):
    """Returns whether it hit."""
    pids = group.pids()
    assert client.pids('tcp') == pids, (client.pids('tcp'), pids)
    left_stopped = {pids[1]} if break_it is stop else set()
    with load.under_way() as run:
        wait_until(lambda: client.node('tcp').running >= 8, 60, 'the ranks work')
        watch, under_way = Stopwatch(), run.under_way()
        break_it(group)
        watch.see(PROMISE_S, ended=lambda: not any(alive(p) for p in pids if p not in left_stopped),
                  coordinator=lambda: client.node('tcp').state == 'lost')
        again = run.same_bytes()
    assert break_it is kill or 'group.lost' in group.log_text()
    print(f'rank 1 {what}: {watch}; {under_way} requests under way, {again} placed again', flush=True)
    mended(group)
    return again > 0


def story(args):
    with contextlib.ExitStack() as stack:
        common = ['--no-prefix-cache', '--threads', 1]
        prefill = stack.enter_context(node(args, 'prefill', 'prefill-1', '--chunk', 64, '--insecure', *common))
        shared = stack.enter_context(node(args, 'decode', 'shm', '--tp', 2, '--speculate', 'off', *common))
        over_tcp = f'{ADDRESS[R0]}:{GRPC_PORT}'

        def coordinator(*decode):
            address = stack.enter_context(process(
                args, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--prefill-policy', 'remote',
                '--nodes', ','.join([prefill, *decode]), '--expect-prefill', 1, '--expect-decode', len(decode)))
            return stack.enter_context(Client(address))

        load = Load(coordinator(shared), args.prompt, args.tokens)
        client = None
        for what, break_it in (('killed', kill), ('stopped', stop), ('cut off', cut_off)):
            for attempt in range(4):
                with Group(args) as group:
                    if not client:
                        load.client = coordinator(over_tcp)
                        with load.under_way() as run:
                            run.same_bytes()
                        print('the same bytes over TCP', flush=True)
                        load.client = client = coordinator(shared, over_tcp)
                    wait_until(lambda: all(n.state == 'ready' for n in client.nodes()), 20, 'every node is ready')
                    if fault(client, load, group, what, break_it):
                        break
            else:
                raise AssertionError(f'rank 1 was never {what} in time')
        with Group(args) as group:
            wait_until(lambda: all(n.state == 'ready' for n in client.nodes()), 20, 'every node is ready')
            client.pages_back(5)
        codes = [p.returncode for p in group.ranks]
        assert codes == [0, 0], f'ranks that nobody harmed ended with {codes}'


def main():
    args = arguments(tokens=100, prompt=200)
    permitted()
    with namespaces(HUB, (R0, R1)):
        enter(HUB)
        story(args)


if __name__ == '__main__':
    main()
