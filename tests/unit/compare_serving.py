"""bench/compare_serving.py and bench/llama_client.py: the search over rates against a peer whose goodput is known, and the
client against a server that answers as llama-server does. No time is judged. python3 compare_serving.py SOURCE_DIR"""
import asyncio, json, pathlib, sys, tempfile, unittest

root = pathlib.Path(sys.argv.pop())
sys.path.insert(0, str(root / 'bench'))
import compare_serving
import llama_client

EVENT = 'data: {"index":0,"content":"%s","tokens":[1],"stop":false}\n\n'
FINAL = 'data: {"content":"","stop":true,"tokens_predicted":%d,"timings":{"predicted_n":%d}}\n\n'


def chunk(text):
    return b'%x\r\n%s\r\n' % (len(text), text.encode())


async def answer(reader, writer):
    """Streams as many tokens as asked for; 13 is refused, 14 breaks off."""
    head = await reader.readuntil(b'\r\n\r\n')
    length = int(head.lower().split(b'content-length: ')[1].split(b'\r')[0])
    asked = json.loads(await reader.readexactly(length))
    n = asked['n_predict']
    assert asked['ignore_eos'] and asked['stream'] and asked['prompt'] == [5, 6, 7], asked
    if n == 13:
        writer.write(b'HTTP/1.1 503 no\r\n\r\n{"error":"full"}')
    else:
        writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
        for i in range(n):
            text = chunk(EVENT % ('x"stop\\":true' if i == 0 else 'y'))
            writer.write(text[:9])               # events come cut anywhere
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(text[9:])
        if n != 14:
            writer.write(chunk(FINAL % (n, n)) + chunk(''))
    await writer.drain()
    writer.close()


async def ask(lengths):
    server = await asyncio.start_server(answer, '127.0.0.1', 0)
    plan = {'end_ms': 1, 'requests': [{'at_ms': i, 'output_length': n, 'tokens': [5, 6, 7]} for i, n in enumerate(lengths)]}
    found = await llama_client.run(plan, *server.sockets[0].getsockname()[:2], 20)
    server.close()
    return found[0]


class Client(unittest.TestCase):
    def test_answers(self):
        requests = asyncio.run(ask([3, 13, 1, 14, 40]))
        self.assertEqual([r.tokens for r in requests], [3, 0, 1, 14, 40])
        self.assertEqual([bool(r.failed) for r in requests], [False, True, False, True, False])
        self.assertEqual([r.end is not None for r in requests], [True, False, True, False, True])
        self.assertEqual([len(r.gaps) for r in requests], [2, 0, 0, 13, 39])
        for r in requests:
            self.assertFalse(r.failed and r.met(1e9, 1e9))
        self.assertTrue(requests[0].met(1e9, 1e9) and not requests[0].met(-1, 1e9))

    def test_percentiles(self):
        self.assertEqual(llama_client.percentiles(n / 1000 for n in range(1, 101)), {'p50': 50, 'p90': 90, 'p99': 99, 'max': 100})
        self.assertEqual(llama_client.percentiles([]), {'p50': 0, 'p90': 0, 'p99': 0, 'max': 0})


class Search(unittest.TestCase):
    def find(self, start, limit):
        s, tried = compare_serving.Search(start, 0.9), []
        while not s.done():
            self.assertNotIn(s.next, tried)
            tried.append(s.next)
            self.assertLess(len(tried), 20)
            s.take(s.next, 1.0 if s.next <= limit else 0.1)
        return s.passed

    def test_finds_the_limit_from_anywhere(self):
        for limit in range(-5, 8):
            for start in range(-4, 8):
                self.assertEqual(self.find(start, limit), limit)

    def test_noise(self):
        s = compare_serving.Search(2, 0.9)
        for index, share in ((2, 0.5), (0, 0.95), (1, 0.95), (2, 0.95)):
            s.take(index, share)
        self.assertEqual((s.passed, s.failed), (2, None))


class Report(unittest.TestCase):
    def test_write_keeps_the_rest(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'r.md'
            path.write_text('a\n' + compare_serving.MARKS[0] + '\nold\n' + compare_serving.MARKS[1] + '\nb\n')
            compare_serving.write(path, ['new'])
            self.assertEqual(path.read_text(), 'a\n' + compare_serving.MARKS[0] + '\nnew\n' + compare_serving.MARKS[1] + '\nb\n')
        for mark in compare_serving.MARKS:
            self.assertIn(mark, (root / 'bench/README.md').read_text())


if __name__ == '__main__':
    unittest.main()
