"""A cell's library: what names it, where it lies, who may have put it there, and what is said where there is none.

The headers here are three lines that compile in an instant, and the ops are stand-ins that load what came of them.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from fastrnn import library
from fastrnn.cells import cache, compilation, compiler, toolchain
from fastrnn.cells.compilation import Headers, generator, make_unit
from fastrnn.cells.compiler import CannotCompile, build, ensure, load

HEADERS = {
    "for_plain.h": "#define FASTRNN_END_ISA\n",
    "for_avx2.h": "#define FASTRNN_END_ISA\n",
    "compiled_cell.h": """
namespace fastrnn {
struct BFloat16 { short bits; };
struct Half { short bits; };
template <class A> struct Dual { A value, tangent; };
}
#define FASTRNN_COMPILED_CELL(Cell, Type)                                                         \\
  namespace fastrnn { constexpr int kBytes = sizeof(Type) * Cell::kInputGates; }                  \\
  extern "C" __attribute__((visibility("default"))) int bytes() { return fastrnn::kBytes; }
""",
}

OTHER_MACHINE = {"x86_64": "aarch64"}.get(platform.machine(), "x86_64")

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++"))), reason="needs a C++ compiler"
)


@dataclass
class FakeCell:
    name: str = "leaky"
    op_name: str = "leaky_0123456789ab"
    struct_name: str = "leaky_0123456789ab"
    body: str = "static constexpr int kInputGates = 1;"

    def source(self) -> str:
        return f"struct {self.struct_name} {{ {self.body} }};"

    def for_projection(self) -> FakeCell:
        name = f"projected_{self.op_name}"
        return replace(self, op_name=name, struct_name=name)


@dataclass
class FakeOps:
    """The library's ops about compiled cells."""

    layout: str
    instruction_set: str = "plain"
    loaded: dict[tuple[str, torch.dtype], int] = field(default_factory=dict)
    calls: int = 0

    def cell_layout(self) -> str:
        return self.layout

    def cell_instruction_set(self) -> str:
        return self.instruction_set

    def has_cell(self, name: str, dtype: torch.dtype) -> bool:
        self.calls += 1
        return (name, dtype) in self.loaded

    def load_cell(self, path: str) -> None:
        try:
            size = ctypes.CDLL(path).bytes()
        except OSError as error:
            raise RuntimeError(str(error)) from error
        record = cache.read_record(Path(path))
        self.loaded[record.op_name, getattr(torch, record.dtype)] = size

    def forget(self) -> None:
        """As in a process that has just started."""
        self.loaded.clear()
        library.LOADED_CELLS.clear()


