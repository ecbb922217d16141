"""What a fault is injected into: many requests under way at once, whose answers are known from a run without a fault."""
import concurrent.futures, contextlib, itertools, time

from harness import *

LEAST = 50           # a fault that hits fewer proves little


class Load:
    rounds = itertools.count()

    def __init__(self, client, prompt_characters, max_tokens, count=LEAST + 6):
        self.client, self.max_tokens = client, max_tokens
        self.prompts = [long_text(prompt_characters + 7 * i, 300 * i) for i in range(count)]
        with self.under_way() as run:
            self.want = [tokens for tokens, _, _ in run.answers()]

    @contextlib.contextmanager
    def under_way(self):
        """All requests are sent at once; leaving it waits for their answers."""
        with concurrent.futures.ThreadPoolExecutor(len(self.prompts)) as pool:
            yield Run(self, pool, f'load-{next(self.rounds)}')


class Run:
    """The requests of one round: NAME-0, NAME-1, ..."""

    def __init__(self, load, pool, name):
        self.load, self.name = load, name
        asked = [request(p, max_tokens=load.max_tokens, logprobs=0, request_id=f'{name}-{i}') for i, p in enumerate(load.prompts)]
        self.futures = [pool.submit(load.client.generate, r, 300) for r in asked]

    def left(self):
        return sum(not f.done() for f in self.futures)

    def answers(self):
        return [f.result() for f in self.futures]

    def same_bytes(self):
        """How often a request was placed again, all together."""
        answers = self.answers()
        wrong = [f'{self.name}-{i}' for i, ((tokens, _, _), want) in enumerate(zip(answers, self.load.want)) if tokens != want]
        assert not wrong, f'other tokens after the fault: {wrong}'
        return sum(finish.attempts - 1 for _, _, finish in answers)


class Stopwatch:
    """Looks again and again until everything was seen, and how long each took since the start."""

    def __init__(self):
        self.began, self.took, self.gap = time.monotonic(), {}, 0.0

    def __str__(self):
        return ', '.join(f'{what} after {s:.2f} s' for what, s in self.took.items()) + f' (looked at every {self.gap:.2f} s or more often)'

    def see(self, limit, **looks):
        last = time.monotonic()
        while len(self.took) < len(looks) and last - self.began < limit:
            for what, true in looks.items():
                if what not in self.took and true():
                    self.took[what] = time.monotonic() - self.began
            time.sleep(0.01)
            now = time.monotonic()
            self.gap, last = max(self.gap, now - last), now
        missing = [what for what in looks if what not in self.took]
        assert not missing, f'not within {limit} s: {missing}; {self}'
