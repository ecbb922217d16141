"""Finds the goodput of llama-server and of baton under the same load, turn by turn; bench/compare-serving.sh builds
llama-server and calls this.

Goodput here is a rate: the highest of a grid at which at least --share of the requests meet both targets, while the next
higher one does not (DistServe's definition). Each peer climbs or descends the grid from --rate on, one run a turn, the
peers in turn, so that a machine that slows down does so for all. At one rate every peer gets the same plan: arrivals,
lengths, token ids. A server is started for each run and stopped after it; everything shares the same cores."""
import argparse, contextlib, json, os, pathlib, socket, subprocess, sys, time

import compare_llama
import llama_client

STEP = 1.25                          # from one rate of the grid to the next
MARKS = '<!-- serving -->', '<!-- end of serving -->'


def fail(text):
    sys.exit(f'compare-serving: {text}')


def rate_at(index):
    return round(STEP ** index, 3)


def load_flags(a, rate):
    return ['--rate', rate, '--requests', max(a.least, round(rate * a.seconds)), '--prompt-lengths', a.prompt_lengths, '--answer-lengths',
            a.answer_lengths, '--seed', a.seed]


def words(items):
    return [str(i) for i in items]


@contextlib.contextmanager
def baton_up(a, prefill):
    # The ITL target is what a user with these targets would set; a tenth is left for the way to the client.
    with open(a.log, 'a') as log:
        p = subprocess.Popen(words([*server_class(a), a.baton, 'up', '--model', a.model, '--listen', '127.0.0.1:0', '--prefill', prefill,
                                    '--kv-pages', a.tokens // 16, '--itl-target', round(0.9 * a.slo_itl), '--log-level', 'warn',
                                    *a.baton_flags.split()]), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        ready = p.stdout.readline().split()
        if not ready:
            fail(f'baton up did not start; its log is {a.log}')
        yield ready[1].removeprefix('grpc=')
    finally:
        p.terminate()
        p.wait(60)


def run_baton(a, prefill, rate):
    with baton_up(a, prefill) as server:
        done = subprocess.run(words([a.baton, 'bench', 'load', '--json', '--server', server, *load_flags(a, rate), '--slo-ttft',
                                     a.slo_ttft, '--slo-itl', a.slo_itl, '--wait-ms', a.wait_s * 1000]),
                              capture_output=True, text=True, timeout=900)
    if done.returncode:
        fail(f'baton: exit code {done.returncode}\n{done.stderr[-2000:]}')
    r = json.loads(done.stdout)
    r['requests']['failed'] = sum(r['requests']['failed'].values())
    return r


def server_class(a):
    """--realtime: this process and the clients are of priority 11, the servers of 10, so that nothing else gets in."""
    return ['chrt', '-f', 10] if a.realtime else []


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def llama_server(a, build, flags):
    port, threads = free_port(), len(os.sched_getaffinity(0))
    with open(a.log, 'a') as log:
        p = subprocess.Popen(words([*server_class(a), build / 'bin/llama-server', '-m', a.model, '--host', '127.0.0.1', '--port', port, '-t', threads,
                                    '-tb', threads, '-np', a.slots, '-c', a.slots * a.slot_tokens, '--cache-ram', 0,
                                    '--no-webui', *flags]), stdout=log, stderr=log)
    try:
        for _ in range(600):
            if p.poll() is not None:
                fail(f'llama-server ended with {p.returncode}; its log is {a.log}')
            with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=1) as s:
                s.sendall(b'GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
                if b' 200 ' in s.recv(64):
                    break
            time.sleep(0.1)
        yield port
    finally:
        p.terminate()
        p.wait(30)


def run_llama(a, build, flags, rate):
    done = subprocess.run(words([a.baton, 'bench', 'load', '--dry-run', '--model', a.model, *load_flags(a, rate)]),
                          capture_output=True, text=True, check=True)
    with llama_server(a, build, flags) as port:
        r = llama_client.measure(json.loads(done.stdout), '127.0.0.1', port, a.slo_ttft, a.slo_itl, a.wait_s)
    if r['first_failure']:
        print(f"compare-serving: a failure: {r['first_failure']}", file=sys.stderr)
    return r


class Search:
    """Where on the grid a peer still meets the targets: the next rate to try, until it is known."""

    def __init__(self, start, share):
        self.share, self.next, self.passed, self.failed = share, start, None, None

    def done(self):
        return self.passed is not None and self.failed is not None and self.failed == self.passed + 1

    def take(self, index, share_met):
        if share_met >= self.share:
            self.passed = index if self.passed is None else max(self.passed, index)
        else:
            self.failed = index if self.failed is None else min(self.failed, index)
        # A rate that passed above one that failed is noise: the lower failure counts no more.
        if self.passed is not None and self.failed is not None and self.failed <= self.passed:
            self.failed = None
        if self.passed is None:
            self.next = self.failed - 2
        elif self.failed is None:
            self.next = self.passed + 2
        else:
            self.next = (self.passed + self.failed) // 2


def describe(name, rate, r):
    return (f"{name} at {rate:g}/s: {100 * r['slo']['share_met']:.0f} % met, TTFT p50 {r['ttft_ms']['p50']:.0f} p90 "
            f"{r['ttft_ms']['p90']:.0f}, TPOT p90 {r['tpot_ms']['p90']:.0f}, ITL p99 {r['itl_ms']['p99']:.0f} ms, "
            f"{r['answer_tokens_s']:.0f} tok/s, {r['requests']}, client {100 * r['client_cpu']:.1f} % of a core")


def search_all(a, peers):
    searches = {name: Search(start, a.share) for name, (_, start) in peers.items()}
    runs, end = [], time.monotonic() + a.minutes * 60
    while any(not s.done() for s in searches.values()) and time.monotonic() < end:
        for name, (run, _) in peers.items():
            s = searches[name]
            if s.done():
                continue
            index = s.next
            r = run(rate_at(index))
            s.take(index, r['slo']['share_met'])
            runs.append({'peer': name, 'rate': rate_at(index), **r})
            print(describe(name, rate_at(index), r), file=sys.stderr)
    return searches, runs


def table(a, searches, runs):
    """One row a peer: the run at its goodput."""
    load = os.getloadavg()[1]
    yield (f'{compare_llama.machine()}, {len(os.sched_getaffinity(0))} cores shared by server and client; {pathlib.Path(a.model).name}; '
           f'prompts {a.prompt_lengths}, answers {a.answer_lengths}; targets: TTFT {a.slo_ttft:g} ms, TPOT {a.slo_itl:g} ms, met by '
           f'{100 * a.share:g} % of the requests; load average at the end {load:.1f}.')
    yield ''
    yield '| | goodput, requests/s | met | TTFT p50 | p90 | TPOT p90 | ITL p99 | answer tok/s | one step higher |'
    yield '|---|---:|---:|---:|---:|---:|---:|---:|---:|'
    for name, s in searches.items():
        mine = {r['rate']: r for r in runs if r['peer'] == name}
        if s.passed is None:
            yield f'| {name} | below {min(mine):g} | | | | | | | |'
            continue
        r = mine[rate_at(s.passed)]
        above = f"{100 * mine[rate_at(s.failed)]['slo']['share_met']:.0f} % at {rate_at(s.failed):g}" if s.done() else 'not run'
        yield (f"| {name} | {r['rate']:g} | {100 * r['slo']['share_met']:.0f} % | {r['ttft_ms']['p50']:.0f} ms | {r['ttft_ms']['p90']:.0f} | "
               f"{r['tpot_ms']['p90']:.0f} | {r['itl_ms']['p99']:.0f} | {r['answer_tokens_s']:.0f} | {above} |")


def write(path, lines):
    text = path.read_text()
    before, after = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    path.write_text(text[:before] + '\n' + '\n'.join(lines) + '\n' + text[after:])


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--baton', required=True)
    p.add_argument('--native', type=pathlib.Path, required=True)
    p.add_argument('--model', required=True)
    p.add_argument('--json', type=pathlib.Path)
    p.add_argument('--log', default='build/llama/server.log')
    p.add_argument('--write', action='store_true')
    p.add_argument('--rate', type=float, default=1, help='where the search begins')
    p.add_argument('--seconds', type=float, default=30, help='of a run')
    p.add_argument('--least', type=int, default=50, help='requests of a run')
    p.add_argument('--minutes', type=float, default=30, help='then no further turn begins')
    p.add_argument('--wait-s', type=int, default=30)
    p.add_argument('--share', type=float, default=0.9)
    p.add_argument('--slo-ttft', type=float, default=2000)
    p.add_argument('--slo-itl', type=float, default=100)
    p.add_argument('--prompt-lengths', default='list:64,128,256,512,1024,2048')
    p.add_argument('--answer-lengths', default='uniform:32-128')
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--slots', type=int, default=16)
    p.add_argument('--slot-tokens', type=int, default=2304)
    p.add_argument('--tokens', type=int, default=65536, help="of baton's KV pages, a node")
    p.add_argument('--llama-flags', default='-fa on -b 512', help='512 rows a step instead of 2048: shorter stalls, the best of what was tried')
    p.add_argument('--baton-flags', default='')
    p.add_argument('--realtime', action='store_true', help='servers and client before everything else on a busy machine (chrt -f)')
    p.add_argument('--peers', default='llama,local,remote')
    return p.parse_args()


def main():
    a = arguments()
    if a.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(11))
    start = 0
    while rate_at(start) * STEP <= a.rate:
        start += 1
    while rate_at(start) > a.rate:
        start -= 1
    every = {
        'llama': ('llama-server', lambda rate: run_llama(a, a.native, a.llama_flags.split(), rate)),
        'local': ('baton, one node for both', lambda rate: run_baton(a, 0, rate)),
        'remote': ('baton, one prefill and one decode node', lambda rate: run_baton(a, 1, rate)),
    }
    peers = {every[k][0]: (every[k][1], start) for k in a.peers.split(',')}
    searches, runs = search_all(a, peers)
    lines = list(table(a, searches, runs))
    print('\n'.join(lines))
    if a.json:
        a.json.write_text(json.dumps({'arguments': {k: str(v) for k, v in vars(a).items()}, 'runs': runs}))
    if a.write:
        write(pathlib.Path('bench/README.md'), lines)


if __name__ == '__main__':
    main()