def use(ops: FakeOps, headers: Headers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cell_layout", "cell_instruction_set", "has_cell", "load_cell"):
        monkeypatch.setattr(torch.ops.fastrnn, name, getattr(ops, name), raising=False)
    monkeypatch.setattr(compilation, "present_headers", lambda: headers)


@pytest.fixture
def headers(tmp_path: Path) -> Headers:
    for name, text in HEADERS.items():
        path = tmp_path / "include/cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Headers(tmp_path / "include", toolchain.cell_layout(tmp_path / "include"))


@pytest.fixture(autouse=True)
def ops(headers: Headers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeOps:
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "LOADED_CELLS", loaded := set())
    monkeypatch.setattr(compiler, "LOADED_CELLS", loaded)
    monkeypatch.setattr(compiler, "_refusals", {})
    ops = FakeOps(headers.layout)
    use(ops, headers, monkeypatch)
    return ops


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The libraries that were compiled."""
    paths = []
    compile_anew = compilation._compile

    def counted(unit: compilation.Unit, path: Path) -> None:
        paths.append(path)
        compile_anew(unit, path)

    monkeypatch.setattr(compilation, "_compile", counted)
    return paths


# --- compile, keep, load ----------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "second_order", "expected"),
    [
        (torch.float32, False, {torch.float32: 4}),
        (torch.float64, False, {torch.float64: 8}),
        (torch.bfloat16, True, {torch.bfloat16: 2, torch.complex64: 8}),
        (torch.float16, True, {torch.float16: 2, torch.complex64: 8}),
        (torch.float64, True, {torch.float64: 8, torch.complex128: 16}),
    ],
)
def test_a_type_has_its_name_in_cpp_and_its_duals(ops, dtype, second_order, expected):
    ensure(FakeCell(), dtype, second_order=second_order)
    assert ops.loaded == {("leaky_0123456789ab", key): size for key, size in expected.items()}


@needs_compiler
def test_a_layer_with_a_projection_has_kernels_of_its_own(ops, tmp_path):
    ensure(FakeCell(), torch.float32)
    ensure(FakeCell(), torch.float32, projected=True)
    names = ["leaky_0123456789ab", "projected_leaky_0123456789ab"]
    assert [name for name, _ in ops.loaded] == names
    (path,) = build(FakeCell(), folder=tmp_path / "model", projected=True)
    assert path.name.startswith(names[1])


@needs_compiler
def test_a_library_is_compiled_once_and_looked_for_once(ops, compilations):
    cell = FakeCell()
    ensure(cell, torch.float32)
    calls = ops.calls
    ensure(cell, torch.float32)
    assert ops.calls == calls
    ops.forget()
    ensure(cell, torch.float32)
    assert ops.loaded and len(compilations) == 1
    (folder,) = {path.parent for path in compilations}
    assert not [path for path in folder.iterdir() if path.suffix not in (".so", ".lock")]


@needs_compiler
def test_kernels_for_another_instruction_set_are_loaded_when_it_runs(ops, compilations):
    ensure(FakeCell(), torch.float32)
    library.use_cpu_instruction_set("plain")
    library.use_cpu_instruction_set(None)
    ops.loaded.clear()
    ops.instruction_set = "avx2"
    ensure(FakeCell(), torch.float32)
    assert [path.name.split("-")[2] for path in compilations] == ["plain", "avx2"]


def keyed(monkeypatch: pytest.MonkeyPatch, change: str) -> Path:
    """The place of a library after a change of something that its bits may depend on."""
    cell, dtype, instruction_set = FakeCell(), torch.float32, "plain"
    if change == "formula":
        cell = FakeCell(body="static constexpr int kInputGates = 2;")
    elif change == "dtype":
        dtype = torch.float64
    elif change == "instruction set":
        instruction_set = "avx2"
    elif change == "flags":
        monkeypatch.setattr(toolchain, "CXX_FLAGS", toolchain.CXX_FLAGS + " -g1")
    elif change in ("command", "path", "version"):
        other = compilation.present_compiler()._replace(**{change: "another"})
        monkeypatch.setattr(compilation, "present_compiler", lambda: other)
    elif change == "headers":
        other_headers = compilation.present_headers()._replace(layout="another")
        use(FakeOps("another"), other_headers, monkeypatch)
    return make_unit(cell, dtype, instruction_set).path(Path("cache"))


@needs_compiler
@pytest.mark.parametrize(
    "change",
    [
        "formula",
        "dtype",
        "instruction set",
        "flags",
        "command",
        "path",
        "version",
        "headers",
    ],
)
def test_a_library_is_named_by_all_that_it_depends_on(monkeypatch, change):
    before = keyed(monkeypatch, "nothing")
    assert keyed(monkeypatch, "nothing") == before
    assert keyed(monkeypatch, change) != before


@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-100], id="cut"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: content[:99] + b"?" + content[100:], id="changed"),
        pytest.param(lambda content: b"\x7fELF of somebody else\n{}\n", id="foreign"),
        pytest.param(
            lambda content: cache.sealed(b"", cache.Record(*"abcdef")), id="of-another-cell"
        ),
    ],
)
def test_a_file_that_is_not_the_library_is_built_anew(ops, compilations, damage):
    ensure(FakeCell(), torch.float32)
    (path,) = compilations
    whole = path.read_bytes()
    cache.write_whole(path, damage(whole))  # the library that is loaded stays as it is
    assert path.read_bytes() != whole
    ops.forget()
    ensure(FakeCell(), torch.float32)
    assert ops.loaded and compilations == [path, path]


def test_a_record_of_another_version_is_none(tmp_path, monkeypatch):
    path = tmp_path / "cell.so"
    path.write_bytes(cache.sealed(b"", cache.Record(*"abcdef")))
    assert cache.read_record(path) == cache.Record(*"abcdef")
    monkeypatch.setattr(cache, "Record", lambda op_name: op_name)
    assert cache.read_record(path) is None


@pytest.mark.parametrize("field_name", ["op_name", "struct_name"])
@pytest.mark.parametrize("name", ["", "1st", "a b", 'x"', "a;b", "naïve", "a\n", "x" * 129])
def test_names_alone_reach_the_compiler(field_name, name):
    cell = FakeCell(**{field_name: name})
    with pytest.raises(ValueError, match=r"a cell's name is .*, expected a short identifier"):
        make_unit(cell, torch.float32, "plain")


@needs_compiler
@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_told_what_is_compiled(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    ensure(FakeCell(), torch.float32)
    expected = r"fastrnn: compiling leaky \(float32, plain\) ... \d+\.\d s\n" if terminal else ""
    assert re.fullmatch(expected, capsys.readouterr().err)


# --- many processes ---------------------------------------------------------------------------------

# It notes each compilation, and stays in the first one until whoever asked for it has died.
SLOW_COMPILER = """#!/bin/sh
case " $* " in *" -E "*) exec g++ "$@" ;; esac
echo once >> {folder}/compilations
if mkdir {folder}/first 2>/dev/null; then
  echo $PPID > {folder}/noted
  mv {folder}/noted {folder}/first/asker
  while kill -0 $PPID 2>/dev/null; do sleep 0.05; done
  exit 1
