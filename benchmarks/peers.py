"""Everyone that is measured: a contestant is a function that runs a problem once.

A maker takes a problem, whether to train and how many threads, and returns a contestant; it raises
Unsupported where a runtime has no such layer. Results are the output and, in training, the
gradients of the input and of the weights, named and laid out as torch.nn has them; those of a
transform are told where it is. The gradient of the output is given, so no loss is timed.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn

from . import rtneural, transforms
from .cases import (
    DOUBLE,
    FEW_STEPS,
    GATES,
    JVP,
    MODULES,
    PER_SAMPLE,
    TRANSFORMS,
    Case,
    Problem,
)
from .rows import FROZEN, OURS, STREAM
from .transforms import Results, Transform


class Unsupported(Exception):
    """A runtime does not offer what a case asks for."""


# Relative errors from which on somebody computes something else, by the type that weights are
# rounded to; no case's own dtype explains the first.
TOLERANCES = {"": 0.05, "bfloat16": 0.02, "int8": 0.05}


@dataclass(frozen=True)
class Contestant:
    run: Callable[[], Any]
    results: Callable[[Any], Results]  # from what run returned


@dataclass(frozen=True)
class Peer:
    name: str
    distribution: str  # whose version counts
    imports: str
    make: Callable[[Problem, bool, int], Contestant]
    same_problem: bool = True  # its results are those of the case
    transforms: tuple[str, ...] = ("", *TRANSFORMS)  # the kinds of cases that it is measured in
    weights: str = ""  # the type that it rounds them to; whoever does is nobody's best peer

    def is_for(self, case: Case) -> bool:
        """Whether it is measured in a case."""
        return case.transform in self.transforms and (case.waits_for_weights or not self.weights)

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.weights]

    @property
    def is_ours(self) -> bool:
        return self.distribution == OURS

    @property
    def installed(self) -> bool:
        return util.find_spec(self.imports) is not None

    @property
    def version(self) -> str:
        return metadata.version(self.distribution)


class Compiled(Peer):
    """One that is no Python package."""

    @property
    def installed(self) -> bool:
        return rtneural.checkout() is not None

    @property
    def version(self) -> str:
        return rtneural.version()


# --- torch.nn and fastrnn: the same code, another package -----------------------------------------


def torch_module(
    package: object,
    problem: Problem,
    training: bool,
    *,
    dtype: str = "",
    lengths: str | None = None,
    transform: Transform | None = None,
    change: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module,
) -> Contestant:
    """A contestant of torch.nn or fastrnn. dtype, lengths and transform override the case's.

    What runs is what `change` makes of the module.
    """
    case = problem.case
    chosen = getattr(torch, dtype or case.dtype)
    lengths = case.lengths if lengths is None else lengths
    module = change(case.module(package, chosen).to(problem.device))
    x = problem.x.to(problem.device, chosen, copy=True)
    dy = problem.dy.to(problem.device, chosen)
    states = tuple(state.to(problem.device, chosen) for state in problem.states)
    if case.unit == "cell":
        return cell_loop(module, x, dy, [state[0] for state in states], training)
    if case.transform:
        transform = transform or transforms.RUNS[case.transform]
        tangents = {
            name: tangent.to(problem.device, chosen) for name, tangent in problem.tangents.items()
        }
        return Contestant(transform(module, x, dy, tangents), lambda results: results)
    options: dict[str, Tensor] = {}
    given: Tensor | PackedSequence = x.requires_grad_(training)
    if lengths == "padded":
        options["lengths"] = problem.lengths
    elif lengths == "packed":
        given = pack_padded_sequence(x, problem.lengths, enforce_sorted=False)
        dy = pack_padded_sequence(dy, problem.lengths, enforce_sorted=False).data
    names = [name for name, _ in module.named_parameters()]
    inputs = [x, *module.parameters()]
    hx = None if not states else states if len(states) == 2 else states[0]

    def run() -> Any:
        output = module(given, hx, **options)[0]
        if not training:
            return output, ()
        y = output.data if isinstance(output, PackedSequence) else output
        # Packing is not timed: users do it once, so gradients stop at the packed data.
        leaf = given.data if isinstance(given, PackedSequence) else x
        return output, torch.autograd.grad(y, [leaf, *inputs[1:]], dy)

    def results(returned: Any) -> Results:
        output, gradients = returned
        if isinstance(output, PackedSequence):
            output = pad_packed_sequence(output, total_length=case.T)[0]
            if gradients:
                packed = given._replace(data=gradients[0])  # type: ignore[union-attr]
                gradients = (pad_packed_sequence(packed, total_length=case.T)[0], *gradients[1:])
        return {"output": output.detach(), **dict(zip(["input", *names], gradients, strict=False))}

    if isinstance(given, PackedSequence):
        # A leaf of its own, so that autograd stops at the packed data.
        given = given._replace(data=given.data.detach().requires_grad_(training))
    return Contestant(run, results)


def cell_loop(
    cell: torch.nn.Module, x: Tensor, dy: Tensor, states: list[Tensor], training: bool
) -> Contestant:
    """A cell called for each step of x, as a decoder calls it."""
    steps = [step.clone().requires_grad_(training) for step in x]
    first = tuple(states) if len(states) == 2 else states[0]
    names = [f"{name}_l0" for name, _ in cell.named_parameters()]

    def run() -> Any:
        state, outputs = first, []
        for step in steps:
            state = cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        if not training:
            return outputs, ()
        return outputs, torch.autograd.grad(outputs, [*steps, *cell.parameters()], list(dy))

    def results(returned: Any) -> Results:
        outputs, gradients = returned
        of_steps, of_weights = gradients[: len(steps)], gradients[len(steps) :]
        inputs = {"input": torch.stack(of_steps)} if training else {}
        output = torch.stack(outputs).detach()
        return {"output": output, **inputs, **dict(zip(names, of_weights, strict=False))}

    return Contestant(run, results)


def nn(problem: Problem, training: bool, threads: int) -> Contestant:
    # torch.nn's only way to take lengths is a packed sequence.
    return torch_module(
        torch.nn, problem, training, lengths="packed" if problem.case.lengths else ""
    )


def nn_loop(problem: Problem, training: bool, threads: int) -> Contestant:
    return torch_module(torch.nn, problem, training, transform=transforms.per_sample_loop)


def nn_without_onednn(problem: Problem, training: bool, threads: int) -> Contestant:
    """What oneDNN's LSTM cannot do, torch's own can, and some of the rest it does faster."""
    case = problem.case
    if case.cell != "lstm" or case.dtype == "float64" or problem.device != "cpu":
        raise Unsupported("torch.nn itself: torch takes oneDNN for the LSTM on CPU, not in float64")
    contestant = nn(problem, training, threads)
    # Setting the flags also sets one for Intel's GPUs, of which torch warns where it has none.
    warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")

    def run() -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return contestant.run()

    return replace(contestant, run=run)


def ours(problem: Problem, training: bool, threads: int) -> Contestant:
    return torch_module(fastrnn, problem, training)


def ours_float32(problem: Problem, training: bool, threads: int) -> Contestant:
    if problem.case.dtype == "float32":
        raise Unsupported("is what the case asks for")
    return torch_module(fastrnn, problem, training, dtype="float32")


def ours_all_steps(problem: Problem, training: bool, threads: int) -> Contestant:
    if not problem.case.lengths:
        raise Unsupported("is what the case asks for")
    return torch_module(fastrnn, problem, training, lengths="")


def ours_frozen(
    problem: Problem, training: bool, threads: int, weights: str | None = None
) -> Contestant:
    if training or problem.case.group not in FEW_STEPS or problem.device != "cpu":
        raise Unsupported("inference of few steps on a CPU")
    return torch_module(fastrnn, problem, training, change=partial(fastrnn.freeze, weights=weights))


def ours_stream(problem: Problem, training: bool, threads: int) -> Contestant:
    """A stream goes on from call to call; for its results it begins with the case's state."""
    case = problem.case
    if training or case.group != "step" or case.unit == "cell" or problem.device != "cpu":
        raise Unsupported("inference of a layer's few steps on a CPU")
    stream = fastrnn.Stream(case.module(fastrnn, torch.float32), case.N)
    x = problem.x.float()

    def results(_: Tensor) -> Results:
        first = tuple(state.float() for state in problem.states)
        stream.state = first if len(first) == 2 else first[0]
        return {"output": stream(x, copy=True)}

    return Contestant(lambda: stream(x), results)


