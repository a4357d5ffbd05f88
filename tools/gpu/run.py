"""Runs the parts of a check on a GPU, each in a process of its own, into one report.

A part may fail, trap, hang or be killed: it is told as that, and the next one runs. The report is
written anew after every part, so that it is whole whenever the run ends. Standard library alone.

Exit codes: 0 all parts passed, 1 some did not, 2 a wrong option, 3 no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "tools/gpu"
REGIMES = ("block-resident", "grid-resident", "stepwise")
SHOWN_LINES = 60  # of a part's output in the report; the log has all of it
GRACE = 3.0  # seconds between asking a part to end and killing it
DEFAULT_MINUTES = {"first": 9.0, "tests": 10.0, "profile": 10.0}
NO_GPU = "no GPU"

# What a lost CUDA context says, in torch's words or the runtime's.
TRAPPED = re.compile(
    r"CUDA error|unspecified launch failure|illegal memory access|device-side assert|"
    r"cudaErrorLaunch|launch timed out",
)


@dataclass(frozen=True)
class Part:
    """A command with a time limit.

    Attributes:
        command: what runs; the words {python}, {out} and {arch} are filled in.
        limit: seconds.
        needs_gpu: without one, `dry_run` is run instead, if there is one.
        tool: a program without which the part is left out.
        module: a Python package without which it is left out.
    """

    name: str
    command: str
    limit: float
    needs_gpu: bool = True
    dry_run: str = ""
    tool: str = ""
    module: str = ""


@dataclass
class Outcome:
    """The outcome of a part."""

    verb: str
    name: str
    said: str  # passed, failed, timed out, ...
    seconds: float
    command: str
    lines: list[str] = field(default_factory=list)  # the end of its output

    @property
    def good(self) -> bool:
        return self.said == "passed"


@dataclass(frozen=True)
class Machine:
    """The machine's properties on which the parts depend."""

    gpu: bool
    arch: str  # 9.0
    packages: frozenset[str]


def script(name: str, arguments: str = "") -> str:
    return f"{{python}} {TOOLS}/{name} {arguments}".strip()


def pytest(arguments: str) -> str:
    return f"{{python}} -m pytest -q -p no:cacheprovider --device cuda {arguments}"


