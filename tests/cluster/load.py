"""What a fault is injected into: many requests under way at once, whose answers are known from a run without a fault."""
import concurrent.futures, contextlib, itertools, threading, time

from harness import *

AT_ONCE = 56         # a fault that hits fewer than 50 proves little


class Load:
    rounds = itertools.count()

    def __init__(self, client, prompt_characters, max_tokens):
        self.client, self.max_tokens = client, max_tokens
        self.prompts = [long_text(prompt_characters + 7 * i, 300 * i) for i in range(AT_ONCE)]
        with self.under_way() as run:
            self.want = [answers[0][0] for answers in run.answers()]

    @contextlib.contextmanager
    def under_way(self):
        """All prompts are sent at once, and each again when it is answered: however fast the machine is, none is idle when a
        fault comes. Asking for the answers ends it."""
        with concurrent.futures.ThreadPoolExecutor(len(self.prompts)) as pool:
            run = Run(self, pool, f'load-{next(self.rounds)}')
            try:
                yield run
            finally:
                run.enough.set()


class Run:
    """The requests of one round: NAME-PROMPT-0, NAME-PROMPT-1, ..."""

    def __init__(self, load, pool, name):
        self.load, self.name, self.enough = load, name, threading.Event()
        self.futures = [pool.submit(self.ask, i, p) for i, p in enumerate(load.prompts)]

    def ask(self, i, prompt):
        answers = []
        while not answers or not self.enough.is_set():
            answers.append(self.load.client.generate(request(
                prompt, max_tokens=self.load.max_tokens, logprobs=0, request_id=f'{self.name}-{i}-{len(answers)}'), 300))
        return answers

    def under_way(self):
        return sum(not f.done() for f in self.futures)

    def answers(self):
        """Of each prompt, those of every time that it was asked."""
        self.enough.set()
        return [f.result() for f in self.futures]

    def same_bytes(self):
        """How often a request was placed again, all together."""
        answers = self.answers()
        wrong = [f'{self.name}-{i}-{k}' for i, want in enumerate(self.load.want) for k, (tokens, _, _) in enumerate(answers[i])
                 if tokens != want]
        assert not wrong, f'other tokens after the fault: {wrong}'
        return sum(finish.attempts - 1 for of_prompt in answers for _, _, finish in of_prompt)


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
