"""Streams: a module's output chunk by chunk, from Python, and from C in a program without torch."""

from __future__ import annotations

import copy
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

import fastrnn

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "plain": {},
    "stacked": {"num_layers": 3, "bias": False},
    "batch_first": {"batch_first": True},
}
every_layer = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
every_type = pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])


def make(name, I=5, H=19, **options):
    torch.manual_seed(0)
    return getattr(fastrnn, name)(I, H, **options)


def run(module, x, state=None):
    with torch.no_grad():
        return module(x, state)


def in_chunks(stream, x, lengths, time=0):
    return torch.cat([stream(chunk, copy=True) for chunk in x.split(lengths, time)], time)


@every_type
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_layer
def test_chunks_are_the_bits_of_the_frozen_module(name, options, weights, instruction_set):
    projections = [{}, {"proj_size": 1}] if name == "LSTM" else [{}]
    for projection in projections:
        for H in (5, 40):
            module = make(name, H=H, **options, **projection)
            frozen, time = fastrnn.freeze(module, weights), 1 if module.batch_first else 0
            for N in (1, 20):
                stream = fastrnn.Stream(module, N, weights)
                x = torch.randn(171, N, 5).transpose(0, time)
                output, state = run(frozen, x)
                assert torch.equal(in_chunks(stream, x, [1, 9, 100, 1, 60], time), output)
                got, expected = [s if isinstance(s, tuple) else (s,) for s in (stream.state, state)]
                assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(name):
    cell = make(name)
    stream, x = fastrnn.Stream(cell, 3), torch.randn(4, 3, 5)
    state = None
    for step in x:
        state = run(cell, step, state)
        h = state[0] if isinstance(state, tuple) else state
        assert torch.equal(stream(step.unsqueeze(0))[0], h)


def test_other_packages_and_kinds_of_modules():
    x = torch.randn(6, 1, 5)
    slow = nn.GRU(5, 19)
    torch.testing.assert_close(fastrnn.Stream(slow)(x), run(slow, x)[0], rtol=1e-5, atol=1e-6)
    normed = parametrizations.weight_norm(make("GRU"), "weight_hh_l0")
    assert torch.equal(fastrnn.Stream(normed)(x), run(normed, x)[0])
    frozen = fastrnn.freeze(make("GRU"), "int8")
    assert torch.equal(fastrnn.Stream(frozen)(x), run(frozen, x)[0])


def test_an_output_is_overwritten_unless_copied():
    stream, x = fastrnn.Stream(make("GRU"), 2), torch.randn(3, 2, 5)
    kept, first = stream(x, copy=True), stream(x)
    second = stream(x)
    assert first.data_ptr() == second.data_ptr() and torch.equal(first, second)
    assert not torch.equal(kept, second)
    assert stream(x[:1]).data_ptr() == second.data_ptr()


@pytest.mark.parametrize("overwriting", [torch.no_grad, torch.inference_mode])
def test_autograd_knows_of_outputs_that_were_overwritten(overwriting):
    stream, x = fastrnn.Stream(make("GRU")), torch.randn(3, 1, 5)
    w = torch.ones(3, 1, 19, requires_grad=True)
    kept, copied = stream(x) * w, stream(x, copy=True) * w
    with overwriting():
        stream(x[:1])
    copied.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_outputs_of_inference_mode_are_ordinary():
    stream, x = fastrnn.Stream(make("GRU")), torch.randn(3, 1, 5)
    w = torch.ones(3, 1, 19, requires_grad=True)
    with torch.inference_mode():
        first = stream(x)
    assert not first.is_inference()
    second = stream(x)
    (second * w).sum().backward()
    assert torch.equal(w.grad, second)


def test_an_output_that_was_changed_within_a_graph_is_left_to_it():
    stream, x = fastrnn.Stream(make("GRU")), torch.randn(3, 1, 5)
    output, w = stream(x), torch.full((19,), 2.0, requires_grad=True)
    before = output.clone()
    output.mul_(w)
    after = stream(x)
    assert not after.requires_grad
    output.sum().backward()
    assert torch.equal(w.grad, before.sum((0, 1)))


