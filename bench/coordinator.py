#!/usr/bin/env python3
"""What the coordinator costs beside a bare gRPC relay that forwards the same messages in the same three streams a request.

    build/venv/bin/python bench/coordinator.py [--requests 20000] [--rounds 5] [--concurrency 64] [--prompt 32] [--answer 4]
                                               [--memory 0] [--json FILE]

Stub nodes answer at once, so what is seen is what stands between them and the client (bench/coordinator/middle.h). Parts:
  throughput   a closed loop through the coordinator and through the relay, in turns; requests a second of CPU time of the
               process in the middle, all its threads. A ratio is the median of the rounds' own
  latency      an open loop at half of the coordinator's rate: without anyone in the middle, relay, coordinator, in turns
  memory       --memory N requests in ten pieces; what the coordinator holds after each
bench_coordinator is built with the tests."""
import argparse, contextlib, json, pathlib, signal, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def cpu_seconds(pid):
    return time.clock_gettime((~pid << 3) | 2)             # CLOCK_PROCESS_CPUTIME_ID of another process


def resident_kib(pid):
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith('VmRSS'))


@contextlib.contextmanager
def started(*command):
    """A process that prints a `ready` line with NAME=ADDRESS: (pid, {name: address})."""
    p = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = p.stdout.readline().split()
        assert line and line[0] == 'ready', f'it does not start: {" ".join(map(str, command))}'
        yield p.pid, dict(word.split('=', 1) for word in line[1:])
    finally:
        p.send_signal(signal.SIGTERM)
        p.wait(30)


class Bench:
    def __init__(self, args, stack):
        self.args, self.bench = args, args.bench
        _, nodes = stack.enter_context(started(self.bench, 'stub', args.model))
        coordinator, c = stack.enter_context(started(
            args.baton, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--nodes', f'{nodes["decode"]},{nodes["prefill"]}',
            '--prefill-policy', 'remote', '--expect-prefill', 1, '--expect-decode', 1, '--log-level', args.log_level))
        relay, r = stack.enter_context(started(self.bench, 'relay', nodes['decode'], nodes['prefill']))
        self.pids = {'coordinator': coordinator, 'relay': relay}
        self.addresses = {'coordinator': (c['grpc'], '-'), 'relay': (r['grpc'], '-'), 'none': (nodes['decode'], nodes['prefill'])}

    def load(self, kind, requests, rate=0):
        """The client's figures and `cpu_s` of who stands in the middle."""
        pid = self.pids.get(kind)
        before = cpu_seconds(pid) if pid else 0
        words = [self.bench, 'load', kind, *self.addresses[kind], requests, self.args.concurrency, rate, self.args.prompt, self.args.answer]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=3600)
        if done.returncode:
            sys.exit(f'{kind}: {done.stderr}')
        return json.loads(done.stdout) | {'cpu_s': (cpu_seconds(pid) - before) if pid else 0}


def throughput(bench, args):
    of_core, of_wall, ratios = {'coordinator': [], 'relay': []}, {'coordinator': [], 'relay': []}, []
    for i in range(args.rounds):
        for kind in of_core:
            r = bench.load(kind, args.requests)
            of_core[kind].append(r['requests'] / r['cpu_s'])
            of_wall[kind].append(r['requests'] / r['seconds'])
        ratios.append(of_core['coordinator'][-1] / of_core['relay'][-1])
        print(f'round {i + 1}: coordinator {of_core["coordinator"][-1]:.0f} requests a second of CPU, relay {of_core["relay"][-1]:.0f}, '
              f'ratio {ratios[-1]:.2f}', file=sys.stderr, flush=True)
    print('| | requests/s of a core, median | least to most | requests/s here |\n|---|---:|---|---:|')
    for kind, rates in of_core.items():
        print(f'| {kind} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {statistics.median(of_wall[kind]):,.0f} |')
    print(f'\ncoordinator to relay: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n', flush=True)
    return {'of_core': of_core, 'of_wall': of_wall, 'ratios': ratios}


def latency(bench, args, rate):
    seen = {kind: [] for kind in ('none', 'relay', 'coordinator')}
    for _ in range(args.rounds):
        for kind in seen:
            seen[kind].append(bench.load(kind, max(100, int(rate * args.seconds)), rate))
    print(f'| at {rate:,.0f} requests/s, us | first token p50 | p99 | whole p50 | p99 |\n|---|---:|---:|---:|---:|')
    middle = {kind: [statistics.median(r[what][share] for r in runs) for what in ('ttft_us', 'whole_us') for share in ('p50', 'p99')]
              for kind, runs in seen.items()}
    for kind, values in middle.items():
        print(f'| {kind} | ' + ' | '.join(f'{v:,.0f}' for v in values) + ' |')
    added = [[a - b for a, b in zip(middle['coordinator'], middle[other])] for other in ('none', 'relay')]
    for other, values in zip(('no one', 'the relay'), added):
        print(f'| coordinator above {other} | ' + ' | '.join(f'{v:,.0f}' for v in values) + ' |')
    print(flush=True)
    return seen


def memory(bench, args):
    pid, held = bench.pids['coordinator'], []
    print('| requests | coordinator, RSS in KiB |\n|---:|---:|')
    print(f'| 0 | {resident_kib(pid)} |', flush=True)
    for i in range(10):
        bench.load('coordinator', args.memory // 10)
        held.append(resident_kib(pid))
        print(f'| {(i + 1) * (args.memory // 10):,} | {held[-1]} |', flush=True)
    print(f'\nfrom the first tenth to the end: {held[-1] - held[0]:+d} KiB', flush=True)
    return held


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--baton', default=str(ROOT / 'build/baton'))
    p.add_argument('--bench', default=str(ROOT / 'build/bench/bench_coordinator'))
    p.add_argument('--model', default=str(ROOT / 'build/tests/tiny.gguf'), help='for the tokenizer alone')
    p.add_argument('--requests', type=int, default=20000, help='a turn')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--concurrency', type=int, default=64)
    p.add_argument('--prompt', type=int, default=32)
    p.add_argument('--answer', type=int, default=4)
    p.add_argument('--rate', type=float, default=0, help='of the open loop; 0: half of the coordinator\'s throughput here')
    p.add_argument('--seconds', type=float, default=5, help='of a turn of the open loop')
    p.add_argument('--memory', type=int, default=0)
    p.add_argument('--log-level', default='info', help='of the coordinator; its lines go to /dev/null')
    p.add_argument('--json')
    args = p.parse_args()
    found = {}
    with contextlib.ExitStack() as stack:
        bench = Bench(args, stack)
        for kind in bench.addresses:
            bench.load(kind, 1000)                         # connected, warm
        if args.rounds:
            found['throughput'] = throughput(bench, args)
            rate = args.rate or statistics.median(found['throughput']['of_wall']['coordinator']) / 2
            found['latency'] = latency(bench, args, rate)
        if args.memory:
            found['memory_kib'] = memory(bench, args)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(found))


if __name__ == '__main__':
    main()
