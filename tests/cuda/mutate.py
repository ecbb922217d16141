#!/usr/bin/env python3
"""mutate.py -- are the kernel tests good enough to notice a change?

Changes one thing of a .cu or .cuh file at a time (an operator, a constant, a barrier, an index), builds what includes it
as ninja would, and runs the tests that use that, first in the race build, then in the ASan build. A mutant is killed when a test fails,
survives when all pass. Survivors have to stand in survivors.txt with a reason; any other makes the exit status 1.

  mutate.py [--build DIR] [--every K] [--first F] [--line L[-M]] [--list] engine/cuda/rows.cu [more]

--every K takes each K-th mutant, beginning with the F-th. --list only prints them. Hours for all of engine/cuda: run it
in the long tests, with K = 1 before a kernel's change is called tested.

survivors.txt, a line each:   rows.cu | MUTATION | the line's text | reason
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
SURVIVORS = os.path.join(ROOT, "tests", "cuda", "survivors.txt")
CMAKE = os.path.join(ROOT, "tests", "cuda", "CMakeLists.txt")

# What is changed (a regular expression) and into what; the name is what survivors.txt calls it.
MUTATIONS = [
    ("no block barrier", r"__syncthreads\(\);", ";"),
    ("no warp barrier", r"__syncwarp\(\);", ";"),
    ("< to <=", r" < (?=[\w(])", " <= "),
    ("<= to <", r" <= ", " < "),
    ("> to >=", r" > (?=[\w(-])", " >= "),
    (">= to >", r" >= ", " > "),
    ("== to !=", r" == ", " != "),
    ("!= to ==", r" != ", " == "),
    ("+ to -", r" \+ ", " - "),
    ("- to +", r"(?<=[\w\])]) - ", " + "),
    ("* to +", r"(?<=[\w\])]) \* ", " + "),
    ("/ to *", r" / ", " * "),
    ("% to /", r" % ", " / "),
    ("<< to >>", r" << ", " >> "),
    (">> to <<", r" >> ", " << "),
    ("& to |", r" & ", " | "),
    ("&& to ||", r" && ", " || "),
    ("|| to &&", r" \|\| ", " && "),
    ("+= to -=", r" \+= ", " -= "),
    ("min to max", r"\bfminf\(|\bmin\(", "max("),
    ("max to min", r"\bfmaxf\(|\bmax\(", "min("),
    ("index + 1", r"(?<=\w)\[(\w+)\]", r"[\1 + 1]"),
    ("number + 1", r"(?<![\w.\"])(\d+)(?![\w.\"])", lambda m: str(int(m.group(1)) + 1)),
    ("float * 1.001", r"(?<![\w.])(\d+\.\d*(?:e-?\d+)?f)", r"(1.001f * \1)"),
]


def code_of(text):
    """The text with comments, preprocessor lines, launch bounds and static_asserts blanked: places stay the same."""
    blank = lambda m: re.sub(r"[^\n]", "\0", m.group(0))
    text = re.sub(r"/\*.*?\*/|//[^\n]*", blank, text, flags=re.S)
    text = re.sub(r"^[ \t]*#[^\n]*", blank, text, flags=re.M)
    text = re.sub(r"__launch_bounds__\([^\n]*?\)(?= \w)|static_assert\(.*?\);|\"[^\"\n]*\"", blank, text, flags=re.S)
    # a larger array is the same program, and so is one with a byte of dynamic shared memory that nobody uses
    return re.sub(r"(?<=\w )(\w+)(\[\w+\])+(?=[,;]| =)|SHARED_ARRAY\([^\n]*\);|(?<=, )0(?=, st\b)", blank, text)


def mutants_of(path):
    """(line number, name, text of the line, the changed file) of every mutant, in the file's order."""
    text = open(path).read()
    code = code_of(text)
    out = []
    for name, pattern, replacement in MUTATIONS:
        for m in re.finditer(pattern, code):
            changed = replacement(m) if callable(replacement) else m.expand(replacement)
            begin = text.rfind("\n", 0, m.start()) + 1
            line_text = " ".join(text[begin:text.index("\n", m.start())].split())
            nth = len([1 for e in re.finditer(pattern, code[begin:m.start()])])
            label = name + (" #%d" % (nth + 1) if nth else "")
            out.append((m.start(), text.count("\n", 0, m.start()) + 1, label, line_text,
                        text[:m.start()] + changed + text[m.end():]))
    return [m[1:] for m in sorted(out, key=lambda m: (m[0], m[2]))]


