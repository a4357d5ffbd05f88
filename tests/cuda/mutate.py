"""Breaks the CUDA kernels and their launch code, one place at a time, and asks the suite whether it sees that.

    python tests/cuda/mutate.py                     # every site; hours on two cores
    python tests/cuda/mutate.py --sample 20 --seed 1
    python tests/cuda/mutate.py --list

Each operator finds all its sites by the text of the sources. A mutant is a copy of csrc/ with one of
them changed; tests/cuda/test_scan.py runs on it, its quicker tests first, until one fails. What
the compiler turns into the same PTX is no mutant, and what it refuses is none either. Each survivor
must be explained in SURVIVORS, or the command ends with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # for `python tests/cuda/mutate.py`

from simulator import BuildError  # noqa: E402
from tools.simulated.kernels import CSRC, ptx  # noqa: E402

RESIDENT = [f"cuda/regimes/{name}_resident.cuh" for name in ("block", "grid")]
KERNELS = ["cuda/tiles.cuh", "cuda/step.cuh", *RESIDENT, "cuda/regimes/stepwise.cuh"]
PASSES = [f"cuda/{name}" for name in ("run.cuh", "forward.cuh", "backward.cuh", "workspace.h")]
LAUNCH = [*PASSES, "cuda/gemm.h", "cuda/launch.cuh", "cuda/plan.h"]
CELLS = [f"cells/{name}.h" for name in ("elman", "gru", "lstm")]
FILES = [*KERNELS, *LAUNCH, *CELLS]

# These parts of test_scan.py are run one after the other until something fails. A row is the unit of csrc/cuda that
# the tests need, the cells, and the tests' names. Quick ones come first. A unit is compiled for these cells
# alone, and where a mutant leaves its code as it is, the stage is left out.
ELMAN, GRU, LSTM = "Elman<Tanh>, Elman<Relu>", "Gru", "Lstm"
HALF = "(float16 and not bfloat16 or without or padding)"
NARROW = "not float16 and not bfloat16 and not float64"
STAGES = (
    ("double", GRU, "gru and every_regime and float64"),
    ("half", GRU, f"refused or (gru or padding) and {HALF}"),
    ("double", LSTM, "(lstm and every_regime or projection or alone) and float64"),
    ("half", LSTM, f"chunks_of_rows or lstm and {HALF}"),
    ("float", GRU, f"(test_rows or features or gru and (nonfinite or recomputed or every_regime or few)) and {NARROW}"),
    ("float", LSTM, f"(projection or watchdog or alone or lstm and recomputed) and {NARROW}"),
    ("float", LSTM, "lstm and (every_regime and forward or few) and tf32"),
    ("half", ELMAN, f"rnn and {HALF}"),
    ("bfloat16", GRU, "gru and every_regime and forward and bfloat16"),
)  # fmt: skip
SECONDS = 600  # a stage may take so many

# A survivor has its operator, and why no test can see it. The line above such a place says "// mutant: NAME".
ZERO_OUT, BUFFER, GUARD = "drop a canonicalisation", "shrink a buffer", "drop a guard"
SURVIVORS = {
    "without c": (ZERO_OUT, "cells without c never read what is there"),
    "padded backward": (
        ZERO_OUT,
        "nothing leaves the kernel of a padded unit's or sample's state, and its d_gh is 0",
    ),
    "outputs follow": (
        BUFFER,
        "the outputs lie behind d_output and are made when it has been used",
    ),
    "nap": (GUARD, "a lane naps without need, which costs time and changes no result"),
    "not multiplied": (GUARD, "weights past a warp's own are loaded and never multiplied"),
    "columns not there": (GUARD, "sums of columns that do not exist go nowhere"),
    "padded gates": (GUARD, "gates of a padded step are computed again, and nothing reads them"),
}
ANCHOR = re.compile(r"\s*// mutant: (.+)")


@dataclass(frozen=True)
class Mutant:
    operator: str
    file: str
    start: int  # the file's text from start to end is replaced
    end: int
    text: str

    def change(self, source: str) -> str:
        return f"{' '.join(source[self.start : self.end].split())} -> {self.text or 'nothing'}"

    def describe(self, source: str) -> str:
        """Its name in the outcomes: no two have the same."""
        line = source.count("\n", 0, self.start) + 1
        column = self.start - source.rfind("\n", 0, self.start)
        return f"{self.operator}: {self.file}:{line}:{column}: {self.change(source)}"

    def anchor(self, source: str) -> str | None:
        """The name in the line above, if it is of this operator."""
        above = source[: source.rfind("\n", 0, self.start)].rsplit("\n", 1)[-1]
        named = ANCHOR.fullmatch(above)
        return named[1] if named and SURVIVORS[named[1]][0] == self.operator else None

    def explanation(self, source: str) -> str | None:
        """Why no test can see it."""
        name = self.anchor(source)
        return SURVIVORS[name][1] if name else None


# --- reading C++ ---------------------------------------------------------------------------------


def blank_comments(source: str) -> str:
    """Comments as spaces, so that places stay the same."""
    return re.sub(r"//[^\n]*", lambda m: " " * len(m[0]), source)


def closing(source: str, at: int) -> int:
    """Where the bracket at `at` is closed."""
    pairs = {"(": ")", "[": "]", "{": "}"}
    depth = 0
    for i in range(at, len(source)):
        if source[i] == source[at]:
            depth += 1
        elif source[i] == pairs[source[at]]:
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"bracket at {at} is not closed")


def arguments(source: str, at: int) -> list[tuple[int, int]]:
    """Places of the arguments in the parentheses at `at`."""
    end, places, start, depth = closing(source, at), [], at + 1, 0
    for i in range(at + 1, end + 1):
        if source[i] in "([{":
            depth += 1
        elif source[i] in ")]}" and i < end:
            depth -= 1
        if i == end or (source[i] == "," and depth == 0):
            places.append((start + len(source[start:i]) - len(source[start:i].lstrip()), i))
            start = i + 1
    return places


# --- operators -----------------------------------------------------------------------------------
#
# Each yields (start, end, replacement) for its sites in a source without comments.

Site = tuple[int, int, str]


def drop_barrier(source: str) -> Iterator[Site]:
    for m in re.finditer(r"__sync(threads|warp)\(\);", source):
        yield *m.span(), ";"


def weaken_order(source: str) -> Iterator[Site]:
    """An access loses its scope or order; an asm statement loses what keeps it in its place."""
    for m in re.finditer(r"\b(ld|st)\.relaxed\.gpu", source):
        yield *m.span(), f"{m[1]}.relaxed.cta"
        yield *m.span(), f"{m[1]}.weak"
    for m in re.finditer(r'asm volatile(?!\("")', source):
        yield *m.span(), "asm"
    for m in re.finditer(r'\s*:\s*"memory"', source):
        yield *m.span(), ""


# The argument of that number is an index in a call of these functions.
INDEXED = {"word_index": 0, "vector_index": 0, "hh": 0, "reset": 0, "slot": 0, "part": 0, "to": 0, "d_initial": 0,
           "matrix": 0, "at": 1, "row_of": 1}  # fmt: skip
POINTERS = r"\b(words|slot|parts|exchange|chunk\.gx|sums|h|d_gates|\w+\.data|data)\s\+\s"


def shift_index(source: str) -> Iterator[Site]:
    """The next element is taken, or the next row of a matrix."""
    for m in re.finditer(r"[\w)\]](\[)", source):
        start, end = m.start(1), closing(source, m.start(1))
        inside = source[start + 1 : end]
        before = re.search(r"(\S+)?\s*[\w.]*$", source[max(0, start - 80) : start])
        head = source[source.rfind("\n", 0, start) + 1 : start].strip()
        declares = re.search(r"(\b(?!return\b|else\b)\w+|>)[&*]* \w+(\[[^]]*\])*$", head) or re.search(r"\(&\w+\)(\[[^]]*\])*$", head)  # fmt: skip
        declares = declares or source.startswith("] = {", end)
        if not inside.strip() or declares or before is None:
            continue
        yield start + 1, end, f"({inside}) + 1"
    for m in re.finditer(r"\b(\w+)(\()", source):
        if m[1] not in INDEXED or re.search(
            r"\b(int|int64_t|uint32_t|float|auto|S>|Accumulate<S>)\*? $", source[: m.start()]
        ):
            continue
        places = arguments(source, m.start(2))
        if len(places) > INDEXED[m[1]]:
            start, end = places[INDEXED[m[1]]]
            if source[start:end].strip() and not re.match(
                r"(const|int|int64_t) ", source[start:end]
            ):
                yield start, end, f"({source[start:end]}) + 1"
    for m in re.finditer(POINTERS, source):
        yield *m.span(), f"{m[1]} + 1 + "


def shrink_buffer(source: str) -> Iterator[Site]:
    """A buffer is halved, or what is cleared or filled of it; a shared array loses a row."""
    for m in re.finditer(r"\b(?:arena\.take<\w+>|clear|for_each|cudaMemsetAsync)(\()", source):
        places = arguments(source, m.start(1))
        which = 2 if "Memset" in m[0] else 0 if "take" in m[0] else 1
        if (
            len(places) > which
            and source[places[which][0]] != " "
            and "int" not in source[slice(*places[which])]
        ):
            start, end = places[which]
            if not re.match(r"(auto|int64_t|const) ", source[start:end]):
                yield start, end, f"({source[start:end]}) / 2"
    for m in re.finditer(r"\.(?:shared|exchange)_bytes = ([^;]+);", source):
        yield *m.span(1), f"({m[1]}) / 2"
    for m in re.finditer(r"__shared__ [^;\[]*\[([^]]+)\]", source):
        if m[1].strip():
            yield *m.span(1), f"{m[1]} - 1"


def swap_gates(source: str) -> Iterator[Site]:
    """The second and the third gate change places in a loop; neighbours do where a cell names them."""
    for m in re.finditer(r"\bgate\b", source):
        line = source[source.rfind("\n", 0, m.start()) + 1 : source.find("\n", m.start())]
        if re.search(r"for \(|int gate\b(?! =)", line) or re.match(r"\s*=[^=]", source[m.end() :]):
            continue
        yield *m.span(), "(gate == 1 ? 2 : gate == 2 ? 1 : gate)"
    for m in re.finditer(r"\b(gx|gh|saved|d_gx|d_gh)\[(\d)\]", source):
        yield m.start(2), m.end(2), {"0": "1", "1": "0", "2": "1", "3": "2"}[m[2]]
    for m in re.finditer(
        r"[\[{](\w+|d_gx\[0\]), (\w+|d_gx\[1\])(?=, [^\]}]*[\]}](?: = saved)?;)", source
    ):
        yield m.start(1), m.end(2), f"{m[2]}, {m[1]}"


ZERO = r"(?:0\.f|0|A\(0\)|Accumulate<S>\(0\)|store<S>\(0\)|A\{\}|V\{\})"


def drop_canonicalisation(source: str) -> Iterator[Site]:
    """A NaN keeps its bits; what is not there, or does not run, is not made 0."""
    for m in re.finditer(r"value != value \? 0x7fffffff : bits", source):
        yield *m.span(), "bits"
    for m in re.finditer(rf" \? ((?:[^?:;]|::)+?) : {ZERO}(?=[;,)}}\]])", source):
        start, depth = m.start(), 0
        while depth >= 0 and not (
            depth == 0 and re.match(r"(= |return |[,{;]\s+)", source[start:])
        ):
            start -= 1
            depth += (source[start] in ")]}") - (source[start] in "([{" and depth >= 0)
        start += len(re.match(r"(= |return |[,{;]\s+|[(\[{])", source[start:])[0])  # type: ignore[index]
        yield start, m.end(), m[1]
    for m in re.finditer(r"(?<=[;{)\s])[\w.\[\]]+(?: = [\w.\[\]]+)* = (?:0|false|A\(0\));", source):
        if not re.search(
            r"\b(int|int64_t|float|uint32_t|bool|auto|A|Accumulate<S>|double|char|size_t) $",
            source[: m.start()],
        ):
            yield *m.span(), ";"


def drop_guard(source: str) -> Iterator[Site]:
    """What a condition keeps out is let in."""
    for m in re.finditer(r"\bif (\()", source):
        end = closing(source, m.start(1)) + 1
        rest = re.match(r"\s*(return\b[^;]*;|break;|continue;)?", source[end:])
        assert rest
        if rest[1]:
            yield m.start(), end + rest.end(), ";"
        elif not re.match(r"\s*constexpr", source[m.start() + 2 :]):
            yield m.start(), end, "if (true)"


OPERATORS = {
    "drop a barrier": (drop_barrier, KERNELS),
    "weaken an order or scope": (weaken_order, KERNELS),
    "shift an index": (shift_index, [*KERNELS, *PASSES]),
    "shrink a buffer": (shrink_buffer, [*KERNELS, *LAUNCH]),
    "swap gates": (swap_gates, [*KERNELS, *CELLS]),
    "drop a canonicalisation": (drop_canonicalisation, KERNELS),
    "drop a guard": (drop_guard, KERNELS),
}


def mutants() -> list[Mutant]:
    """All mutants, in the order of operators and sources."""
    all_mutants = []
    for operator, (sites, files) in OPERATORS.items():
        for file in files:
            source = blank_comments((CSRC / file).read_text())
            all_mutants += [Mutant(operator, file, *site) for site in sorted(set(sites(source)))]
    return all_mutants


# --- running them --------------------------------------------------------------------------------


@dataclass
class Outcome:
    mutant: str
    operator: str
    result: str  # it says caught, survived, same code or not compiled
    by: str = ""  # this test failed


def narrowed(csrc: Path, cells: str, folder: Path) -> Path:
    """A copy of the sources for these cells alone."""
    copy = folder / "csrc"
    shutil.copytree(csrc, copy)
    dispatch = copy / "dispatch.h"
    text, count = re.subn(r"CellList<Elman.*>;", f"CellList<{cells}>;", dispatch.read_text())
    assert count == 1
    dispatch.write_text(text)
    return copy


def code(csrc: Path, unit: str) -> str:
    """A unit's PTX without places in sources. It has megabytes, so only that of the unchanged sources is kept."""
    text = ptx.__wrapped__(unit, csrc)
    text = re.sub(r"^\s*\.section\s+\.debug_\w+\s*\{.*?\n\s*\}\n", "", text, flags=re.M | re.S)
    return re.sub(r"^\s*\.(loc|file)\b.*\n|//.*", "", text, flags=re.M)


