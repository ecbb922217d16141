"""Clients that together send many requests, each different, whose answers are known from a run without a fault."""
import random, threading

from harness import *

CLIENTS, STREAMS = 8, 8            # each client waits for so many answers at once
WORDS = range(3, 259)              # tokens that every model here has
DEADLINE_S = 120


class Asked:
    """Half of them greedy, half drawn: a sampler that goes on at the wrong place shows. With logprobs, so sums that were rounded
    otherwise show, too."""

    def __init__(self, number, answer):
        draw = random.Random(number)
        self.number, self.want = number, None
        self.tokens = draw.choices(WORDS, k=draw.randrange(100, 600))
        self.max_tokens = draw.randrange(answer // 2, answer * 3 // 2)
        self.sampling = dict(seed=number, temperature=1.0) if number % 2 else {}

    def message(self, id):
        return request(tokens=self.tokens, max_tokens=self.max_tokens, logprobs=0, request_id=id, **self.sampling)


class Watched(Answering):
    """Looks at the answer as it grows: how long until the first token, the longest time between two, and when that was over."""

    def __init__(self, asked, id, inference):
        super().__init__(asked.message(id))
        self.inference = inference
        self.number, self.came, self.first, self.longest, self.over = asked.number, time.monotonic(), None, 0.0, 0.0

    def take(self, chunk):
        super().take(chunk)
        if not chunk.tokens:
            return
        now = time.monotonic()
        waited, self.came = now - self.came, now
        if self.first is None:
            self.first = waited
        elif waited > self.longest:
            self.longest, self.over = waited, now


class Heartbeat:
    """How long this process was held up: what it measured meanwhile is not what it looks like."""
    EVERY_S = 0.01

    def __init__(self):
        self.gap, self.over = 0.0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        last = time.monotonic()
        while not self.over.wait(self.EVERY_S):
            now = time.monotonic()
            self.gap, last = max(self.gap, now - last - self.EVERY_S), now


class Crew:
    """addresses: of the coordinators. A client begins at one of them, every other one at the next."""

    def __init__(self, addresses, count, answer):
        self.asked = [Asked(i, answer) for i in range(count)]
        self.ways = [addresses[i % len(addresses):] + addresses[:i % len(addresses)] for i in range(CLIENTS)]
        self.inference = [functools.cache(lambda a: pb_grpc.InferenceStub(grpc.insecure_channel(a, FIND_DEAD))) for _ in range(CLIENTS)]
        self.rounds = 0

    def send(self, count=None):
        self.rounds += 1
        return Run(self, self.asked[:count], f'r{self.rounds}')


class Run:
    """All requests once, and then again from the first until it is told that this is enough: no host is idle while a fault lasts. Use as
    a context: nobody asks any more after it."""

    def __init__(self, crew, asked, name):
        self.crew, self.asked, self.name, self.lock = crew, asked, name, threading.Lock()
        self.sent, self.in_flight, self.enough = 0, 0, False
        self.answered, self.lost, self.wrong = [], [], []
        self.heartbeat = Heartbeat()
        self.threads = [threading.Thread(target=self.work, args=(i % CLIENTS,)) for i in range(CLIENTS * STREAMS)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.sent = len(self.asked)
        self.finish()

    def finish(self):
        """Waits for the answers."""
        self.enough = True
        for t in self.threads:
            t.join()
        self.heartbeat.over.set()

    def take(self):
        """The next one to ask and its request id."""
        with self.lock:
            if self.lost or self.enough and self.sent >= len(self.asked):
                return None, None
            self.sent += 1
            self.in_flight += 1
            return self.asked[(self.sent - 1) % len(self.asked)], f'{self.name}-{self.sent}'

    def work(self, client):
        while True:
            asked, id = self.take()
            if not asked:
                return
            try:
                self.ask(asked, id, client)
            except Exception as e:
                self.lost.append(f'{id}: {type(e).__name__} {e}'[:500])
            finally:
                with self.lock:
                    self.in_flight -= 1

    def ask(self, asked, id, client):
        answer = Watched(asked, id, self.crew.inference[client])
        go_on(answer, self.crew.ways[client], DEADLINE_S)
        self.answered.append(answer)
        tokens = answer.tokens[0]
        if asked.want is None:
            asked.want = tokens
        elif tokens != asked.want:
            both = list(zip(tokens, asked.want))
            at = next((i for i, (a, b) in enumerate(both) if a != b), len(both))
            self.wrong.append(f'{id}, request {asked.number}: {len(tokens)} tokens, expected {len(asked.want)}, other from {at} on')

    def longest(self):
        """The answer with the longest gap."""
        return max(self.answered, key=lambda a: a.longest)

    def first(self):
        return max(a.first for a in self.answered)

    def again(self):
        """How often one was placed again by its coordinator, and how often one went on at another coordinator (attempts is 0 where
        nothing but the finish was missing)."""
        return sum(max(a.finish[0].attempts, 1) - 1 for a in self.answered), sum(a.streams - 1 for a in self.answered)

    def nodes(self):
        return {n for a in self.answered for n in (a.finish[0].prefill_node, a.finish[0].decode_node)}
