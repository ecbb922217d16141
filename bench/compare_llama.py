"""Measures baton and llama.cpp turn by turn and prints who is how fast; bench/compare-llama.sh builds
both and calls this.

A round runs every side of every row once, one after the other, so that a machine that slows down does
so for all of them. Everything runs on the same cores: the first --threads ones that this process may
use, two for the batched row. A figure that a program did not print ends the run: none is guessed."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

PREFILL, DECODE, CONTEXT, BATCH, BATCH_CORES = 512, 64, 128, 16, 2


def fail(text):
    sys.exit(f"compare-llama: {text}")


def run(command, cores):
    """The program's stdout; it is pinned to cores."""
    words = ["taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        fail(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def number(value, where):
    """A speed: a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        fail(f"{where}: '{value}', expected tokens per second")
    return float(value)


def only(items, where):
    if len(items) != 1:
        fail(f"{where}: {len(items)} results, expected one")
    return items[0]


def field(where, value, *path):
    for key in path:
        if not isinstance(value, dict) or key not in value:
            fail(f"{where}: no '{key}' in what it printed")
        value = value[key]
    return value


def parse(text, where):
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        fail(f"{where}: not readable as JSON: {e}: '{text[:200]}'")


def baton(part, size, key):
    """tok/s of `baton bench engine --only part:size`."""
    def measure(a, cores, model):
        text = run([a.baton, "bench", "engine", "--model", model, "--threads", len(cores), "--json",
                    "--only", f"{part}:{size}"], cores)
        point = only(field("baton", parse(text, "baton"), part), f"baton {part}")
        if field("baton", point, key) != size:
            fail(f"baton: measured {key} {point[key]}, asked for {size}")
        return number(field("baton", point, "tok_s", "median"), f"baton {part}")
    return measure


def llama_bench(build, prompt, tokens, depth):
    """tok/s of one llama-bench test, its own warm-up before it."""
    def measure(a, cores, model):
        text = run([build / "bin/llama-bench", "-m", model, "-t", len(cores), "-p", prompt, "-n", tokens,
                    "-d", depth, "-r", 1, "-o", "json"], cores)
        test = only(parse(text, "llama-bench"), "llama-bench")
        for key, value in (("n_prompt", prompt), ("n_gen", tokens), ("n_depth", depth)):
            if field("llama-bench", test, key) != value:
                fail(f"llama-bench: {key} is {test[key]}, asked for {value}")
        return number(field("llama-bench", test, "avg_ts"), "llama-bench")
    return measure


def llama_batched(build):
    """Decode tok/s of all sequences together; the programs also print logs to stdout."""
    def measure(a, cores, model):
        text = run([build / "bin/llama-batched-bench", "-m", model, "-t", len(cores), "-tb", len(cores),
                    "-c", BATCH * (CONTEXT + DECODE), "-npp", CONTEXT, "-ntg", DECODE, "-npl", BATCH,
                    "--output-format", "jsonl"], cores)
        lines = [line for line in text.splitlines() if line.startswith("{")]
        test = parse(only(lines, "llama-batched-bench"), "llama-batched-bench")
        for key, value in (("pp", CONTEXT), ("tg", DECODE), ("pl", BATCH)):
            if field("llama-batched-bench", test, key) != value:
                fail(f"llama-batched-bench: {key} is {test[key]}, asked for {value}")
        return number(field("llama-batched-bench", test, "speed_tg"), "llama-batched-bench")
    return measure


def plan(a, cores):
    """(row, side, measure, cores, model); baton is the first side of each row."""
    peers = [("llama.cpp", a.native)] + ([("llama.cpp, no AMX", a.no_amx)] if a.no_amx else [])
    rows = [
        (f"prefill {PREFILL}", cores[:a.threads], baton("prefill", PREFILL, "tokens"),
         lambda build: llama_bench(build, PREFILL, 0, 0)),
        (f"decode, context {CONTEXT}", cores[:a.threads], baton("decode", 1, "batch"),
         lambda build: llama_bench(build, 0, DECODE, CONTEXT)),
    ]
    if len(cores) >= BATCH_CORES:
        rows.append((f"decode, batch {BATCH}", cores[:BATCH_CORES], baton("decode", BATCH, "batch"),
                     llama_batched))
    else:
        print(f"compare-llama: one core: decode of batch {BATCH} on {BATCH_CORES} is skipped", file=sys.stderr)
    for row, row_cores, ours, theirs in rows:
        row += f", {len(row_cores)} core" + "s" * (len(row_cores) > 1)
        yield row, "baton", ours, row_cores, a.model
        for name, build in peers:
            yield row, name, theirs(build), row_cores, a.model
            yield row, f"{name}, Q4_0", theirs(build), row_cores, a.best


def measure_all(a):
    cores = sorted(os.sched_getaffinity(0))
    if a.threads > len(cores):
        fail(f"--threads {a.threads}: expected at most the {len(cores)} cores this process may use")
    steps, samples = list(plan(a, cores)), {}
    for turn in range(a.rounds):
        for row, side, measure, row_cores, model in steps:
            speed = measure(a, row_cores, model)
            samples.setdefault(row, {}).setdefault(side, []).append(speed)
            print(f"round {turn + 1} of {a.rounds}: {row}: {side}: {speed:.1f} tok/s", file=sys.stderr)
    return samples


def summary(samples):
    rows = []
    for row, sides in samples.items():
        ours = statistics.median(sides["baton"])
        for side, speeds in sides.items():
            middle = statistics.median(speeds)
            rows.append({"row": row, "side": side, "median": middle, "min": min(speeds), "max": max(speeds),
                         "samples": speeds, "baton_is_times": ours / middle})
    return rows


def machine():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return os.uname().machine


def markdown(report):
    lines = [f"{report['cpu']}, {report['cores']} cores; {report['model']}; median of {report['rounds']} rounds, "
             "(least to most).", "", "| | | tok/s | | baton is |", "|---|---|---:|---|---:|"]
    last = None
    for r in report["rows"]:
        times = "" if r["side"] == "baton" else f"{r['baton_is_times']:.2f} x"
        lines.append(f"| {r['row'] if r['row'] != last else ''} | {r['side']} | {r['median']:.1f} | "
                     f"({r['min']:.1f} to {r['max']:.1f}) | {times} |")
        last = r["row"]
    return "\n".join(lines) + "\n"


def write_between(path, name, text):
    """Replaces what stands between <!-- name --> and <!-- end of name -->."""
    old = path.read_text()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        fail(f"{path}: expected one '{begin.strip()}' and one '{end}' after it")
    path.write_text(old[:old.index(begin) + len(begin)] + text + old[old.index(end):])


def main():
    p = argparse.ArgumentParser()
    for name in ("--baton", "--native", "--model", "--best"):
        p.add_argument(name, type=pathlib.Path, required=True)
    p.add_argument("--no-amx", type=pathlib.Path)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--json", type=pathlib.Path)
    p.add_argument("--write", action="store_true")
    a = p.parse_args()
    if a.threads < 1 or a.rounds < 1:
        fail("--threads and --rounds: expected at least 1")
    report = {"cpu": machine(), "cores": len(os.sched_getaffinity(0)), "model": a.model.name,
              "threads": a.threads, "rounds": a.rounds, "rows": summary(measure_all(a))}
    text = markdown(report)
    print(text)
    if a.json:
        a.json.write_text(json.dumps(report, indent=1) + "\n")
    if a.write:
        write_between(pathlib.Path(__file__).parent / "README.md", "comparison", text)


if __name__ == "__main__":
    main()
