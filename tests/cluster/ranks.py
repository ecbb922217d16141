"""A rank of a node is lost: killed, or stopped for good, with 56 requests under way. The node is gone as one within
5 s, what it had is finished elsewhere with the same bytes, none of its processes is left, and it comes back with all pages.

    python tests/cluster/ranks.py [--baton build/baton] [--model FILE] [--tp 2] [--roles decode,prefill] [--only stopped] [--tokens 100]
"""
import contextlib, os, re, signal, time

from harness import *
from load import *

PROMISE_S = 5.0
FAULTS = [('rank 1 killed', 1, signal.SIGKILL, None), ('rank 0 killed', 0, signal.SIGKILL, None),
          ('rank 1 stopped', 1, signal.SIGSTOP, None),
          ('rank 0 stopped, continued', 0, signal.SIGSTOP, signal.SIGCONT),
          ('rank 0 stopped, killed', 0, signal.SIGSTOP, signal.SIGKILL)]


def in_prefill(cluster, run, id, since):
    """Requests whose prompt the prefill node has begun to read and not finished."""
    log = cluster.log_text(since)
    begun = re.findall(rf' {id} req=({run.name}-\S+) call\.begin method=Prefill ', log)
    return set(begun) - set(re.findall(rf' {id} req=(\S+) prefill\.computed ', log))


def is_busy(cluster, run, id, since):
    return in_prefill(cluster, run, id, since) if id.startswith('prefill') else cluster.node(id).running >= 8


def fault(cluster, load, id, what, rank, first, then):
    """Returns whether it hit: something was placed again."""
    old, since = cluster.pids(id), cluster.log_size()
    left_stopped = {old[0]} if first == signal.SIGSTOP and rank == 0 else set()
    with load.under_way() as run:
        wait_until(lambda: is_busy(cluster, run, id, since), 60, f'{id} works')
        watch, under_way = Stopwatch(), run.under_way()
        os.kill(old[rank], first)
        if first == signal.SIGSTOP:
            wait_until(lambda: process_state(old[rank]) == 'T', 2, f'{what}: it is stopped')
        watch.see(PROMISE_S, ended=lambda: not any(alive(p) for p in old if p not in left_stopped),
                  coordinator=lambda: cluster.node(id).state == 'lost' or cluster.node(id).pid != old[0])
        again = run.same_bytes()
    hit = again > 0 and (not id.startswith('prefill') or in_prefill(cluster, run, id, since))
    print(f'{id}, {what}: {watch}; {under_way} requests under way, {again} placed again', flush=True)
    for pid in left_stopped:
        assert process_state(pid) == 'T', f'{what}: it woke up by itself'
        os.kill(pid, then)
    wait_until(lambda: not any(map(alive, old)), PROMISE_S, f'{what}: no rank is left')
    wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()) and cluster.node(id).pid != old[0], 30, f'{id} is back')
    cluster.pages_back(5)
    assert 'request.disagreement' not in cluster.log_text(since)
    return bool(hit)


def idle(cluster, id, rank):
    """With nothing to do ranks only hear of each other now and then."""
    old = cluster.pids(id)
    time.sleep(1)
    watch = Stopwatch()
    os.kill(old[rank], signal.SIGSTOP)
    watch.see(PROMISE_S, ended=lambda: not any(alive(p) for p in old if p != old[0] or rank != 0))
    with contextlib.suppress(ProcessLookupError):        # stopped; or it has ended
        os.kill(old[0], signal.SIGKILL)
    wait_until(lambda: not any(map(alive, old)), PROMISE_S, 'no rank is left')
    wait_until(lambda: all(n.state == 'ready' for n in cluster.nodes()) and cluster.node(id).pid != old[0], 30, f'{id} is back')
    print(f'{id}, idle, rank {rank} stopped: {watch}', flush=True)


def paused(cluster, load, id):
    """A pause that is shorter than the time-out ends nothing."""
    old = cluster.pids(id)
    with load.under_way() as run:
        wait_until(lambda: cluster.node(id).running >= 8, 60, f'{id} works')
        os.kill(old[1], signal.SIGSTOP)
        wait_until(lambda: process_state(old[1]) == 'T', 2, 'it is stopped')
        time.sleep(1)
        os.kill(old[1], signal.SIGCONT)
        run.same_bytes()
    assert cluster.pids(id) == old, 'a pause of 1 s ended the group'


def main():
    args = arguments(tp=2, roles='decode,prefill', only='', tokens=100, prompt=200, prefill_prompt=700)
    settings = {'decode': (['--prefill', 1, '--decode', 2, '--chunk', 64], args.prompt, args.tokens),
                'prefill': (['--prefill', 2, '--decode', 1, '--chunk', 32, '--kv-pages', 4096], args.prefill_prompt, 8)}
    layout = ['--tp', args.tp, '--prefill-policy', 'remote', '--no-prefix-cache', '--threads', 1, '--route', 'least-loaded',
              '--speculate', 'off']
    with Cluster(args, '--prefill', 0, '--decode', 1, *layout) as cluster:
        for rank in (0, args.tp - 1):
            idle(cluster, 'decode-1', rank)
    for role in args.roles.split(','):
        flags, prompt, tokens = settings[role]
        if role == 'decode':
            with Cluster(args, *layout, *flags) as cluster:
                paused(cluster, Load(cluster, prompt, tokens), 'decode-1')
        for name, *how in (f for f in FAULTS if args.only in f[0]):
            with Cluster(args, *layout, *flags) as cluster:
                load = Load(cluster, prompt, tokens)
                # A fault that came too late proves nothing: it is tried again.
                assert any(fault(cluster, load, f'{role}-1', name, *how) for _ in range(4)), f'{role}, {name}: never hit'


if __name__ == '__main__':
    main()
