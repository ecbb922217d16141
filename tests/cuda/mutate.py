#!/usr/bin/env python3
"""mutate.py -- are the kernel tests good enough to notice a change?

Changes one thing of a .cu file at a time (an operator, a constant, a barrier, an index), builds it as ninja would, and
runs the tests that use the file, first in the race build, then in the ASan build. A mutant is killed when a test fails,
survives when all pass. Survivors have to stand in survivors.txt with a reason; any other makes the exit status 1.

  mutate.py [--build DIR] [--every K] [--first F] [--line L[-M]] [--list] engine/cuda/rows.cu [more.cu]

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
    # a larger array is the same program
    return re.sub(r"(?<=\w )(\w+)(\[\w+\])+(?=[,;]| =)", blank, text)


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


def tests_of(source):
    """Names of the cuda_test()s that list the file."""
    found = re.findall(r"^cuda_test\((\w+)([^)]*)\)", open(CMAKE).read(), flags=re.M)
    return [name for name, sources in found if source in sources.split()]


class Target:
    """A test's executable of one build, with the command lines that make it."""

    def __init__(self, build, work, mode, test, source):
        self.name = "cuda_%s_%s" % (mode, test)
        self.exe = os.path.join(work, self.name)
        self.object = os.path.join(work, self.name + ".o")
        self.build = build
        entries = json.load(open(os.path.join(build, "compile_commands.json")))
        full = os.path.join(ROOT, source)
        mine = [e for e in entries if os.path.realpath(e["file"]) == full and "/%s.dir/" % self.name in e["command"]]
        if not mine:
            sys.exit("mutate.py: %s does not build %s" % (self.name, source))
        self.compile = shlex.split(mine[0]["command"])
        original = self.compile[self.compile.index("-o") + 1]
        link = subprocess.run(["ninja", "-C", build, "-t", "commands", "-s",
                               "tests/cuda/" + self.name], capture_output=True, text=True)
        line = [l for l in link.stdout.splitlines() if original in l][-1]
        parts = shlex.split(line.split("&&")[1] if "&&" in line else line)
        self.link = [self.object if p == original else p for p in parts]
        self.link[self.link.index("-o") + 1] = self.exe
        self.source = full
        self.limit = 600

    def make(self, mutant):
        """False: it does not compile, or not link."""
        line = [mutant if os.path.realpath(os.path.join(self.build, p)) == self.source else p for p in self.compile]
        line[line.index("-o") + 1] = self.object
        line = [p for i, p in enumerate(line) if p not in ("-MD", "-MT", "-MF") and line[i - 1] not in ("-MT", "-MF")]
        line.append("-w")
        return all(subprocess.run(l, cwd=self.build, capture_output=True).returncode == 0 for l in (line, self.link))

    def run(self):
        """'' passed; else how it failed."""
        env = dict(os.environ, EMU_SCHED="forward", ASAN_OPTIONS="detect_leaks=0")
        begin = time.monotonic()
        try:
            r = subprocess.run([self.exe], cwd=self.build, capture_output=True, text=True, errors="replace", env=env,
                               timeout=self.limit)
        except subprocess.TimeoutExpired:
            return "time"
        self.seconds = time.monotonic() - begin
        if r.returncode == 0:
            return ""
        return ("emulator" if "==EMU==" in r.stderr and "ERROR" in r.stderr else
                "sanitizer" if "Sanitizer" in r.stderr or "runtime error" in r.stderr else "value")


def verdict(targets, mutant):
    built = False
    for t in targets:
        if not t.make(mutant):
            continue
        built = True
        how = t.run()
        if how:
            return "%s by %s" % (how, t.name)
    return "" if built else None


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
        names = tests_of(source)
        if not names:
            sys.exit("mutate.py: no cuda_test() uses %s" % source)
        targets = [Target(args.build, work, mode, n, source) for mode in ("race", "asan") for n in names]
        for t in targets:                                   # unchanged: has to pass, and says how long it takes
            if not t.make(path) or t.run():
                sys.exit("mutate.py: %s fails without any change" % t.name)
            t.limit = 20 + 10 * t.seconds
        mutant = os.path.join(work, os.path.basename(source))
        for line, name, text, changed in mutants:
            with open(mutant, "w") as f:
                f.write(changed)
            how = verdict(targets, mutant)
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