def suites() -> list[str]:
    """The test files with tests for a GPU, but for those that run elsewhere."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in files if re.search(r"pytest\.mark\.gpu\b", path.read_text())]
    apart = ("test_kernels.py", "test_cuda.py")
    return [str(path.relative_to(ROOT)) for path in marked if path.name not in apart]


def find_test(name: str) -> str:
    return str(next((ROOT / "tests").rglob(name)).relative_to(ROOT))


def first_parts() -> Iterator[Part]:
    yield Part("versions", script("versions.py"), 40, needs_gpu=False)
    if not os.environ.get("FASTRNN_LIBRARY"):
        build = "{python} setup.py build_ext --build-lib {out}/library"
        yield Part("build", build, 400, dry_run="{python} setup.py --help build_ext", tool="ninja")
    yield Part("import", script("versions.py", "--library"), 40, needs_gpu=False)
    for regime in REGIMES:
        yield Part(
            f"smoke-{regime}",
            script("smoke.py", f"--regime {regime}"),
            60,
            dry_run=script("smoke.py", f"--regime {regime} --dry-run"),
        )
    compile_it = f"nvcc -std=c++20 -O3 -arch=sm_{{sm}} -o {{out}}/calibrate {TOOLS}/calibrate.cu"
    yield Part("calibrate-build", compile_it, 60, needs_gpu=False, tool="nvcc")
    yield Part("calibrate", "{out}/calibrate", 30, dry_run="test -x {out}/calibrate")
    yield Part(
        "steps", script("steps.py", "--seconds 90"), 100, dry_run=script("steps.py", "--dry-run")
    )
    kernels = find_test("test_kernels.py")
    collect = f"{{python}} -m pytest -q -p no:cacheprovider --collect-only {kernels}"
    yield Part("kernels", pytest(kernels), 90, dry_run=collect, module="pytest")


def test_parts() -> Iterator[Part]:
    for suite in suites():
        name = f"suite-{Path(suite).stem.removeprefix('test_')}"
        yield Part(name, pytest(suite), 120, module="pytest")
    smoke = script("smoke.py", "--regime {regime} --units 33 --types float16 --cells lstm")
    for tool in ("memcheck", "racecheck"):
        for regime in REGIMES[:2]:
            # Torch's cache hands out pieces of one allocation, in which memcheck sees no bounds.
            uncached = "env PYTORCH_NO_CUDA_MEMORY_CACHING=1"
            command = f"{uncached} compute-sanitizer --tool {tool} --error-exitcode 1 {smoke}"
            yield Part(
                f"{tool}-{regime}",
                command.replace("{regime}", regime),
                60,
                tool="compute-sanitizer",
            )
    # Grids that wait for each other may end the context: they run last, and apart.
    cuda = find_test("test_cuda.py")
    yield Part("streams", pytest(f"{cuda} -m 'not traps'"), 60, module="pytest")
    yield Part("traps", pytest(f"{cuda} -m traps"), 90, module="pytest")


def profile_parts() -> Iterator[Part]:
    sections = ("SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats")
    options = " ".join(f"--section {section}" for section in sections)
    kernels = "-k 'regex:(grid|block)_(forward|backward)' --launch-count 6"
    for shape in range(4):
        command = f"ncu {options} {kernels} {script('steps.py', f'--once {shape}')}"
        yield Part(f"ncu-{shape}", command, 90, tool="ncu")
    rows = "--device cuda --quick --minutes 4 --shapes published --output {out}/benchmarks"
    yield Part("benchmarks", f"{{python}} -m benchmarks {rows}", 280, module="matplotlib")


PARTS = {"first": first_parts, "tests": test_parts, "profile": profile_parts}


# --- running --------------------------------------------------------------------------------------


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part with everything that it started, by SIGKILL if SIGTERM does not end it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def run_command(command: str, limit: float, log: Path) -> tuple[str, float, list[str]]:
    """What became of a command, its seconds, and the lines it printed."""
    begin = time.monotonic()
    output = log.with_suffix(".part")
    # Torch itself may be known by the user's PYTHONPATH alone.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    with output.open("wb") as sink:
        try:
            process = subprocess.Popen(
                shlex.split(command), stdout=sink, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True, cwd=ROOT, env=environment,
            )  # fmt: skip
        except OSError as error:
            sink.write(f"{error}\n".encode())
            said = "failed to start"
        else:
            try:
                said = outcome_of(process.wait(timeout=limit))
            except subprocess.TimeoutExpired:
                said = f"timed out after {limit:.0f} s"
            end(process)
    seconds = time.monotonic() - begin
    text = output.read_text(errors="replace")
    output.unlink()
    if said not in ("passed", NO_GPU) and TRAPPED.search(text):
        said += ", trapped"
    with log.open("a") as whole:
        whole.write(f"=== {command}\n{text}\n=== {said}, {seconds:.1f} s\n\n")
    return said, seconds, text.splitlines()


def outcome_of(code: int) -> str:
    if code == 0:
        return "passed"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"failed with {code}"


def run_part(
    verb: str, part: Part, machine: Machine, args: argparse.Namespace, left: float
) -> Outcome:
    """Run a part, or record why it cannot run."""
    substitute = args.part.get(part.name, "")
    command = substitute or part.command
    dry = part.needs_gpu and not machine.gpu and not substitute
    if dry:
        command = part.dry_run
    python = os.environ.get("PYTHON") or sys.executable
    words = {"python": shlex.quote(python), "out": shlex.quote(str(args.out))}
    words |= {"arch": machine.arch, "sm": machine.arch.replace(".", "")}
    for word, value in words.items():  # str.format would trip over other braces
        command = command.replace(f"{{{word}}}", value)
    outcome = Outcome(verb, part.name, "", 0.0, command)
    # ninja may lie beside a Python whose environment is not activated.
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    limit = min(args.limit.get(part.name, part.limit), left)
    if part.tool and not substitute and not shutil.which(part.tool, path=path):
        outcome.said = (
            f"left out: no {part.tool}" if machine.gpu else f"{NO_GPU}, and no {part.tool}"
        )
    elif part.module and not substitute and part.module not in machine.packages:
        outcome.said = (
            f"left out: no {part.module}" if machine.gpu else f"{NO_GPU}, and no {part.module}"
        )
    elif limit <= 1:
        outcome.said = "left out: no time"
    elif not command:
        outcome.said = NO_GPU
    else:
        outcome.said, outcome.seconds, outcome.lines = run_command(command, limit, args.log)
        outcome.lines = outcome.lines[-SHOWN_LINES:]
        if dry:
            outcome.said = f"{NO_GPU}; dry run {outcome.said}"
    return outcome


# --- the report -----------------------------------------------------------------------------------


def report(outcomes: Sequence[Outcome]) -> str:
    """All parts so far, of every verb that was run into the folder."""
    parts = ["# fastrnn on this machine", ""]
    parts += ["| | part | outcome | seconds |", "|-|-|-|-:|"]
    parts += [
        f"| {outcome.verb} | {outcome.name} | {outcome.said} | {outcome.seconds:.1f} |"
        for outcome in outcomes
    ]
    for outcome in outcomes:
        parts += ["", f"## {outcome.verb}: {outcome.name}", "", outcome.said, ""]
        parts += (
            [f"`{outcome.command}`", "", "```", *outcome.lines, "```"] if outcome.command else []
        )
    return "\n".join(parts) + "\n"


class Record:
    """The outcomes in a folder, kept beside the report so that another verb adds to it."""

    def __init__(self, folder: Path, verb: str) -> None:
        self.folder = folder
        self.kept = folder / "outcomes.json"
        self.outcomes: list[Outcome] = []
        if self.kept.exists():
            earlier = [Outcome(**fields) for fields in json.loads(self.kept.read_text())]
            self.outcomes = [outcome for outcome in earlier if outcome.verb != verb]

    def add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.write(self.kept, json.dumps([asdict(each) for each in self.outcomes], indent=1))
        self.write(self.folder / "report.md", report(self.outcomes))

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Put a file in place whole: a run that is killed leaves the one before."""
        unfinished = path.with_suffix(".new")
        unfinished.write_text(text)
        unfinished.replace(path)