def torch_int8(problem: Problem, training: bool, threads: int) -> Contestant:
    """torch's dynamic quantisation, which rounds inputs and states, too."""
    if training:
        raise Unsupported("inference only")
    if problem.case.cell == "rnn":
        raise Unsupported("quantises the GRU and the LSTM alone")
    from torch.ao.quantization import quantize_dynamic

    def change(module: torch.nn.Module) -> torch.nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and so is what it calls
            return quantize_dynamic(torch.nn.Sequential(module), {type(module)})[0]

    return torch_module(torch.nn, problem, training, change=change)


def reference(problem: Problem, training: bool) -> Results:
    """``torch.nn`` in float64."""
    lengths = "packed" if problem.case.lengths else ""
    loop = transforms.per_sample_loop if problem.case.transform == PER_SAMPLE else None
    contestant = torch_module(
        torch.nn, problem, training, dtype="float64", lengths=lengths, transform=loop
    )
    return contestant.results(contestant.run())


# --- Opacus: torch layers that keep gradients by sample -------------------------------------------


def opacus(problem: Problem, training: bool, threads: int) -> Contestant:
    """As in training with its optimizer, which clears gradients between the steps."""
    from opacus import GradSampleModule, layers

    case = problem.case
    make = getattr(layers, f"DP{MODULES[case.cell]}")
    layer = make(case.I, case.H, num_layers=case.layers, bidirectional=case.bidirectional)
    layer.load_state_dict(problem.weights)
    layer = layer.to(problem.device, case.torch_dtype)
    module = GradSampleModule(layer, batch_first=False, loss_reduction="sum")
    weights = dict(layer.named_parameters())
    x = problem.x.to(problem.device, case.torch_dtype)
    dy = problem.dy.to(problem.device, case.torch_dtype)

    def run() -> Results:
        for weight in weights.values():
            weight.grad = weight.grad_sample = None
        module(x)[0].backward(dy)
        return {name: weight.grad_sample for name, weight in weights.items()}

    # torch's, of a hook that Opacus sets.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    return Contestant(run, lambda results: results)