def units_of(source):
    """The .cu files whose code changes with the file: itself, or those that include the header."""
    if source.endswith(".cu"):
        return [source]
    folder = os.path.dirname(source)
    text = {os.path.join(folder, f): open(os.path.join(ROOT, folder, f)).read()
            for f in sorted(os.listdir(os.path.join(ROOT, folder))) if f.endswith((".cu", ".cuh"))}
    found = {source}
    for _ in text:
        found |= {f for f in text for header in found if '#include "%s"' % header in text[f]}
    return sorted(f for f in found if f.endswith(".cu"))


def tests_of(units):
    """(name, those of the files that it lists) of every cuda_test() with one of them; the fewest files first."""
    found = re.findall(r"^cuda_test\((\w+)([^)]*)\)", open(CMAKE).read(), flags=re.M)
    lists = [(name, [u for u in units if u in sources.split()], len(sources.split())) for name, sources in found]
    return [(name, mine) for name, mine, _ in sorted(lists, key=lambda t: t[2]) if mine]


class Unit:
    """A .cu file of one build: the command line that compiles it, with the mutant's folder before the root's."""

    def __init__(self, build, work, mode, source):
        self.build, self.work, self.source = build, work, source
        self.object = os.path.join(work, mode + "_" + os.path.basename(source) + ".o")
        entries = json.load(open(os.path.join(build, "compile_commands.json")))
        mine = [e for e in entries if os.path.realpath(e["file"]) == os.path.join(ROOT, source)
                and "/cuda_object_%s_" % mode in e["command"]]
        if not mine:
            sys.exit("mutate.py: nothing builds %s for %s" % (source, mode))
        line = shlex.split(mine[0]["command"])
        line = line[os.path.basename(line[0]) == "ccache":]
        self.original = line[line.index("-o") + 1]
        line[line.index("-o") + 1] = self.object
        self.line = [line[0], "-I" + work] + line[1:] + ["-w", "-g0"]
        self.made = None                                    # by make(): of this mutant

    def make(self):
        if self.made is None:
            self.made = self.compile()
        return self.made

    def compile(self):
        mutant = os.path.join(self.work, self.source)
        full = os.path.join(ROOT, self.source)
        source = mutant if os.path.exists(mutant) else full
        line = [source if os.path.realpath(os.path.join(self.build, p)) == full else p for p in self.line]
        return subprocess.run(line, cwd=self.build, capture_output=True).returncode == 0


class Target:
    """A test's executable of one build, with the command line that links it."""

    def __init__(self, build, work, mode, test, units):
        self.name = "cuda_%s_%s" % (mode, test)
        self.exe = os.path.join(work, self.name)
        self.build, self.units, self.limit, self.seconds = build, units, 600, 0
        link = subprocess.run(["ninja", "-C", build, "-t", "commands", "-s",
                               "tests/cuda/" + self.name], capture_output=True, text=True)
        line = [l for l in link.stdout.splitlines() if units[0].original in l][-1]
        parts = shlex.split(line.split("&&")[1] if "&&" in line else line)
        objects = {u.original: u.object for u in units}
        self.link = [objects.get(p, p) for p in parts]
        self.link[self.link.index("-o") + 1] = self.exe

    def make(self):
        return all([u.make() for u in self.units]) and subprocess.run(self.link, cwd=self.build, capture_output=True).returncode == 0

    def run(self):
        """'' passed; else how it failed, as soon as one of its tests has."""
        env = dict(os.environ, EMU_SCHED="forward", ASAN_OPTIONS="detect_leaks=0")
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as out:
            p = subprocess.Popen([self.exe], cwd=self.build, stdout=out, stderr=subprocess.STDOUT, env=env)
            while p.poll() is None:
                late = time.monotonic() - begin > self.limit
                text = os.pread(out.fileno(), 1 << 20, 0)
                if late or b"[  FAILED  ]" in text:
                    p.kill()
                    p.wait()
                    return "time" if late else "value"
                time.sleep(0.02)
            text = os.pread(out.fileno(), 1 << 20, 0)
        self.seconds = time.monotonic() - begin
        if p.returncode == 0:
            return ""
        return ("emulator" if b"==EMU==" in text and b"ERROR" in text else
                "sanitizer" if b"Sanitizer" in text or b"runtime error" in text else "value")


