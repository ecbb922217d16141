"""Sends a plan of `baton bench load --dry-run` to llama-server's /completion and measures as bench/load_*.c do: open loop,
every latency from the intended arrival, TPOT the mean of an answer's own gaps, goodput by both.

One connection a request over plain asyncio streams; an event that arrives is counted, only the last is parsed, so that
the client stays a few per cent of a core. Prompts are token ids: the server tokenises nothing."""
import asyncio, json, math, resource, time


class Request:
    def __init__(self, planned):
        self.at, self.tokens_asked = planned['at_ms'] / 1000, planned['output_length']
        self.first = self.last = self.end = None
        self.tokens, self.gaps, self.timings, self.failed = 0, [], {}, None

    def ttft(self):
        return self.first - self.at

    def tpot(self):
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else 0

    def met(self, slo_ttft_s, slo_tpot_s):
        return self.end is not None and not self.failed and self.ttft() <= slo_ttft_s and self.tpot() <= slo_tpot_s


def body(planned):
    return json.dumps({'prompt': planned['tokens'], 'n_predict': planned['output_length'], 'ignore_eos': True,
                       'temperature': 0, 'stream': True, 'cache_prompt': False}).encode()


async def read_answer(r, reader, now):
    """Events until the last one. A read may bring several: all of them have arrived then."""
    rest = b''
    while True:
        piece = await reader.read(65536)
        if not piece:
            raise ConnectionError(f'broke off after {r.tokens} tokens: {rest[-200:]!r}')
        rest += piece
        events = rest.split(b'\n\n')
        rest = events.pop()
        for event in events:
            at = event.find(b'data: ')
            if at < 0:
                if b'error' in event:
                    raise ConnectionError(event[-300:])
                continue
            if b'"stop":true' in event:
                final = json.loads(event[at + 6:event.rindex(b'}') + 1])
                r.tokens, r.timings = final['tokens_predicted'], final.get('timings', {})
                r.end = now()
                return
            if r.first is None:
                r.first = now()
            else:
                r.gaps.append(now() - r.last)
            r.last = now()
            r.tokens += 1


async def send(r, planned, host, port, now):
    try:
        reader, writer = await asyncio.open_connection(host, port)
        data = body(planned)
        writer.write(b'POST /completion HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n'
                     b'Content-Length: %d\r\n\r\n' % len(data) + data)
        try:
            await read_answer(r, reader, now)
        finally:
            writer.close()
    except (OSError, ValueError, KeyError) as e:
        r.failed = f'{type(e).__name__}: {e}'


async def run(plan, host, port, wait_s):
    requests, tasks = [Request(p) for p in plan['requests']], []
    cpu, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()

    def now():
        return time.monotonic() - start

    for r, planned in zip(requests, plan['requests']):
        await asyncio.sleep(max(0, r.at - now()))
        tasks.append(asyncio.create_task(send(r, planned, host, port, now)))
    _, open_tasks = await asyncio.wait(tasks, timeout=wait_s)
    for t in open_tasks:
        t.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return requests, used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, now()


def percentiles(values):
    ordered = sorted(values)
    return {name: 1000 * ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0
            for name, share in (('p50', .5), ('p90', .9), ('p99', .99), ('max', 1))}


def measure(plan, host, port, slo_ttft_ms, slo_tpot_ms, wait_s=60):
    """The keys of `baton bench load --json` that a comparison needs."""
    requests, cpu_s, wall_s = asyncio.run(run(plan, host, port, wait_s))
    answered = [r for r in requests if r.end is not None and not r.failed]
    met = [r for r in answered if r.met(slo_ttft_ms / 1000, slo_tpot_ms / 1000)]
    failed = [r.failed for r in requests if r.failed]
    good_s = max([plan['end_ms'] / 1000] + [r.end for r in met])
    seconds = max([plan['end_ms'] / 1000] + [r.end for r in answered])
    return {'requests': {'planned': len(requests), 'answered': len(answered), 'refused': 0, 'failed': len(failed),
                         'unfinished': len(requests) - len(answered) - len(failed)},
            'first_failure': failed[0] if failed else None,
            'slo': {'met': len(met), 'share_met': len(met) / len(requests), 'goodput_s': len(met) / good_s},
            'answer_tokens_s': sum(r.tokens for r in requests) / seconds,
            'ttft_ms': percentiles(r.ttft() for r in answered), 'tpot_ms': percentiles(r.tpot() for r in answered),
            'itl_ms': percentiles(g for r in requests for g in r.gaps),
            'e2e_ms': percentiles(r.end - r.at for r in answered), 'client_cpu': cpu_s / wall_s}
