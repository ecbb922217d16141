"""A coordinator dies in the middle of an answer; the client goes on at another one with what it has seen. Two coordinators
over the same nodes: an answer is cut after each of its tokens and continued at the other one, then the first coordinator is
killed, stopped, told to go while streams run, for the Python client and for `baton generate` and `chat`. Every answer must
be that of an undisturbed call: tokens, log probabilities, text.

    python tests/cluster/resume.py [--baton build/baton] [--model FILE] [--tokens 30] [--long 1500]
"""
import json, signal, subprocess, threading

from harness import *

PATIENCE_S = 180    # on a busy machine


class Coordinator:
    def __init__(self, args, nodes, *flags):
        self.log = tempfile.TemporaryFile('w+')
        self.process = subprocess.Popen([args.baton, 'coordinator', '--model', args.model, '--listen', '127.0.0.1:0', '--nodes', ','.join(nodes),
                                         '--expect-prefill', '1', '--expect-decode', '2', *map(str, flags)],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        atexit.register(self.end)
        line = self.process.stdout.readline()
        assert line.startswith('ready grpc='), line
        self.address = line.split()[1].removeprefix('grpc=')

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def requests(args):
    """What is asked: name -> request, max_tokens to be set."""
    prompt, sampled = long_text(200), dict(temperature=1.0, top_p=0.95, presence_penalty=0.3, repetition_penalty=1.1)
    r = {'greedy': request(prompt), 'sampled': request(long_text(150, 900), seed=7, **sampled),
         'three': request(long_text(90, 400), seed=11, logprobs=0, **sampled), 'logprobs': request(prompt, logprobs=3, seed=5, **sampled),
         'stop': request(prompt, seed=23, **sampled), 'stop token': request(prompt, seed=29, **sampled), 'prompt': request(long_text(40), prompt_logprobs=2)}
    r['three'].n = 3
    return r


def told(answer):
    return answer.tokens, answer.text, [(f.reason, f.usage.prompt_tokens, f.usage.completion_tokens) for f in answer.finish], answer.prompt


def ask(address, request, cut=None):
    """At one coordinator; cut: after so many chunks, None: to the end."""
    answer = Answering(request)
    read(answer, address, cut)
    return answer


def read(answer, address, cut=None):
    stream, answer.chunks = answer.stream(address, PATIENCE_S), 0
    for chunk in stream:
        answer.take(chunk)
        answer.chunks += 1
        if answer.chunks == cut:
            stream.cancel()
            return
    answer.whole()


def stop_string(want, part):
    """A piece of an answer's text that is there for the first time behind that part of it."""
    text = want.text[0]
    return next(text[at:at + 6] for at in range(int(len(text) * part), len(text) - 6) if text.find(text[at:at + 6]) == at)


# ---- cut after every token --------------------------------------------------------------------------

def cut_everywhere(name, request, first, second):
    """Streamed up to each chunk at one coordinator, the rest at the other one."""
    want = ask(first, request)
    for cut in range(1, want.chunks + 1):
        answer = ask(first, request, cut)
        had = answer.seen()
        read(answer, second)
        assert told(answer) == told(want), (name, cut, told(answer), told(want))
        assert answer.streams == 2 and (had > 0 or name == 'prompt'), (name, cut, had)
    return want


def seen_everywhere(name, request, want, server):
    """Each number of tokens as seen, the whole answer too: only what is missing comes, and text that is the end of the text."""
    left = None
    for count in range(len(want.ids[0]) + 1):
        answer = Answering(request)
        answer.ids[0], answer.tokens[0] = want.ids[0][:count], want.tokens[0][:count]
        read(answer, server)
        assert answer.tokens == want.tokens and want.text[0].endswith(answer.text[0]), (name, count, answer.text)
        assert left is None or len(answer.text[0]) <= left, (name, count)
        left = len(answer.text[0])
    answer = Answering(request)
    answer.ids, answer.finish = want.ids, want.finish
    assert list(answer.stream(server, PATIENCE_S)) == [], name         # all have their Finish: nothing is told
    return count


def cuts(args, kinds, first, second):
    for name, request in kinds.items():
        request.max_tokens = args.tokens
        if name == 'stop':
            request.stop.append(stop_string(ask(first, request), 0.5))
        if name == 'stop token':
            request.stop_tokens.append(ask(first, request).ids[0][-1])
        want = cut_everywhere(name, request, first, second)
        assert 'stop' not in name or want.finish[0].reason == pb.FINISH_REASON_STOP
        count = 0 if request.n > 1 else seen_everywhere(name, request, want, second)
        print(f'{name}: cut after each of {want.chunks} chunks, and of {count} tokens', flush=True)


# ---- faults -----------------------------------------------------------------------------------------

def kill(coordinator):
    coordinator.process.kill()
    wait_until(lambda: not alive(coordinator.process.pid), 5, 'it is dead')


def stop(coordinator):
    coordinator.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: process_state(coordinator.process.pid) == 'T', 5, 'it is stopped')


def terminate(coordinator):
    coordinator.process.send_signal(signal.SIGTERM)
    assert coordinator.process.wait(PATIENCE_S) == 0


class Asker(threading.Thread):
    """One request as resilient() asks it, all n answers looked at."""

    def __init__(self, addresses, request):
        super().__init__(daemon=True)
        self.addresses, self.answer, self.failed = addresses, Answering(request), None
        self.start()

    def run(self):
        try:
            go_on(self.answer, self.addresses, PATIENCE_S)
        except Exception as e:
            self.failed = e

    def under_way(self):
        return self.answer.seen() > 5 and None in self.answer.finish


