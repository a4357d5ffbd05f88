"""torch.export and AOTInductor: one program for every T and N, saved, loaded, trained, run from C++."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from common import assert_all_close, gradients
from pairs import LAYERS, H, I, flatten, make_pair
from torch.export import Dim

OPTIONS = {
    "plain": {},
    "deep": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
EXPORTED, OTHERS = (7, 4), [(11, 3), (3, 6), (1, 2), (2, 1)]
NATIVE = Path(__file__).parents[1] / "native"

# torch warns of a class that it deprecates and goes on using.
pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\):FutureWarning")


def make_call(options, sizes, with_lengths, seed=1):
    T, N = sizes
    generator = torch.Generator().manual_seed(seed)
    shape = (N, T, I) if options.get("batch_first") else (T, N, I)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, T + 1, (N,), generator=generator)
    return (x,), {"lengths": lengths} if with_lengths else {}


def export(module, options, with_lengths, strict=False):
    arguments, keywords = make_call(options, EXPORTED, with_lengths)
    time, samples = Dim("time"), Dim("samples")
    sizes = (samples, time) if options.get("batch_first") else (time, samples)
    shapes = {"input": dict(enumerate(sizes))}
    if with_lengths:
        shapes["lengths"] = {0: samples}
    return torch.export.export(module, arguments, keywords, dynamic_shapes=shapes, strict=strict)


def saved_and_loaded(program, folder):
    torch.export.save(program, folder / "program.pt2")
    return torch.export.load(folder / "program.pt2")


@pytest.mark.parametrize("with_lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("name", LAYERS)
def test_other_sizes_and_training(name, strict, options, with_lengths, tmp_path):
    """A program that was saved and loaded gives the values and the gradients of eager mode, at any T and N."""
    options = OPTIONS[options]
    fast = make_pair(name, options)[1]
    program = saved_and_loaded(export(fast, options, with_lengths, strict), tmp_path)
    exported = program.module()
    weights, ours = dict(exported.named_parameters()), dict(fast.named_parameters())
    assert weights.keys() == ours.keys()
    for sizes in [EXPORTED, *OTHERS]:
        (x,), keywords = make_call(options, sizes, with_lengths)
        runs = []
        for module, parameters in ((exported, weights), (fast, ours)):
            leaf = x.clone().requires_grad_()
            results = flatten(module(leaf, **keywords))
            runs.append(results + gradients(results, [leaf, *(parameters[key] for key in ours)]))
        assert_all_close(*runs, torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_states_are_inputs(name, tmp_path):
    """A step of a streaming model: the state goes in and comes out."""
    fast = make_pair(name, {"num_layers": 2})[1]

    def call(sizes):
        x = make_call({}, sizes, False)[0][0]
        h = torch.randn(2, sizes[1], H, dtype=torch.float64)
        return x, (h, torch.randn_like(h)) if name == "LSTM" else h

    time, samples = Dim("time"), Dim("samples")
    state = {1: samples}
    shapes = {"input": {0: time, 1: samples}, "hx": (state, state) if name == "LSTM" else state}
    program = torch.export.export(fast, call(EXPORTED), dynamic_shapes=shapes, strict=False)
    exported = saved_and_loaded(program, tmp_path).module()
    for sizes in OTHERS:
        arguments = call(sizes)
        assert_all_close(flatten(exported(*arguments)), flatten(fast(*arguments)), torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_an_exported_module_trains(name, tmp_path):
    """Steps of an optimizer on the exported module's own parameters."""
    options = OPTIONS["deep"]
    fast = make_pair(name, options)[1]
    exported = saved_and_loaded(export(fast, options, True), tmp_path).module()
    runs = []
    for module in (exported, fast):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        losses = []
        for sizes in OTHERS:
            (x,), keywords = make_call(options, sizes, True)
            optimizer.zero_grad()
            loss = module(x, **keywords)[0].square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        trained = dict(module.named_parameters())
        runs.append(losses + [trained[key].detach() for key in dict(fast.named_parameters())])
    assert_all_close(*runs, torch.float64)


def test_decompositions_keep_the_op():
    """Lowering for inference (run_decompositions) leaves one node a layer and direction."""
    options = OPTIONS["deep"]
    fast = make_pair("LSTM", options)[1]
    program = export(fast, options, True).run_decompositions()
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("fastrnn.scan.default") == 4
    (x,), keywords = make_call(options, OTHERS[0], True)
    assert_all_close(
        flatten(program.module()(x, **keywords)), flatten(fast(x, **keywords)), torch.float64
    )


# --- AOTInductor ---


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """An LSTM with lengths= as a package of AOTInductor, and the module it was made of."""
    fast = make_pair("LSTM", OPTIONS["deep"])[1]
    fast.requires_grad_(False)
    program = export(fast, OPTIONS["deep"], with_lengths=True)
    path = tmp_path_factory.mktemp("aoti") / "lstm.pt2"
    return torch._inductor.aoti_compile_and_package(program, package_path=str(path)), fast


def smooth_call(sizes):
    """Input and lengths that a C++ program can make, too."""
    T, N = sizes
    x = torch.arange(N * T * I, dtype=torch.float64).sin().view(N, T, I)
    return x, torch.arange(N) * 3 % (T + 1)


@pytest.mark.slow
def test_aoti_package_from_python(package):
    path, fast = package
    compiled = torch._inductor.aoti_load_package(path)
    for sizes in [EXPORTED, *OTHERS]:
        x, lengths = smooth_call(sizes)
        actual = flatten(compiled(x, lengths=lengths))
        assert_all_close(actual, flatten(fast(x, lengths=lengths)), torch.float64)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """tests/native/aoti_main.cpp, compiled against this torch."""
    from torch.utils import cpp_extension

    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no C++ compiler {compiler[0]}")
    binary = tmp_path_factory.mktemp("native") / "aoti_main"
    folders = cpp_extension.library_paths()
    command = [
        *compiler,
        "-std=c++20",
        "-O0",
        str(NATIVE / "aoti_main.cpp"),
        *(f"-isystem{folder}" for folder in cpp_extension.include_paths()),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(flag for folder in folders for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")),
        *("-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"),
        *("-o", str(binary)),
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return binary


def run_program(*arguments):
    return subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, timeout=120
    )


def loaded_library():
    """The library of fastrnn's ops that this process has."""
    return next(path for path in torch.ops.loaded_libraries if Path(path).name.startswith("_C"))


@pytest.mark.slow
def test_aoti_package_from_cpp(package, program):
    """No Python in the process: the library of ops is opened, the package loaded, the numbers printed."""
    path, fast = package
    for sizes in [EXPORTED, *OTHERS]:
        run = run_program(program, loaded_library(), path, *sizes, I)
        assert run.returncode == 0, run.stderr
        x, lengths = smooth_call(sizes)
        expected = flatten(fast(x, lengths=lengths))
        lines = run.stdout.splitlines()
        assert len(lines) == len(expected) == 3
        for line, tensor in zip(lines, expected, strict=True):
            shape, _, values = line.partition(":")
            assert shape == " ".join(map(str, tensor.shape))
            printed = torch.tensor([float(value) for value in values.split()], dtype=torch.float64)
            assert_all_close([printed], [tensor.flatten()], torch.float64)


@pytest.mark.slow
def test_cpp_program_without_the_library_says_so(package, program):
    run = run_program(program, "none", package[0], *EXPORTED, I)
    assert run.returncode == 1
    assert "fastrnn::scan" in run.stderr
