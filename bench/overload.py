#!/usr/bin/env python3
"""What ten times too much does to a cluster, and readers that hardly read: three runs of `baton bench load` on one `baton up`,
at --rate, at ten times that, at --rate again; then a light load without and with slow readers beside it.

    bench/overload.py --rate X [--seconds S] [--slow N] [--json FILE] [--baton B] [--model M] [-- FLAGS of baton up]

--rate: the cluster's goodput, as bench/compare-serving.sh finds it. Targets and lengths are that script's."""
import argparse, json, signal, subprocess, sys


def words(items):
    return [str(i) for i in items]


def load(a, server, *flags):
    done = subprocess.run(words([a.baton, 'bench', 'load', '--json', '--server', server, '--slo-ttft', a.slo_ttft, '--slo-itl', a.slo_itl,
                                 '--wait-ms', 5000, *flags]), capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f'overload: exit code {done.returncode}\n{done.stderr[-2000:]}')
    return json.loads(done.stdout)


def row(name, r):
    n = r['requests']
    print(f"| {name} | {r['slo']['goodput_s']:.2f} | {100 * r['slo']['share_met']:.0f} % | {n['answered']} of {n['planned']} | "
          f"{n['refused']} ({n['refused_with_hint']}) | {r['refusal_ms']['p99']:.0f} | {n['unfinished']} | {r['ttft_ms']['p99']:.0f} | "
          f"{r['itl_ms']['p99']:.0f} | {100 * r['client_cpu']:.1f} % |", flush=True)
    return {'run': name, **r}


def measure(a, server):
    print('| | goodput, requests/s | met | answered | refused (with hint) | refusal p99, ms | not finished | TTFT p99, ms | ITL p99, ms | '
          'client, of a core |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|')
    for name, rate, seconds in (('peak', a.rate, a.seconds), ('ten times peak', 10 * a.rate, a.seconds), ('peak again', a.rate, a.seconds / 2)):
        yield row(name, load(a, server, '--rate', rate, '--duration', seconds))
    if a.slow:
        light = ['--rate', a.light, '--duration', a.seconds, '--prompt-lengths', 'fixed:64', '--answer-lengths', 'fixed:32']
        for slow in (0, a.slow):
            yield row(f'{a.light:g}/s of short ones, {slow} slow readers', load(a, server, *light, '--slow-readers', slow))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--baton', default='build/baton')
    p.add_argument('--model', default='models/SmolLM2-135M-Instruct.Q4_1.gguf')
    p.add_argument('--rate', type=float, required=True)
    p.add_argument('--seconds', type=float, default=60)
    p.add_argument('--slow', type=int, default=0)
    p.add_argument('--light', type=float, default=2, help='requests a second beside the slow readers')
    p.add_argument('--slo-ttft', type=float, default=2000)
    p.add_argument('--slo-itl', type=float, default=100)
    p.add_argument('--json')
    p.add_argument('flags', nargs='*')
    a = p.parse_args()
    up = subprocess.Popen(words([a.baton, 'up', '--model', a.model, '--listen', '127.0.0.1:0', '--log-level', 'error', *a.flags]),
                          stdout=subprocess.PIPE, text=True)
    try:
        runs = list(measure(a, up.stdout.readline().split()[1].removeprefix('grpc=')))
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)
    if a.json:
        with open(a.json, 'w') as out:
            json.dump(runs, out)


if __name__ == '__main__':
    main()