def look(versions: Sequence[str]) -> Machine:
    """What the part `versions` printed, also if it ended early: the last word on a fact counts."""
    facts = dict(line.split(": ", 1) for line in versions if ": " in line)
    arch = facts.get("compute capability", "")
    arch = arch if re.fullmatch(r"\d+\.\d+", arch) else ""
    packages = frozenset(facts.get("packages", "").split())
    return Machine(bool(arch), arch or "9.0", packages)


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parser() -> argparse.ArgumentParser:
    usual = ", ".join(f"{verb} {minutes:g}" for verb, minutes in DEFAULT_MINUTES.items())
    options = argparse.ArgumentParser(
        prog="bash tools/gpu/run.sh", description=__doc__.split("\n")[0]
    )
    options.add_argument("verb", choices=PARTS)
    options.add_argument("--minutes", type=float, help=f"for all parts together ({usual})")
    options.add_argument(
        "--limit", type=pair, action="append", default=[], metavar="PART=SECONDS", help="of a part"
    )
    options.add_argument(
        "--part", type=pair, action="append", default=[], metavar="PART=COMMAND",
        help="another command for a part",
    )  # fmt: skip
    options.add_argument("--only", nargs="+", metavar="PART", help="versions and these alone")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    args = options.parse_args(argv)
    os.chdir(ROOT)
    parts = list(PARTS[args.verb]())
    if parts[0].name != "versions":
        parts.insert(0, next(first_parts()))
    names = [part.name for part in parts]
    args.limit, args.part = dict(args.limit), dict(args.part)
    for name in [*args.limit, *args.part, *(args.only or [])]:
        if name not in names:
            options.error(f"no part {name!r} in {args.verb}; there are {', '.join(names)}")
    try:
        args.limit = {name: float(seconds) for name, seconds in args.limit.items()}
    except ValueError as error:
        options.error(f"--limit: {error}")
    args.out = Path(os.environ.get("OUT") or "build/gpu").absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    args.log = args.out / f"{args.verb}.log"
    args.log.unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * (args.minutes or DEFAULT_MINUTES[args.verb])
    record, machine, outcomes = Record(args.out, args.verb), Machine(False, "9.0", frozenset()), []
    for part in parts:
        if args.only and part.name not in ["versions", *args.only]:
            continue
        outcome = run_part(args.verb, part, machine, args, deadline - time.monotonic())
        outcomes.append(outcome)
        record.add(outcome)
        print(f"{outcome.seconds:6.1f} s  {part.name}: {outcome.said}", flush=True)
        if part.name == "versions":
            machine = look(outcome.lines)
            if machine.gpu:  # for the build
                os.environ |= {"TORCH_CUDA_ARCH_LIST": machine.arch, "USE_CUDA": "1"}
        built = args.out / "library/fastrnn/_C.abi3.so"
        if part.name == "build" and outcome.good and built.exists():
            os.environ["FASTRNN_LIBRARY"] = str(built)
    print(f"wrote {args.out / 'report.md'}")
    if not machine.gpu:
        return 3
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