def test_inputs_of_any_strides_and_without_a_batch():
    module = make("LSTM", num_layers=2)
    x = torch.randn(6, 1, 5)
    output = run(module, x)[0]
    assert torch.equal(fastrnn.Stream(module)(x[:, 0]), output[:, 0])
    assert torch.equal(fastrnn.Stream(module)(nn.Parameter(x).detach()), output)
    wide = torch.randn(6, 1, 10)[..., ::2]
    assert torch.equal(fastrnn.Stream(module)(wide), run(module, wide)[0])
    with torch.no_grad():
        assert torch.equal(fastrnn.Stream(module)(x.clone().requires_grad_()), output)


@every_layer
def test_resets(name):
    module = make(name, num_layers=2)
    stream, x = fastrnn.Stream(module, 3), torch.randn(8, 3, 5)
    reset = torch.zeros(8, 3, dtype=torch.bool)
    reset[4, 1] = True
    with torch.no_grad():
        expected, _ = module(x, reset=reset)
    head = stream(x[:4], copy=True)
    stream.reset(1)
    assert torch.equal(torch.cat([head, stream(x[4:])]), expected)
    stream.reset()
    assert torch.equal(stream(x), run(module, x)[0])


@every_layer
def test_a_state_is_set(name):
    module = make(name, num_layers=2)
    x = torch.randn(4, 3, 5)
    _, state = run(module, torch.randn(5, 3, 5))
    stream = fastrnn.Stream(module, 3)
    stream.state = state
    assert torch.equal(stream(x), run(module, x, state)[0])
    with pytest.raises(ValueError, match="state has shapes"):
        stream.state = torch.randn(1, 1, 1) if name != "LSTM" else (torch.randn(1, 1, 1),) * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (torch.Tensor.double, TypeError, "float64 on cpu"),
        (lambda state: state.to("meta"), TypeError, "on meta"),
        (torch.Tensor.tolist, TypeError, "must be a tensor"),
        (lambda state: state.requires_grad_(), RuntimeError, "requires grad"),
        (torch._neg_view, TypeError, "resolve_neg"),
    ],
)
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_a_state_that_cannot_be_set_is_named(name, change, error, message):
    stream, h = fastrnn.Stream(make(name)), torch.ones(1, 1, 19)
    good = (h, h) if name == "LSTM" else h
    stream.state = good
    with pytest.raises(error, match=message):
        stream.state = (h, change(h.clone())) if name == "LSTM" else change(h.clone())
    assert all(torch.equal(part, h) for part in tree_leaves(stream.state))


def test_the_state_of_an_lstm_is_a_pair():
    stream, h = fastrnn.Stream(make("LSTM")), torch.ones(1, 1, 19)
    for state in (h, (h,), (h, h, h)):
        with pytest.raises(TypeError, match=r"a pair \(h, c\)"):
            stream.state = state


def test_default_types_and_devices_change_nothing():
    module, x = make("LSTM"), torch.randn(4, 1, 5)
    output, state = run(module, x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            stream = fastrnn.Stream(module)
            assert torch.equal(stream(x), output)
            assert all(map(torch.equal, stream.state, state))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_stream_is_a_snapshot():
    module = make("GRU")
    stream, x = fastrnn.Stream(module, 1), torch.randn(4, 1, 5)
    before = run(module, x)[0]
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    assert torch.equal(stream(x), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda: (nn.Linear(2, 2),), TypeError, "expected an RNN, GRU, LSTM or cell"),
        (lambda: (make("GRU", bidirectional=True),), ValueError, "second direction"),
        (lambda: (make("GRU", reverse=True),), ValueError, "reversed"),
        (lambda: (make("GRU").double(),), ValueError, "float64"),
        (lambda: (make("GRU"), 0), ValueError, "batch must be a positive integer"),
        (lambda: (make("GRU"), True), ValueError, "batch must be a positive integer"),
        (lambda: (make("GRU"), 1, "int4"), ValueError, "weights must be one of"),
        (lambda: (fastrnn.freeze(make("GRU")), 1, "int8"), ValueError, "is frozen"),
        (lambda: (fastrnn.GRU(2, 3, device="meta"),), ValueError, "device 'meta'"),
    ],
)
def test_what_cannot_be_a_stream_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fastrnn.Stream(*arguments())