fi
exec g++ "$@"
"""


def take_from_cache(headers: Headers, environment: dict[str, str]) -> None:
    """What each process does; it ends with an error if it gets no library."""
    os.environ |= environment
    with pytest.MonkeyPatch.context() as monkeypatch:
        ops = FakeOps(headers.layout)
        use(ops, headers, monkeypatch)
        ensure(FakeCell(), torch.float32)
        assert ops.loaded == {("leaky_0123456789ab", torch.float32): 4}


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_of_many_processes_one_compiles_and_a_killed_one_is_replaced(headers, tmp_path):
    script = tmp_path / "slow-g++"
    script.write_text(SLOW_COMPILER.format(folder=tmp_path))
    script.chmod(0o755)
    environment = {"CXX": str(script), "FASTRNN_CACHE_DIR": str(tmp_path / "cache")}
    spawner = multiprocessing.get_context("forkserver")
    processes = [
        spawner.Process(target=take_from_cache, args=(headers, environment)) for _ in range(8)
    ]
    for process in processes:
        process.start()
    asker = tmp_path / "first/asker"
    deadline = time.monotonic() + 60
    while not asker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed = int(asker.read_text())
    os.kill(killed, signal.SIGKILL)
    for process in processes:
        process.join(60)
    assert {process.pid: process.exitcode for process in processes} == {
        process.pid: -signal.SIGKILL if process.pid == killed else 0 for process in processes
    }
    assert (tmp_path / "compilations").read_text().split() == ["once", "once"]
    assert len(list((tmp_path / "cache").glob("*.so"))) == 1


# --- the cache's folder -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTRNN_CACHE_DIR": "{home}/named", "XDG_CACHE_HOME": "{home}/xdg"}, "named"),
        ({"XDG_CACHE_HOME": "{home}/xdg"}, "xdg/fastrnn"),
        ({}, ".cache/fastrnn"),
    ],
    ids=["named", "XDG", "home"],
)
def test_the_folder_is_the_users_own(monkeypatch, tmp_path, environment, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FASTRNN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    folder = cache.user_folder()
    assert folder == tmp_path / expected
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache.user_folder() == folder


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o770])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(CannotCompile, match=f"^others may write to {tmp_path}/cache; call chmod"):
        cache.user_folder()


def test_a_folder_of_another_user_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    owner = f"^{tmp_path}/cache belongs to user {os.getuid()}; name a folder of your own"
    with pytest.raises(CannotCompile, match=owner):
        cache.user_folder()


def test_a_link_is_followed_before_the_folder_is_checked(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    assert cache.user_folder() == tmp_path / "real"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(CannotCompile, match=r"no folder for compiled cells .* FASTRNN_CACHE_DIR"):
        cache.user_folder()


def test_a_file_system_without_locks(monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    reason = f"cannot lock a file in {tmp_path} .*No locks available.* FASTRNN_CACHE_DIR"
    with pytest.raises(CannotCompile, match=reason), cache.locked(tmp_path / "cell.so"):
        pytest.fail("it is locked")


@needs_compiler
def test_a_full_disk_leaves_nothing(monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CannotCompile, match=r"leaky .* cannot be compiled: .*No space left"):
        ensure(FakeCell(), torch.float32)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@needs_compiler
def test_a_file_system_that_runs_no_programs(monkeypatch, ops):
    def fail(path: str) -> None:
        raise RuntimeError(f"{path}: failed to map segment\nfrom the dispatcher")

    monkeypatch.setattr(torch.ops.fastrnn, "load_cell", fail)
    with pytest.raises(CannotCompile, match=r"loaded \(.*segment\); name a folder .*CACHE_DIR$"):
        ensure(FakeCell(), torch.float32)


# --- no compiler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system(monkeypatch, system):
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(CannotCompile, match=f"^cells are compiled on Linux .* this is {system}$"):
        ensure(FakeCell(), torch.float32)


@needs_compiler
@pytest.mark.parametrize(
    "claim",
    ["-D__clang__ -D__clang_major__=15", "-U__GNUC__ -D__GNUC__=10"],
)
def test_a_compiler_that_will_not_do_is_named(monkeypatch, claim):
    cxx = f"{toolchain.find_compiler(toolchain.candidates()).command} {claim}"
    monkeypatch.setenv("CXX", cxx)
    expected = (
        f"{cxx} cannot compile the kernels; g++ >= 11 and clang >= 16 can (this is an older one). "
    )
    with pytest.raises(CannotCompile, match=f"^{re.escape(expected)}"):
        ensure(FakeCell(), torch.float32)


@needs_compiler
def test_the_first_compiler_that_will_do_is_taken(tmp_path, monkeypatch):
    good = toolchain.find_compiler(toolchain.candidates())
    assert (
        toolchain.find_compiler(
            ["nowhere", f"{good.command} -D__clang__ -D__clang_major__=15", good.command]
        )
        == good
    )


@needs_compiler
def test_the_compiler_of_torch_is_taken_where_there_is_no_usual_one(monkeypatch):
    from torch._inductor import config

    command = shutil.which(toolchain.find_compiler(toolchain.candidates()).command)
    monkeypatch.setenv("PATH", "")
    compilation._probed.cache_clear()
    with pytest.raises(CannotCompile, match=r"no C\+\+20 compiler found"):
        compilation.present_compiler()
    with config.patch({"cpp.cxx": (command,)}):
        assert compilation.present_compiler().command == command


@needs_compiler
def test_a_refusal_lasts_until_a_cell_was_built(monkeypatch, ops):
    monkeypatch.setenv("CXX", "no-such-compiler")
    refusal = r"^no C\+\+20 compiler found \(looked for no-such-compiler\)\. Install one: "
    with pytest.raises(CannotCompile, match=refusal):
        ensure(FakeCell(), torch.float32)
    monkeypatch.delenv("CXX")
    with pytest.raises(CannotCompile, match=refusal):
        ensure(FakeCell(), torch.float32)
    build(FakeCell())
    assert not ops.loaded
    ensure(FakeCell(), torch.float32)
    assert ops.loaded


def test_a_refusal_of_second_derivatives_says_how_to_bring_them(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotCompile) as first_order:
        ensure(FakeCell(), torch.float32)
    assert "second_order" not in str(first_order.value)
    for _ in range(2):
        with pytest.raises(CannotCompile, match=r"(?s)^no C.*build\(\.\.\., second_order=True\)"):
            ensure(FakeCell(), torch.float32, second_order=True)


def test_a_library_built_from_other_headers(ops, headers):
    ops.layout = "another"
    expected = f"^the library was built from other headers than those in {headers.folder}; build it"
    with pytest.raises(CannotCompile, match=expected):
        ensure(FakeCell(), torch.float32)


@needs_compiler
def test_a_compiler_that_fails(tmp_path):
    cell = FakeCell(body="static constexpr int kInputGates = 1; nonsense;")
    with pytest.raises(CannotCompile) as failure:
        ensure(cell, torch.float32)
    (source,) = (tmp_path / "cache").glob("*.cpp")
    first, second = str(failure.value).splitlines()
    assert first.startswith(f"the compiler failed for leaky (float32, plain): {source}:5:")
    assert "nonsense" in first
    command = shlex.split(second.partition("kept: ")[2])
    assert str(source) in command
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode and "nonsense" in done.stderr


# --- ahead of time ----------------------------------------------------------------------------------


@needs_compiler
def test_a_folder_is_built_and_loaded(ops, tmp_path):
    folder = tmp_path / "model/cells"
    paths = build(FakeCell(), [torch.float32, torch.float64], folder)
    assert sorted(folder.iterdir()) == sorted(paths)
    assert not (tmp_path / "cache").exists() and not ops.loaded
    assert load(folder) == sorted(path.name for path in paths)
    assert ops.loaded == {
        ("leaky_0123456789ab", torch.float32): 4,
        ("leaky_0123456789ab", torch.float64): 8,
    }


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names two instruction sets of x86")
def test_a_folder_may_serve_several_machines(ops, tmp_path):
    plain, avx2 = build(FakeCell(), folder=tmp_path, instruction_sets=("plain", "avx2"))
    for ops.instruction_set, path in (("plain", plain), ("avx2", avx2)):
        assert load(tmp_path) == [path.name]


RECORD = cache.Record(
    "leaky_0123456789ab", "float32", "plain", platform.machine(), "layout", generator()
)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"machine": OTHER_MACHINE}, f"is for {OTHER_MACHINE}, and this machine is"),
        ({"instruction_set": "avx512"}, "is for avx512, and plain runs now; build it for that"),
        ({"layout": "another"}, "was compiled for another fastrnn; build it again"),
        ({"generator": "another"}, "was compiled for another fastrnn; build it again"),
    ],
    ids=["machine", "instruction-set", "layout", "generator"],
)
def test_a_library_that_does_not_fit_is_named(ops, tmp_path, record, reason):
    ops.layout = "layout"
    (tmp_path / "cell.so").write_bytes(cache.sealed(b"", RECORD._replace(**record)))
    with pytest.raises(
        RuntimeError, match=rf"holds cells that do not fit here:\n  cell\.so {reason}"
    ):
        load(tmp_path)


@needs_compiler
def test_a_damaged_library_is_named_beside_good_ones(ops, tmp_path):
    build(FakeCell(), folder=tmp_path)
    (tmp_path / "bad.so").write_bytes(b"bad")
    with pytest.raises(RuntimeError, match=r":\n  bad\.so is damaged, or not of this fastrnn"):
        load(tmp_path)
    assert not ops.loaded


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^fastrnn: {tmp_path} holds no compiled cell"):
        load(tmp_path)


class Owner:
    cell = FakeCell()


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        (Owner(), {}, "build takes what the decorator .* got Owner; give its cell$"),
        (len, {}, "build takes what the decorator .* got builtin_function_or_method$"),
        (FakeCell(), {"dtypes": torch.float32}, r"dtypes must be a sequence: write a tuple of one"),
        (FakeCell(), {"dtypes": (torch.int32,)}, r"dtypes has torch.int32, expected float32, "),
        (FakeCell(), {"instruction_sets": "plain"}, r"instruction_sets must be a sequence"),
    ],
    ids=["layer", "no-cell", "one-dtype", "integers", "one-set"],
)
def test_what_is_built_is_a_cell_for_a_list_of_types(cell, options, message):
    with pytest.raises(TypeError, match=f"^fastrnn: {message}"):
        build(cell, **options)


def test_an_instruction_set_that_is_not_made_here():
    with pytest.raises(ValueError, match=r"instruction_sets has 'sse', expected some of .*plain$"):
        build(FakeCell(), instruction_sets=["sse"])
