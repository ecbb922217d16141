#!/usr/bin/env python3
"""What ten times too much does to a cluster, and readers that hardly read: runs of `baton bench load` on one `baton up`.

    bench/overload.py --rate X [--seconds S] [--slow N] [--light Y] [--json FILE] [--baton B] [--model M] [-- FLAGS of baton up]

--rate: the cluster's goodput, as bench/compare-serving.sh finds it. At that rate, at ten times it, at it again, S seconds each;
0 leaves this part out. --slow N: a light load of --light short requests a second without and with N slow readers beside it, in
turns. Targets and lengths are bench/compare-serving.sh's. A queue of 1,024 requests, the default, is minutes long on a small
machine, and nobody in it meets a target of seconds: here it is 4, and 16 requests are answered at once, unless FLAGS say
otherwise. After each part every page has to be free or cached within 5 s."""
import argparse, contextlib, json, signal, statistics, subprocess, sys, tempfile, time

SMALL = ['--queue', '4', '--sequences', '16']
SLOW_ROUNDS = 3


def words(items):
    return [str(i) for i in items]


def load(a, server, *flags):
    done = subprocess.run(words([a.baton, 'bench', 'load', '--json', '--server', server, '--slo-ttft', a.slo_ttft, '--slo-itl', a.slo_itl,
                                 '--wait-ms', 5000, *flags]), capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f'overload: exit code {done.returncode}\n{done.stderr[-2000:]}')
    return json.loads(done.stdout)


def quiet_after(a, server, seconds=5):
    """Seconds until nothing runs or waits and every page is free or cached."""
    began = time.monotonic()
    while True:
        nodes = json.loads(subprocess.run([a.baton, 'nodes', '--json', '--server', server], capture_output=True, text=True, check=True).stdout)
        pages = [n['pages'] for n in nodes if n.get('pages') and n['pages']['total']]
        if pages and all(n['running'] + n['waiting'] == 0 for n in nodes) and all(p['free'] + p['cached'] == p['total'] for p in pages):
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            sys.exit(f'overload: pages not back after {seconds} s: {json.dumps(nodes)}')
        time.sleep(0.05)


def row(name, r):
    n = r['requests']
    print(f"| {name} | {r['slo']['goodput_s']:.2f} | {100 * r['slo']['share_met']:.0f} % | {n['answered']} of {n['planned']} | "
          f"{n['refused']} ({n['refused_with_hint']}) | {r['refusal_ms']['p99']:.0f} | {n['unfinished']} | {r['ttft_ms']['p99']:.0f} | "
          f"{r['itl_ms']['p99']:.1f} | {100 * r['client_cpu']:.1f} % |", flush=True)
    return {'run': name, **r}


def overload(a, server):
    runs = []
    for name, rate in (('peak', a.rate), ('ten times peak', 10 * a.rate), ('peak again', a.rate)):
        runs.append(row(name, load(a, server, '--rate', rate, '--duration', a.seconds)))
        print(f'nothing under way and all pages back {quiet_after(a, server):.2f} s after {name}', file=sys.stderr)
    peak, ten, again = (r['slo']['goodput_s'] for r in runs)
    print(f'\ngoodput under ten times peak: {ten / peak:.2f} of peak, afterwards {again / peak:.2f}\n' if peak else
          '\nno request met its targets at --rate: it is above the goodput of this cluster\n')
    return runs


def rows_computed(a, server):
    nodes = json.loads(subprocess.run([a.baton, 'nodes', '--json', '--server', server], capture_output=True, text=True, check=True).stdout)
    return sum(c['value'] for n in nodes for c in n['counters'] if c['name'] == 'baton_node_tokens_total')


@contextlib.contextmanager
def readers(a, server, count):
    """So many slow readers, once their windows are full: at first each is answered as fast as it can be. Until then a cluster is
    no busier with readers that are slow than with others, and nothing is measured."""
    if count == 0:
        yield
        return
    p = subprocess.Popen(words([a.baton, 'bench', 'load', '--server', server, '--slow-readers', count, '--rate', 1, '--duration', 3600,
                                '--prompt-lengths', 'fixed:64', '--answer-lengths', 'fixed:1']), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rates = []
    are_slow = lambda: len(rates) > 3 and max(rates[-3:]) < 2 * count        # each reads one message a second
    try:
        began, last = time.monotonic(), rows_computed(a, server)
        while time.monotonic() - began < a.settle and not are_slow():
            time.sleep(1)
            now = rows_computed(a, server)
            rates.append(now - last)
            last = now
        print(f'{count} slow readers: {max(rates)} rows/s at first, {rates[-1]} after {time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)
        if not are_slow():
            sys.exit(f'overload: {count} slow readers are not slow after {a.settle:g} s: a longer --settle, a smaller model or fewer of them')
        yield
    finally:
        p.send_signal(signal.SIGINT)
        p.wait(60)


def slow_readers(a, server):
    light = ['--rate', a.light, '--duration', a.seconds, '--prompt-lengths', 'fixed:64', '--answer-lengths', 'fixed:32']
    runs, ratios = [], {'ttft_ms': [], 'itl_ms': [], 'e2e_ms': []}
    for _ in range(SLOW_ROUNDS):
        for slow in (0, a.slow):
            with readers(a, server, slow):
                runs.append(row(f'{a.light:g}/s of short ones, {slow} slow readers', load(a, server, *light)))
            quiet_after(a, server)
        for what, all_ in ratios.items():
            all_.append(runs[-1][what]['p99'] / runs[-2][what]['p99'])
    print('\np99 beside slow readers to that without, median of turns: ' +
          ', '.join(f'{what.removesuffix("_ms")} {statistics.median(all_):.2f}' for what, all_ in ratios.items()) + '\n')
    return runs


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--baton', default='build/baton')
    p.add_argument('--model', default='models/SmolLM2-135M-Instruct.Q4_1.gguf')
    p.add_argument('--rate', type=float, required=True)
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--slow', type=int, default=0)
    p.add_argument('--light', type=float, default=2, help='requests a second beside the slow readers')
    p.add_argument('--settle', type=float, default=600, help='seconds at most until slow readers are')
    p.add_argument('--slo-ttft', type=float, default=2000)
    p.add_argument('--slo-itl', type=float, default=100)
    p.add_argument('--json')
    p.add_argument('flags', nargs='*')
    a = p.parse_args()
    log = tempfile.NamedTemporaryFile(prefix='bt-overload-', suffix='.log')
    up = subprocess.Popen(words([a.baton, 'up', '--model', a.model, '--listen', '127.0.0.1:0', '--log-level', 'error',
                                 *(a.flags or SMALL)]), stdout=subprocess.PIPE, stderr=log, text=True)
    line = up.stdout.readline().split()
    if len(line) < 2:
        sys.exit(f'overload: baton up did not start: {open(log.name).read()[-2000:]}')
    server, runs = line[1].removeprefix('grpc='), []
    try:
        print(f'| `{" ".join(a.flags or SMALL)}` | goodput, requests/s | met | answered | refused (with hint) | refusal p99, ms | not finished '
              '| TTFT p99, ms | ITL p99, ms | client, of a core |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|')
        if a.rate:
            runs += overload(a, server)
        if a.slow:
            runs += slow_readers(a, server)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
    if a.json:
        with open(a.json, 'w') as out:
            json.dump(runs, out)


if __name__ == '__main__':
    main()