@pytest.mark.parametrize(
    ("batch", "call", "error", "message"),
    [
        (
            2,
            lambda s: s(torch.randn(4, 3, 5)),
            ValueError,
            r"shape \(4, 3, 5\), expected \(T >= 1, 2",
        ),
        (2, lambda s: s(torch.randn(4, 2, 6)), ValueError, "expected"),
        (2, lambda s: s(torch.randn(4, 5)), ValueError, "expected"),
        (1, lambda s: s(torch.randn(0, 1, 5)), ValueError, "T >= 1"),
        (1, lambda s: s(torch.randn(5)), ValueError, "expected"),
        (1, lambda s: s(torch.randn(2, 1, 5).double()), TypeError, "float64"),
        (1, lambda s: s([1.0]), TypeError, "must be a tensor"),
        (1, lambda s: s(torch.randn(2, 1, 5, device="meta")), TypeError, "meta"),
        (1, lambda s: s(torch.randn(2, 1, 5, requires_grad=True)), RuntimeError, "requires grad"),
        (1, lambda s: s.reset(1), IndexError, "expected 0 to 0"),
        (1, lambda s: s.reset(-1), IndexError, "expected 0 to 0"),
        (1, pickle.dumps, TypeError, "cannot be pickled"),
        (1, copy.deepcopy, TypeError, "cannot be pickled"),
    ],
)
def test_bad_calls_are_named(batch, call, error, message):
    stream = fastrnn.Stream(make("GRU"), batch)
    good = torch.randn(2, batch, 5)
    expected = stream(good, copy=True)
    with pytest.raises(error, match=message):
        call(stream)
    stream.reset()
    assert torch.equal(stream(good), expected)


class Subclass(torch.Tensor):
    pass


def fake(x):
    with FakeTensorMode():
        return torch.empty(x.shape)


def zeros_without_memory(x):
    return torch._efficientzerotensor(x.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fake, "FakeTensor"),
        (lambda x: x.as_subclass(Subclass), "Subclass"),
        (lambda x: torch.complex(x, x).conj().imag, "resolve_neg"),
        (zeros_without_memory, "no memory"),
    ],
)
def test_tensors_without_values_are_refused(change, message):
    stream, x = fastrnn.Stream(make("GRU")), torch.randn(3, 1, 5)
    stream(x)
    with pytest.raises(TypeError, match=message):
        stream(change(x))


def test_transforms_are_refused():
    stream, x = fastrnn.Stream(make("GRU")), torch.randn(3, 1, 5)
    stream(x)
    with pytest.raises(NotImplementedError, match="no vmap"):
        torch.vmap(stream)(torch.stack([x, x]))
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(stream, (x,), (x,))
    with forward_ad.dual_level():
        with pytest.raises(NotImplementedError, match="tangents"):
            stream(forward_ad.make_dual(x, x))
        stream(x)
    with pytest.raises(TypeError, match=r"torch\.jit"):
        torch.jit.trace(lambda x: stream(x), (x,))
    longer = torch.randn(4, 1, 5)
    with FakeTensorMode(), pytest.raises(TypeError, match="a mode gives"):
        stream(longer)


def test_a_compiled_function_breaks_its_graph_at_a_stream():
    stream, x = fastrnn.Stream(make("GRU")), torch.randn(3, 1, 5)
    output = torch.compile(lambda x: stream(x * 2) + 1, backend="eager")(x)
    stream.reset()
    assert torch.equal(output, stream(x * 2) + 1)


