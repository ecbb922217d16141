"""What the cluster stories share: a cluster of real processes, a client, and looks at its state.

A story is a script: it starts a Cluster, does something to it, and checks what a user would see. It runs
under ctest as `python story.py --baton build/baton --model FILE`, and by hand the same way.
"""
import argparse, atexit, collections, contextlib, functools, importlib, os, pathlib, re, shutil, signal, socket, subprocess, sys, tempfile, time

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault('BATON_CACHE_DIR', str(ROOT / 'build' / 'cache'))    # not the user's


def stubs(proto):
    """NAME_pb2 and NAME_pb2_grpc of proto/NAME.proto, generated as any client would."""
    with tempfile.TemporaryDirectory(prefix='bt-stubs-') as out:
        rc = protoc.main(['', f'-I{ROOT}/proto', f'--python_out={out}', f'--grpc_python_out={out}', f'{proto}.proto'])
        assert rc == 0, 'protoc failed'
        sys.path.insert(0, out)
        try:
            return importlib.import_module(f'{proto}_pb2'), importlib.import_module(f'{proto}_pb2_grpc')
        finally:
            sys.path.remove(out)


pb, pb_grpc = stubs('baton')


def arguments(**more):
    p = argparse.ArgumentParser()
    p.add_argument('--baton', default=str(ROOT / 'build' / 'baton'))
    p.add_argument('--model', default=str(ROOT / 'models' / 'SmolLM2-135M-Instruct.Q4_1.gguf'))
    for name, default in more.items():
        p.add_argument('--' + name.replace('_', '-'), type=type(default), default=default)
    return p.parse_args()


def skip(why):
    print(f'skipped: {why}')
    sys.exit(77)                                         # SKIP_RETURN_CODE in stories.cmake


def needs(tool, package):
    if not shutil.which(tool):
        skip(f'no `{tool}` here (package {package})')


def wait_until(true, seconds, what, every=0.02):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return
        time.sleep(every)
    raise AssertionError(f'not within {seconds} s: {what}')


def alive(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except (FileNotFoundError, ProcessLookupError):      # the second: it went between open and read
        return False


def process_state(pid):
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]


class Client:
    """Asks a coordinator."""

    def __init__(self, server):
        self.server = server
        self.channel = grpc.insecure_channel(server)
        self.inference = pb_grpc.InferenceStub(self.channel)
        self.control = pb_grpc.ClusterStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def nodes(self, role=None):
        found = self.control.Topology(pb.TopologyRequest(), timeout=10).nodes
        return [n for n in found if role in (None, n.role)]

    def node(self, id):
        return next(n for n in self.nodes() if n.id == id)

    def pids(self, id):
        """Of a node's ranks, rank 0 first."""
        n = self.node(id)
        return [r.pid for r in n.ranks] or [n.pid]

    def counter(self, id, name, labels=''):
        return sum(c.value for c in self.node(id).counters if c.name == name and labels in c.labels)

    def pages_back(self, seconds=1.0):
        """Every page of every node is free or cached and unpinned."""
        def back():
            nodes = [n for n in self.nodes() if n.role != 'coordinator']
            return all(n.state == 'ready' and n.pages.pinned == 0 and n.running == 0 and n.waiting == 0 and
                       n.pages.free + n.pages.cached == n.pages.total for n in nodes)
        try:
            wait_until(back, seconds, 'every page free or cached')
        except AssertionError:
            raise AssertionError('pages not back: ' + '; '.join(
                f'{n.id} {n.state} run {n.running} wait {n.waiting} {str(n.pages).split()}' for n in self.nodes()))

    def generate(self, request, timeout=120):
        """(tokens, text, finish) of index 0, through the stream; checks that chunks fit together."""
        return collect(self.inference.Generate(request, timeout=timeout))

    def told(self, request, sink=None):
        """(what was told of the prompt's tokens, the answer's, finish); sink sees the first as it grows."""
        prompt = []

        def chunks():
            for chunk in self.inference.Generate(request, timeout=120):
                prompt.extend(told_prompt(chunk.prompt))
                if sink:
                    sink(prompt)
                yield chunk

        tokens, _, finish = collect(chunks())
        wanted = finish.usage.prompt_tokens if request.HasField('prompt_logprobs') else 0
        assert len(prompt) == wanted and [p[1] is None for p in prompt].count(True) == (wanted > 0), (len(prompt), wanted)
        return prompt, tokens, finish