def verdict(targets):
    """How a mutant died, "" if it did not; None: it does not compile."""
    built = False
    for t in targets:
        for u in t.units:
            u.made = None
    for t in targets:
        if not t.make():
            continue
        built = True
        how = t.run()
        if how:
            return "%s by %s" % (how, t.name)
    return "" if built else None


def open_targets(build, work, source):
    """The tests in the race and in the ASan build; unchanged they have to pass, and say how long it takes."""
    targets, tests = [], tests_of(units_of(source))
    if not tests:
        sys.exit("mutate.py: no cuda_test() uses %s" % source)
    for mode in ("race", "asan"):
        units = {u: Unit(build, work, mode, u) for _, mine in tests for u in mine}
        targets += [Target(build, work, mode, name, [units[u] for u in mine]) for name, mine in tests]
    for t in targets:
        if not t.make() or t.run():
            sys.exit("mutate.py: %s fails without any change" % t.name)
        t.limit = 20 + 10 * t.seconds
    return targets


def allowed():
    """{(file, mutation, line text): reason}"""
    out = {}
    for line in open(SURVIVORS) if os.path.exists(SURVIVORS) else []:
        parts = [p.strip() for p in line.split(" | ", 3)]
        if len(parts) == 4 and not line.startswith("#"):
            out[tuple(" ".join(p.split()) for p in parts[:3])] = parts[3]
    return out


def mutate(source, args, known):
    """Runs the file's mutants; returns (killed, survivors that are not listed, listed ones)."""
    path = os.path.join(ROOT, source)
    mutants = mutants_of(path)[args.first::args.every]
    if args.line:
        low, high = (args.line.split("-") + [args.line])[:2]
        mutants = [m for m in mutants if int(low) <= m[0] <= int(high)]
    if args.list:
        for line, name, text, _ in mutants:
            print("%s:%d  %s  |  %s" % (source, line, name, text))
        return 0, [], 0
    killed, unlisted, listed = 0, [], 0
    with tempfile.TemporaryDirectory() as work:
        targets = open_targets(args.build, work, source)
        mutant = os.path.join(work, source)
        os.makedirs(os.path.dirname(mutant))
        for line, name, text, changed in mutants:
            with open(mutant, "w") as f:
                f.write(changed)
            how = verdict(targets)
            if how is None:
                print("no build  %s:%d  %s" % (source, line, name), flush=True)
            elif how:
                killed += 1
                print("killed    %s:%d  %s  (%s)" % (source, line, name, how), flush=True)
            else:
                reason = known.get((os.path.basename(source), name, text))
                listed += reason is not None
                if reason is None:
                    unlisted.append((source, line, name, text))
                print("SURVIVED  %s:%d  %s  |  %s%s" % (source, line, name, text, "  (%s)" % reason if reason else ""),
                      flush=True)
    return killed, unlisted, listed


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default=os.path.join(ROOT, "build"))
    p.add_argument("--every", type=int, default=1)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--line")
    p.add_argument("--list", action="store_true")
    p.add_argument("sources", nargs="+")
    args = p.parse_args()
    args.build = os.path.abspath(args.build)
    known, killed, unlisted, listed = allowed(), 0, [], 0
    for source in args.sources:
        k, u, l = mutate(os.path.relpath(os.path.abspath(source), ROOT), args, known)
        killed, unlisted, listed = killed + k, unlisted + u, listed + l
    if args.list:
        return 0
    total = killed + listed + len(unlisted)
    print("%d mutants, %d killed, %d survivors with a reason, %d without" % (total, killed, listed, len(unlisted)))
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main())