def in_threads(*calls):
    """Runs each call 40 times, on a thread each, and returns what they gave; refusals are named."""
    served = [[] for _ in calls]

    def work(call, results):
        for _ in range(40):
            try:
                results.append(call())
            except RuntimeError as error:
                assert "give each thread a Stream" in str(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, served, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return served


def test_two_threads_do_not_share_a_stream():
    stream = fastrnn.Stream(make("LSTM", I=64, H=256), 4)
    x = torch.randn(64, 4, 64)
    served = in_threads(lambda: stream(x), lambda: stream(x))
    assert any(served)
    stream.reset()
    assert torch.equal(stream(x), fastrnn.Stream(make("LSTM", I=64, H=256), 4)(x))


def test_threads_with_chunks_of_unlike_lengths():
    stream = fastrnn.Stream(make("LSTM", I=64, H=256), 1)
    chunks = [torch.zeros(T, 1, 64) for T in (1, 100)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        served = in_threads(*(lambda x=x: stream(x, copy=True).shape for x in chunks))
    finally:
        sys.setswitchinterval(before)
    for shapes, x in zip(served, chunks, strict=True):
        assert set(shapes) <= {(len(x), 1, 256)}
    assert any(served)


def test_a_call_within_a_call_takes_its_own_shape(monkeypatch):
    """As another thread may, between the check of an input and the step."""
    stream, long, short = fastrnn.Stream(make("GRU"), 1), torch.randn(9, 1, 5), torch.randn(1, 1, 5)
    real, waiting = fastrnn.stream._step, [short]

    def step(*arguments):
        if waiting:
            assert stream(waiting.pop()).shape == (1, 1, 19)
        return real(*arguments)

    monkeypatch.setattr(fastrnn.stream, "_step", step)
    assert stream(long).shape == (9, 1, 19)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork where threads are
def test_a_forked_child_goes_on():
    stream, x = fastrnn.Stream(make("GRU"), 1), torch.randn(4, 1, 5)
    stream(x)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, stream(x).numpy().tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said == stream(x).numpy().tobytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork where threads are
def test_a_child_forked_within_a_step_is_refused():
    """The step's states are half written there, and the thread that wrote them is not."""
    stream, x = fastrnn.Stream(make("LSTM", I=64, H=256), 64), torch.randn(400, 64, 64)
    stream(x)
    status = 0
    for _ in range(20):
        worker = threading.Thread(target=stream, args=(x,))
        worker.start()
        time.sleep(0.01)  # the step takes a hundred times as long
        child = os.fork()
        if child == 0:
            try:
                for _ in range(2):
                    with pytest.raises(RuntimeError, match="another thread"):
                        stream.reset()
                os._exit(7)
            finally:
                os._exit(1)
        worker.join()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 7:
            break
    assert status == 7
    stream.reset()


def test_repr():
    assert (
        str(fastrnn.Stream(make("GRU"), 2, "int8"))
        == "Stream(FrozenGRU(5, 19, weights=int8), batch=2)"
    )


# --- from C ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """examples/stream_filter.c, linked with the object files that the library was built from."""
    built = ROOT / f"build/torch-{torch.__version__}/csrc"
    sources = [path for part in ("cpu", "stream") for path in (ROOT / "csrc" / part).glob("*.cpp")]
    objects = [built / path.parent.name / f"{path.stem}.o" for path in sources]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if (
        not all(path.exists() for path in objects)
        or os.environ.get("FASTRNN_LIBRARY")
        or compiler is None
    ):
        pytest.skip("no object files of this build, or no C compiler")
    path = tmp_path_factory.mktemp("stream") / "stream_filter"
    source = ROOT / "examples/stream_filter.c"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/csrc/stream"]
    libraries = ["-lstdc++", "-lm", "-pthread", "-o", str(path)]
    subprocess.run([compiler, *flags, source, *objects, *libraries], check=True)
    return path


@every_type
def test_a_program_filters_a_signal(program, weights, tmp_path):
    module = make("LSTM", I=1, H=16, num_layers=2, proj_size=1)
    stream = fastrnn.Stream(module, 1, weights)
    stream.save(tmp_path / "filter.stream")
    signal = torch.sin(torch.arange(1000) * 0.05)
    # What the program's reader gets is float32 as it lies here.
    done = subprocess.run(
        [program, tmp_path / "filter.stream"], input=signal.numpy().tobytes(), capture_output=True
    )
    assert done.returncode == 0 and b"16 blocks of 64 samples" in done.stderr
    filtered = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
    assert torch.equal(filtered, stream(signal[:, None])[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file[:40], "too short"),
        (lambda file: file[:-4], "expected"),
        (lambda file: file + b"\0", "expected"),
        (lambda file: file[:100] + b"\7" + file[101:], "checksum"),
        (lambda file: b"PK" + file[2:], "not a stream's"),
    ],
)
def test_a_damaged_file_is_named(program, change, message, tmp_path):
    path = tmp_path / "filter.stream"
    fastrnn.Stream(make("LSTM", I=1, H=16, proj_size=1)).save(path)
    path.write_bytes(change(path.read_bytes()))
    done = subprocess.run([program, path], input="", capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


def test_the_header_is_of_c(tmp_path):
    source = tmp_path / "alone.c"
    source.write_text('#include "fastrnn_stream.h"\nint main(void) { return FASTRNN_STREAM_OK; }\n')
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = ["-std=c99", "-pedantic", "-Wall", "-Werror", "-fsyntax-only", f"-I{ROOT}/csrc/stream"]
    assert subprocess.run([*compiler, *flags, source]).returncode == 0