class Cluster(Client):
    """`baton up` with its children. Use as a context: leaving it sends SIGTERM and checks exit code 0."""

    def __init__(self, args, *flags, env=None):
        self.log = tempfile.NamedTemporaryFile(prefix='bt-log-', suffix='.log', mode='w+')
        command = [args.baton, 'up', '--model', args.model, '--listen', '127.0.0.1:0', *map(str, flags)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True,
                                        env={**os.environ, **(env or {})})
        atexit.register(self.kill)
        line = self.process.stdout.readline()
        if not line.startswith('ready grpc='):
            self.process.wait(10)
            raise AssertionError(f'no ready line but {line!r}; log:\n{self.log_text()[-3000:]}')
        places = dict(word.split('=', 1) for word in line.split()[1:])
        self.http = places.get('http')           # None: it has no HTTP
        super().__init__(places['grpc'])

    def __exit__(self, kind, *_):
        if kind is not None:
            print(f'--- end of the log\n{self.log_text()[-6000:]}', file=sys.stderr)
        super().__exit__()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        if kind is None:
            assert code == 0, f'baton up ended with {code}; log:\n{self.log_text()[-3000:]}'

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()

    def log_text(self, since=0):
        with open(self.log.name, 'rb') as log:
            log.seek(since)
            return log.read().decode()

    def log_size(self):
        return os.path.getsize(self.log.name)

    def worker(self, method, request_id, since=0):
        """The id of the node that began `method` ('Prefill', 'Decode') for the request last, from the log after
        byte `since`; None before one has. Takes well under a millisecond: a fault that must hit a short piece
        of work has no time to ask the coordinator."""
        found = re.findall(rf' (\S+) req={request_id} call\.begin method={method} ', self.log_text(since))
        return found[-1] if found else None


