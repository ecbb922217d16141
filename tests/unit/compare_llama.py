"""bench/compare_llama.py: what the programs print is read, and a missing or odd figure ends the run.
    compare_llama.py REPOSITORY"""
import json
import pathlib
import sys
import tempfile
import types
import unittest

root = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(root / "bench"))
sys.dont_write_bytecode = True
import compare_llama as c

PROGRAMS = types.SimpleNamespace(baton="baton")
BATON = {"prefill": [{"tokens": 512, "tok_s": {"median": 1500.5}}]}
BENCH = [{"n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 690.5}]
BATCHED = {"pp": 128, "tg": 64, "pl": 16, "speed_tg": 321.5}


def measure(which, text):
    c.run = lambda command, cores: text
    kinds = {"baton": c.baton("prefill", 512, "tokens"), "bench": c.llama_bench(pathlib.Path("b"), 512, 0, 0),
             "batched": c.llama_batched(pathlib.Path("b"))}
    return kinds[which](PROGRAMS, [0], "m")


class Figures(unittest.TestCase):
    def test_read(self):
        self.assertEqual(measure("baton", json.dumps(BATON)), 1500.5)
        self.assertEqual(measure("bench", json.dumps(BENCH)), 690.5)
        self.assertEqual(measure("batched", "a log line\n" + json.dumps(BATCHED) + "\n"), 321.5)

    def test_refused(self):
        bad = [("baton", ""), ("baton", "{}"), ("baton", '{"prefill":[]}'),
               ("baton", '{"prefill":[{"tokens":128,"tok_s":{"median":1}}]}'),
               ("baton", '{"prefill":[{"tokens":512,"tok_s":{"median":null}}]}'),
               ("bench", "[]"), ("bench", json.dumps(BENCH * 2)), ("bench", json.dumps([{**BENCH[0], "avg_ts": 0}])),
               ("bench", json.dumps([{**BENCH[0], "n_depth": 128}])),
               ("bench", json.dumps([{**BENCH[0], "avg_ts": float("nan")}])),
               ("batched", ""), ("batched", json.dumps({**BATCHED, "speed_tg": "321"})),
               ("batched", json.dumps({**BATCHED, "pl": 8})), ("batched", (json.dumps(BATCHED) + "\n") * 2)]
        for which, text in bad:
            with self.subTest(which=which, text=text), self.assertRaises(SystemExit):
                measure(which, text)

    def test_table(self):
        rows = c.summary({"prefill": {"baton": [10, 30, 20], "llama.cpp": [4, 5, 6]}})
        text = c.markdown({"cpu": "x", "cores": 2, "model": "m", "rounds": 3, "rows": rows})
        self.assertIn("| prefill | baton | 20.0 | (10.0 to 30.0) |  |", text)
        self.assertIn("|  | llama.cpp | 5.0 | (4.0 to 6.0) | 4.00 x |", text)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "README.md"
            file.write_text("a\n<!-- t -->\nold\n<!-- end of t -->\nb\n")
            c.write_between(file, "t", "new\n")
            self.assertEqual(file.read_text(), "a\n<!-- t -->\nnew\n<!-- end of t -->\nb\n")
            file.write_text("no markers\n")
            with self.assertRaises(SystemExit):
                c.write_between(file, "t", "new\n")


unittest.main()