# --- ONNX Runtime and OpenVINO: one ONNX model ----------------------------------------------------

STATE_NAMES = ("h_0", "c_0")  # of the model's inputs
# torch's gates in the order ONNX wants them.
ONNX_GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}


def onnx_model(problem: Problem) -> bytes:
    """The problem as ONNX's own RNN, GRU or LSTM nodes, one a layer."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    case = problem.case
    if case.dtype != "float32" or problem.device != "cpu":
        raise Unsupported(f"no {case.dtype} here on a {problem.device.upper()}")
    if case.unit == "cell" and case.T > 1:
        raise Unsupported("has layers alone, whose steps no Python loop calls")
    # Layers are stacked, and each would take its own part of the state.
    if case.state and case.layers > 1:
        raise Unsupported("written for the state of one layer")
    directions = 1 + case.bidirectional
    order = ONNX_GATES[case.cell]
    nodes, tensors = [], []

    def weight(kind: str, layer: int) -> np.ndarray:
        stacked = []
        for suffix in ("", "_reverse")[:directions]:
            w = problem.weights[f"{kind}_l{layer}{suffix}"].float().numpy()
            stacked.append(np.concatenate([np.split(w, len(order))[gate] for gate in order]))
        return np.stack(stacked)

    def add(name: str, values: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    source = "x"
    shape = add("shape", np.array([0, 0, -1], np.int64))
    for layer in range(case.layers):
        bias = np.concatenate([weight("bias_ih", layer), weight("bias_hh", layer)], axis=1)
        inputs = [
            source,
            add(f"w{layer}", weight("weight_ih", layer)),
            add(f"r{layer}", weight("weight_hh", layer)),
            add(f"b{layer}", bias),
            "lengths" if case.lengths else "",
            *STATE_NAMES[: len(problem.states)],
        ]
        options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
        nodes.append(
            helper.make_node(
                MODULES[case.cell],
                inputs,
                [f"y{layer}"],
                hidden_size=case.H,
                direction="bidirectional" if case.bidirectional else "forward",
                **options,
            )
        )
        # [T, directions, N, H] to [T, N, directions * H]
        nodes.append(helper.make_node("Transpose", [f"y{layer}"], [f"t{layer}"], perm=[0, 2, 1, 3]))
        source = "y" if layer + 1 == case.layers else f"x{layer + 1}"
        nodes.append(helper.make_node("Reshape", [f"t{layer}", shape], [source]))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.N, case.I])]
    if case.lengths:
        given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.N]))
    states = zip(STATE_NAMES, problem.states, strict=False)
    given += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(state.shape))
        for name, state in states
    ]
    output = helper.make_tensor_value_info(
        "y", TensorProto.FLOAT, [case.T, case.N, directions * case.H]
    )
    graph = helper.make_graph(nodes, "layer", given, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def onnx_inputs(problem: Problem) -> dict[str, np.ndarray]:
    inputs = {"x": problem.x.float().numpy()}
    if problem.case.lengths:
        inputs["lengths"] = problem.lengths.int().numpy()
    states = zip(STATE_NAMES, problem.states, strict=False)
    return inputs | {name: state.float().numpy() for name, state in states}


def onnx_results(output: np.ndarray) -> Results:
    return {"output": torch.from_numpy(np.array(output))}


def onnx_runtime(
    problem: Problem,
    training: bool,
    threads: int,
    change: Callable[[bytes], bytes] = lambda model: model,
) -> Contestant:
    if training:
        raise Unsupported("inference only")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        change(onnx_model(problem)), options, providers=["CPUExecutionProvider"]
    )
    inputs = onnx_inputs(problem)
    return Contestant(lambda: session.run(["y"], inputs), lambda results: onnx_results(results[0]))


def onnx_int8(problem: Problem, training: bool, threads: int) -> Contestant:
    """ONNX Runtime's dynamic quantisation, which rounds inputs and states, too."""
    if problem.case.cell != "lstm":
        raise Unsupported("quantises the LSTM alone")

    def change(model: bytes) -> bytes:
        import onnx
        from onnxruntime.quantization import quantize_dynamic

        graph = onnx.load_from_string(model)
        # It asks for optimisations of its own to be done first, of which this graph needs none.
        onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            # With all 8 bits, sums of two products saturate where a CPU has no VNNI: error 0.2.
            quantize_dynamic(graph, path, reduce_range=True)
            return path.read_bytes()

    return onnx_runtime(problem, training, threads, change)