@functools.cache
def unchanged_code(unit: str, cells: str) -> str:
    with tempfile.TemporaryDirectory(prefix="fastrnn-unchanged-") as folder:
        return code(narrowed(CSRC, cells, Path(folder)), unit)


def run(mutant: Mutant | None) -> Outcome:
    """The outcome of a mutant, or of the sources as they are. Runs in a thread of workers()."""
    operator = mutant.operator if mutant else ""
    what = "the sources as they are"
    result = "same code"
    kernels = mutant is None or mutant.file not in LAUNCH
    launch = mutant is None or mutant.file in LAUNCH
    with tempfile.TemporaryDirectory(prefix="fastrnn-mutant-") as folder:
        csrc = Path(folder) / "whole"
        shutil.copytree(CSRC, csrc)
        if mutant:
            changed = csrc / mutant.file
            source = changed.read_text()
            what = mutant.describe(source)
            changed.write_text(source[: mutant.start] + mutant.text + source[mutant.end :])
        for i, (unit, cells, tests) in enumerate(STAGES):
            if mutant and mutant.file in RESIDENT and unit == "double":
                continue  # double has no resident kernels
            stage = narrowed(csrc, cells, Path(folder) / str(i))
            environment = {
                "FASTRNN_SIMULATOR_KERNELS": str(stage if kernels else CSRC),
                "FASTRNN_SIMULATOR_LAUNCH": str(stage if launch else CSRC),
                "SIMULATOR_OPTIMIZE": "0",
            }
            if mutant and kernels:
                try:
                    if code(stage, unit) == unchanged_code(unit, cells):
                        continue
                except BuildError:
                    return Outcome(what, operator, "not compiled")
            result, by = judge(tests, environment)
            if result != "survived":
                return Outcome(what, operator, result, by)
    return Outcome(what, operator, result)