@contextlib.contextmanager
def process(args, command, *flags):
    """One process of a cluster that is put together by hand; gives the address it prints."""
    with tempfile.TemporaryFile('w+') as log:
        p = subprocess.Popen([args.baton, command, *map(str, flags)], stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            line = p.stdout.readline()
            assert line.startswith('ready grpc='), (command, line, log.seek(0), log.read())
            yield line.split()[1].removeprefix('grpc=')
        finally:
            p.terminate()
            assert p.wait(20) == 0, (command, p.returncode)


def node(args, role, id, *flags, model=None):
    return process(args, role, '--model', model or args.model, '--id', id, '--listen', '127.0.0.1:0',
                   '--kv-listen', '127.0.0.1:0', *flags)


def collect(stream, sink=None):
    """(tokens, text, finish). With logprobs asked for, tokens are (token, logprob): equal only if the logits were."""
    tokens, text, finish = [], '', None
    for chunk in stream:
        assert finish is None, 'a chunk after the finish'
        tokens += [(t.token, t.logprob) if t.HasField('logprob') else t.token for t in chunk.tokens]
        text += chunk.text
        if sink:
            sink(tokens)
        if chunk.HasField('finish'):
            finish = chunk.finish
    assert finish is not None, 'the stream ended without a finish'
    assert finish.usage.completion_tokens == len(tokens), (finish.usage, len(tokens))
    return tokens, text, finish


# As rpc/options.c has it: a stopped coordinator still acknowledges data, only pings go unanswered. ping_timeout_ms is what newer
# gRPC waits for an answer to any of them: a minute by itself.
FIND_DEAD = [('grpc.keepalive_time_ms', 2000), ('grpc.keepalive_timeout_ms', 3000), ('grpc.http2.ping_timeout_ms', 3000),
             ('grpc.keepalive_permit_without_calls', 1), ('grpc.http2.max_pings_without_data', 0), ('grpc.enable_retries', 0),
             ('grpc.use_local_subchannel_pool', 1), ('grpc.initial_reconnect_backoff_ms', 100),
             ('grpc.min_reconnect_backoff_ms', 2000), ('grpc.max_reconnect_backoff_ms', 1000)]


@functools.lru_cache(None)
def inference_at(address):
    return pb_grpc.InferenceStub(grpc.insecure_channel(address, FIND_DEAD))


class Answering:
    """One request and its n answers, over as many streams as they take: what cli/resume.c does."""
    inference = staticmethod(inference_at)       # address -> stub: whose channels are used

    def __init__(self, request):
        n = request.n if request.HasField('n') else 1
        self.request = pb.GenerateRequest()
        self.request.CopyFrom(request)
        self.ids, self.tokens, self.text, self.finish = [[] for _ in range(n)], [[] for _ in range(n)], [''] * n, [None] * n
        self.prompt, self.streams, self.gap, self.last = [], 0, 0.0, None

    def stream(self, address, timeout):
        """The call behind what was seen; chunks are for take()."""
        del self.request.seen[:]
        for index, ids in enumerate(self.ids):
            if ids:
                self.request.seen.add(index=index, tokens=ids, finished=self.finish[index] is not None)
        self.streams += 1
        self.prompt_at = 0
        return self.inference(address).Generate(self.request, timeout=timeout)

    def take(self, chunk):
        now, k = time.monotonic(), chunk.index
        self.gap, self.last = max(self.gap, now - (self.last or now)), now
        assert self.finish[k] is None, 'a chunk after the finish'
        if k == 0 and chunk.request_id:
            self.request.request_id, self.request.sampling.seed = chunk.request_id, chunk.seed
        for info in told_prompt(chunk.prompt):
            if self.prompt_at == len(self.prompt):
                self.prompt.append(info)
            assert self.prompt[self.prompt_at] == info, (self.prompt_at, info)
            self.prompt_at += 1
        self.ids[k] += [t.token for t in chunk.tokens]
        self.tokens[k] += [(t.token, t.logprob) if t.HasField('logprob') else t.token for t in chunk.tokens]
        self.text[k] += chunk.text
        if chunk.HasField('finish'):
            self.finish[k] = chunk.finish
            assert chunk.finish.usage.completion_tokens == len(self.ids[k]), (chunk.finish.usage, len(self.ids[k]))

    def whole(self):
        assert None not in self.finish, f'the stream ended without a finish: {self.finish}'

    def seen(self):
        return sum(map(len, self.ids)) + sum(f is not None for f in self.finish)


Answer = collections.namedtuple('Answer', 'tokens text finish resumed gap')


def resilient(addresses, request, timeout=120, rounds=20, pause=0.25):
    """(tokens, text, finish, how often a stream broke, longest gap between two chunks in seconds) of index 0, as a client
    gets them that knows several coordinators: when a stream breaks it goes on at the next one, up to `rounds` times around
    without a new token; one that is full delays it until the timeout. Tokens as collect() gives them; the gap is one of all n answers together."""
    a = Answering(request)
    go_on(a, addresses, timeout, rounds, pause)
    return Answer(a.tokens[0], a.text[0], a.finish[0], a.streams - 1, a.gap)


def go_on(a, addresses, timeout=120, rounds=20, pause=0.25):
    """The same with an Answering, which has all n answers."""
    end, turn, idle = time.monotonic() + timeout, 0, 0
    while True:
        before = a.seen()
        try:
            for chunk in a.stream(addresses[turn % len(addresses)], max(0.1, end - time.monotonic())):
                a.take(chunk)
            a.whole()
            return
        except grpc.RpcError as broke:
            full = broke.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and before > 0
            idle = 0 if full or a.seen() > before else idle + 1
            if not full and (broke.code() != grpc.StatusCode.UNAVAILABLE or idle >= rounds * len(addresses)):
                raise
        turn += 1
        if full or (idle and idle % len(addresses) == 0):
            time.sleep(pause)


def told_prompt(infos):
    """What was said of each token of a prompt."""
    return [(t.token, t.logprob if t.HasField('logprob') else None, [(a.token, a.logprob) for a in t.top]) for t in infos]


def busy_node(cluster, role, seconds=10):
    """The node that works for the one request there is."""
    found = []

    def look():
        found[:] = [n for n in cluster.nodes(role) if n.running + n.waiting + n.pages.pinned > 0]
        return found

    wait_until(look, seconds, f'a {role} node is busy')
    return found[0]


def request(prompt=None, tokens=None, max_tokens=32, ignore_eos=True, request_id='', logprobs=None, prompt_logprobs=None, **sampling):
    r = pb.GenerateRequest(max_tokens=max_tokens, ignore_eos=ignore_eos, request_id=request_id, logprobs=logprobs,
                           prompt_logprobs=prompt_logprobs, sampling=pb.Sampling(**sampling))
    if tokens is not None:
        r.tokens.ids.extend(tokens)
    else:
        r.prompt = prompt
    return r


def long_text(characters, start=0):
    text = (ROOT / 'tests' / 'golden' / 'gpl3-excerpt.txt').read_text()
    return text[start:start + characters]


GRPC_THREADS = {'event_engine', 'default-executo', 'resolver-execut', 'grpc_global_tim', 'timer_manager'}


def threads_and_files(pid):
    """How many threads and file descriptors a process has; gRPC's pools, which grow up to a thread a core when
    they like, are left out."""
    names = [pathlib.Path(f'/proc/{pid}/task/{t}/comm').read_text().strip() for t in os.listdir(f'/proc/{pid}/task')]
    return sum(n not in GRPC_THREADS for n in names), len(os.listdir(f'/proc/{pid}/fd'))


def connect(address):
    host, _, port = address.rpartition(':')
    return socket.create_connection((host, int(port)), timeout=5)