def openvino(problem: Problem, training: bool, threads: int) -> Contestant:
    if training:
        raise Unsupported("inference only")
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(onnx_model(problem)), "CPU", options)
    request = compiled.create_infer_request()
    inputs = onnx_inputs(problem)
    return Contestant(
        lambda: request.infer(inputs, share_inputs=True, share_outputs=True),
        lambda results: onnx_results(results["y"]),
    )


# --- JAX: a scan under jit, the input products ahead of it ----------------------------------------


def jax_scan(problem: Problem, training: bool, threads: int) -> Contestant:
    case = problem.case
    one = case.layers == 1 and not case.bidirectional and not case.lengths
    one = one and (case.unit == "layer" or case.T == 1)
    if case.dtype != "float32" or not one or problem.device != "cpu":
        raise Unsupported("written for one float32 layer and direction without lengths on a CPU")
    os.environ.setdefault("NPROC", str(threads))  # the size of its pool, read when it starts
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from jax import numpy as jnp

    cell, H = case.cell, case.H

    def step(state: Any, gx: Any, w: Any, b: Any) -> tuple[Any, Any]:
        h, c = state
        gh = h @ w.T + b
        if cell == "rnn":
            h = jnp.tanh(gx + gh)
        elif cell == "lstm":
            i, f, g, o = jnp.split(gx + gh, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        else:
            xr, xz, xn = jnp.split(gx, 3, axis=-1)
            hr, hz, hn = jnp.split(gh, 3, axis=-1)
            z = jax.nn.sigmoid(xz + hz)
            n = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
            h = (1 - z) * n + z * h
        return (h, c), h

    def layer(x: Any, weights: Any) -> Any:
        gx = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        w, b = weights["weight_hh_l0"], weights["bias_hh_l0"]
        zeros = jnp.zeros((x.shape[1], H))
        start = (*(put(state[0]) for state in problem.states), zeros, zeros)[:2]
        return jax.lax.scan(lambda state, g: step(state, g, w, b), start, gx)[1]

    def forward(x: Any, weights: Any) -> Any:
        return {"output": layer(x, weights)}

    def train(x: Any, weights: Any, dy: Any) -> Any:
        output, backward = jax.vjp(layer, x, weights)
        dx, gradients = backward(dy)
        return {"output": output, "input": dx, **gradients}

    def per_sample(x: Any, weights: Any, dy: Any) -> Any:
        def loss(weights: Any, x: Any, dy: Any) -> Any:
            return jnp.sum(layer(x[:, None], weights) * dy[:, None])

        return jax.vmap(jax.grad(loss), in_axes=(None, 1, 1))(weights, x, dy)

    def double_backward(x: Any, weights: Any, dy: Any) -> Any:
        def penalty(weights: Any) -> Any:
            return jnp.sum(jax.vjp(lambda x: layer(x, weights), x)[1](dy)[0] ** 2)

        return jax.grad(penalty)(weights)

    def forward_mode(x: Any, weights: Any, directions: Any) -> Any:
        y, tangent = jax.jvp(layer, (x, weights), directions)
        return {"output": y, "tangent": tangent}

    def put(tensor: Tensor) -> Any:
        return jax.device_put(tensor.float().numpy())

    given = [put(problem.x), {name: put(weight) for name, weight in problem.weights.items()}]
    if case.transform == JVP:
        named = {name: put(tangent) for name, tangent in problem.tangents.items()}
        given.append((named.pop("input"), named))
    elif training:
        given.append(put(problem.dy))
    functions = {PER_SAMPLE: per_sample, DOUBLE: double_backward, JVP: forward_mode}
    function = jax.jit(functions.get(case.transform, train if training else forward))

    def results(returned: Any) -> Results:
        return {name: torch.from_numpy(np.array(value)) for name, value in returned.items()}

    return Contestant(lambda: jax.block_until_ready(function(*given)), results)


FASTRNN = Peer(OURS, "fastrnn", "fastrnn", ours)


def flashrnn(problem: Problem, training: bool, threads: int) -> Contestant:
    """Its fused kernel: the recurrence alone, on input products of which nobody takes the time."""
    case = problem.case
    names = {"rnn": "elman", "gru": "gru", "lstm": "lstm"}
    if problem.device != "cuda" or case.cell not in names or case.lengths or case.bidirectional:
        raise Unsupported("one direction on a GPU, without lengths; tanh")
    if case.layers > 1 or case.dtype not in ("bfloat16", "float16"):
        raise Unsupported("one layer, in half types")
    from flashrnn import flashrnn as run_flashrnn  # type: ignore[import-not-found]

    gates = GATES[case.cell]
    options: dict[str, Any] = {"device": "cuda", "dtype": case.torch_dtype}
    products = torch.randn(case.N, case.T, gates, 1, case.H, **options, requires_grad=training)
    weight = torch.randn(gates, 1, case.H, case.H, **options) * case.H**-0.5
    bias = torch.randn(gates, 1, case.H, **options)
    weight.requires_grad_(training)
    bias.requires_grad_(training)
    dy = problem.dy.to("cuda", case.torch_dtype).transpose(0, 1).unsqueeze(2)

    def run() -> Any:
        states, _ = run_flashrnn(
            products, weight, bias, function=names[case.cell], backend="cuda_fused"
        )
        inputs = (products, weight, bias)
        return states, torch.autograd.grad(states[0], inputs, dy) if training else ()

    return Contestant(run, lambda results: {"output": results[0][0].detach()})


def rtneural_layer(problem: Problem, training: bool, threads: int) -> Contestant:
    """It has no way to give a state: it begins with zeros, and goes on from call to call."""
    case = problem.case
    if training or case.group != "step" or case.unit == "cell" or case.cell == "rnn":
        raise Unsupported("inference of a GRU's or LSTM's few steps")
    if case.N > 1:
        raise Unsupported("one sample")
    module = case.module(torch.nn, torch.float32)
    assert isinstance(module, torch.nn.RNNBase)
    layer = rtneural.Layer(module)
    x = problem.x.float()
    with torch.no_grad():
        torch.testing.assert_close(layer(x[:, 0]), module(x)[0][:, 0])
    return Contestant(lambda: layer(x[:, 0]), lambda output: {"output": output[:, None]})


PEERS = (
    Peer("torch.nn", "torch", "torch", nn),
    Peer("torch.nn, a loop over samples", "torch", "torch", nn_loop, transforms=(PER_SAMPLE,)),
    Peer("torch.nn without oneDNN", "torch", "torch", nn_without_onednn, transforms=(DOUBLE, JVP)),
    Peer("Opacus", "opacus", "opacus", opacus, transforms=(PER_SAMPLE,)),
    Peer("ONNX Runtime", "onnxruntime", "onnxruntime", onnx_runtime),
    Peer("OpenVINO", "openvino", "openvino", openvino),
    Peer("JAX", "jax", "jax", jax_scan),
    Peer("FlashRNN", "flashrnn", "flashrnn", flashrnn, same_problem=False, transforms=("",)),
    Compiled("RTNeural", "RTNeural", "", rtneural_layer, same_problem=False, transforms=("",)),
    Peer("torch.ao int8", "torch", "torch", torch_int8, weights="int8"),
    Peer("ONNX Runtime int8", "onnxruntime", "onnxruntime", onnx_int8, weights="int8"),
)
# Our own kernels on an easier case: what half types and packed weights gain, what lengths cost.
OURSELVES = (
    Peer("fastrnn float32", "fastrnn", "fastrnn", ours_float32),
    Peer("fastrnn, all steps", "fastrnn", "fastrnn", ours_all_steps, same_problem=False),
    Peer(FROZEN, "fastrnn", "fastrnn", ours_frozen),
    Peer(STREAM, "fastrnn", "fastrnn", ours_stream),
    *(
        Peer(
            f"{FROZEN} {weights}",
            "fastrnn",
            "fastrnn",
            partial(ours_frozen, weights=weights),
            weights=weights,
        )
        for weights in ("bfloat16", "int8")
    ),
)
assert set(ONNX_GATES) == set(GATES)