class Server:
    """Serves runs of pytest, for which torch is imported once."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "forks.py"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """The exit status, which is negative for a signal, and what was said."""
        assert self.process.stdin and self.process.stdout
        with tempfile.NamedTemporaryFile("r") as output:
            request = {"arguments": arguments, "environment": environment,
                       "output": output.name, "seconds": SECONDS}  # fmt: skip
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline()), output.read()


MINE = threading.local()  # its `server` is the worker's own


@contextlib.contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for run()."""
    servers = [Server() for _ in range(count)]
    idle = iter(servers)
    try:
        with ThreadPoolExecutor(
            count, initializer=lambda: setattr(MINE, "server", next(idle))
        ) as pool:
            yield pool
    finally:
        for server in servers:
            with server.process:  # it closes its input, and waits for its end
                pass


def judge(tests: str, environment: dict[str, str]) -> tuple[str, str]:
    """The result, and what caught it."""
    arguments = ["-x", "-q", "--no-header", "-rf",
                 "-p", "no:cacheprovider", str(HERE / "test_scan.py"), "-k", tests]  # fmt: skip
    status, said = MINE.server.run(arguments, environment)
    if status == -signal.SIGALRM:
        return "caught", f"no end: {tests}"
    if "BuildError" in said:
        return "not compiled", ""
    for ours in ("TranslationError", "PtxError", "kernel without translation", "unknown cell"):
        if ours in said:
            raise RuntimeError(f"{tests}: {ours}\n{said}")
    if status < 0:
        return "caught", f"signal {-status}: {tests}"
    if status == 1:
        failed = re.search(r"^FAILED \S*?::(.*)$", said, re.M)
        return "caught", failed[1][:200] if failed else said[-200:]
    if status != 0:
        raise RuntimeError(f"{tests}: pytest ended with {status}\n{said}")
    return "survived", ""