def fault(args, nodes, kinds, want, second, what, break_it, *flags):
    """Every kind of request twice at a coordinator that breaks. Whether it hit most of them."""
    first = Coordinator(args, nodes, *flags)
    askers = [Asker([first.address, second], r) for r in kinds.values() for _ in range(2)]
    wait_until(lambda: all(a.answer.seen() > 5 or a.failed for a in askers), PATIENCE_S, 'every stream has begun', 0.001)
    hit = sum(a.under_way() for a in askers)
    break_it(first)
    for a, name in zip(askers, [n for n in kinds for _ in range(2)]):
        a.join(PATIENCE_S)
        assert not a.is_alive() and not a.failed, (what, name, a.failed)
        assert told(a.answer) == told(want[name]), (what, name)
    streams = [a.answer.streams for a in askers]
    print(f'{what}: {len(askers)} streams, {sum(s > 1 for s in streams)} went on at the other coordinator, longest gap '
          f'{max(a.answer.gap for a in askers):.2f} s', flush=True)
    first.process.send_signal(signal.SIGCONT)
    first.end()
    return min(hit, sum(s > 1 for s in streams)) >= 0.75 * len(askers)


def until_it_hits(fault, *arguments, rounds=5):
    """A fault that came when many answers were whole proves nothing."""
    assert any(fault(*arguments) for _ in range(rounds)), f'{arguments[-2:]}: it never hit'


# ---- the command line -------------------------------------------------------------------------------

def baton(args, *words, stdin=None):
    return subprocess.Popen([args.baton, *map(str, words)], stdin=subprocess.PIPE if stdin else None, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def ended(process, code=0):
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, (process.args, process.returncode, err)
    return out, err


def same_json(out):
    answers = json.loads(out)
    for a in answers.get('choices', [answers]):
        for key in ('timings_ms', 'nodes', 'attempts', 'speculation'):
            del a[key]
        del a['usage']['cached_tokens']
    return answers


def command_line(args, nodes, second):
    """`baton generate` and `chat` while their coordinator is killed. Whether it hit them all."""
    first = Coordinator(args, nodes)
    both, client = f'{first.address},{second}', Client(second)
    common = ['--prompt', long_text(100), '--max-tokens', args.long, '--ignore-eos']
    ways = {'json': ['generate', *common, '--json', '--temperature', 1, '--logprobs', 2, '--n', 2, '--request-id', 'r-json'],
            'text': ['generate', *common, '--temperature', 1, '--seed', 3], 'chat': ['chat', '--temperature', 0, '--max-tokens', args.long]}
    running = {name: baton(args, *words, '--server', both, stdin=name == 'chat') for name, words in ways.items()}
    running['chat'].stdin.write('tell me more\n')
    running['chat'].stdin.flush()
    wait_until(lambda: sum(n.running for n in client.nodes('decode')) >= 4, PATIENCE_S, 'all four answers are written', 0.001)
    kill(first)
    got = {name: ended(p) for name, p in running.items()}
    seed = json.loads(got['json'][0])['choices'][0]['seed']
    for name, words in ways.items():
        p = baton(args, *words, '--server', second, *(['--seed', seed] if name == 'json' else []), stdin=name == 'chat')
        out, err = ended(p) if name != 'chat' else p.communicate('tell me more\n', PATIENCE_S)
        assert err == '', err
        same = same_json if name == 'json' else str
        assert same(out) == same(got[name][0]) and len(out) > 100, name
    hit = [err.count('the stream broke: ') for _, err in got.values()]
    print(f'baton generate and chat: {sum(hit)} of {len(hit)} broke and went on', flush=True)
    first.end()
    return hit == [1] * len(hit)


def several_servers(args, second):
    """One that is not there is passed over, without a word."""
    nobody = '127.0.0.1:1'
    both = ['--server', f'{nobody},{second}']
    out, err = ended(baton(args, 'generate', *both, '--prompt', 'x', '--max-tokens', 3))
    assert err == '' and out, err
    assert 'decode-1' in ended(baton(args, 'nodes', *both))[0] and 'decode-1' in ended(baton(args, 'drain', 'decode-1', *both))[0]
    ended(baton(args, 'undrain', 'decode-1', *both))
    assert nobody in ended(baton(args, 'generate', '--server', f'{nobody},{nobody}', '--prompt', 'x'), 3)[1]
    assert 'more than 16' in ended(baton(args, 'nodes', '--server', ','.join([nobody] * 17)), 2)[1]


def story(args):
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(node(args, role, id, '--kv-pages', 4096, *(['--speculate', 'off'] if role == 'decode' else [])))
                 for role, id in (('prefill', 'prefill-1'), ('decode', 'decode-1'), ('decode', 'decode-2'))]
        first, second = Coordinator(args, nodes), Coordinator(args, nodes)
        kinds = requests(args)
        cuts(args, kinds, first.address, second.address)
        terminate(first)
        several_servers(args, second.address)
        for r in kinds.values():
            r.max_tokens = args.long
            del r.stop[:], r.stop_tokens[:]
        want = {name: ask(second.address, r) for name, r in kinds.items()}
        kinds['stop'].stop.append(stop_string(want['stop'], 0.9))
        want['stop'] = ask(second.address, kinds['stop'])
        for how in (('killed', kill), ('stopped', stop), ('told to go at once', terminate, '--grace-ms', 0)):
            until_it_hits(fault, args, nodes, kinds, want, second.address, *how)
        patient = ('told to go', terminate, '--grace-ms', PATIENCE_S * 1000)
        assert not fault(args, nodes, kinds, want, second.address, *patient)         # accepted streams are finished there
        until_it_hits(command_line, args, nodes, second.address)
        Client(second.address).pages_back(10)
        terminate(second)


if __name__ == '__main__':
    story(arguments(tokens=30, long=1500))
    print('resume: ok')