def table(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| operator | mutants | caught | survived | same code | not compiled |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for operator in [*OPERATORS, ""]:
        of = [o for o in outcomes if not operator or o.operator == operator]
        count = Counter(o.result for o in of)
        real = count["caught"] + count["survived"]
        share = f" ({count['caught'] / real:.1%})" if real else ""
        lines.append(
            f"| {operator or 'all'} | {real} | {count['caught']}{share} | {count['survived']} "
            f"| {count['same code']} | {count['not compiled']} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the sites, run nothing")
    parser.add_argument("--sample", type=int, metavar="N", help="so many, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operators", nargs="+", choices=OPERATORS, default=list(OPERATORS),
                        help="in this order")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "mutation.jsonl",
                        help="one line a mutant; what is there already is not run again")  # fmt: skip
    arguments = parser.parse_args()
    chosen = [m for m in mutants() if m.operator in arguments.operators]
    random.Random(arguments.seed).shuffle(chosen)
    chosen = sorted(chosen[: arguments.sample], key=lambda m: arguments.operators.index(m.operator))
    sources = {file: (CSRC / file).read_text() for file in FILES}
    if arguments.list:
        for mutant in sorted(chosen, key=lambda m: (m.operator, m.file, m.start)):
            print(mutant.describe(sources[mutant.file]))
        print(
            table([Outcome("", m.operator, "caught") for m in chosen]).replace("caught", "sites", 1)
        )
        return 0
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.touch()
    names = {m.describe(sources[m.file]): m for m in chosen}
    known = [Outcome(**json.loads(line)) for line in arguments.output.read_text().splitlines()]
    done = [outcome for outcome in known if outcome.mutant in names]
    todo = [names[name] for name in names.keys() - {outcome.mutant for outcome in done}]
    # What is known to survive comes last: it takes all stages.
    todo.sort(key=lambda m: (m.explanation(sources[m.file]) is not None, chosen.index(m)))
    with workers(arguments.jobs) as pool, arguments.output.open("a") as file:
        unchanged = pool.submit(run, None)
        for future in as_completed([unchanged, *(pool.submit(run, mutant) for mutant in todo)]):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            outcome = future.result()
            if future is unchanged:
                continue
            print(f"{outcome.result}: {outcome.mutant}  {outcome.by}", flush=True)
            file.write(json.dumps(asdict(outcome)) + "\n")
            file.flush()
            done.append(outcome)
    if unchanged.result().result != "survived":
        print(
            f"the suite fails on the sources as they are: {unchanged.result().by}", file=sys.stderr
        )
        return 2
    print(table(done))
    unexplained = False
    for outcome in done:
        if outcome.result == "survived":
            mutant = names[outcome.mutant]
            why = mutant.explanation(sources[mutant.file])
            print(f"survived: {outcome.mutant}: {why or 'NOT EXPLAINED'}")
            unexplained |= why is None
    return int(unexplained)


if __name__ == "__main__":
    sys.exit(main())
