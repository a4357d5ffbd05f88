"""ONNX export: the nodes it makes, their values in ONNX Runtime at other sizes than the exported ones, its errors."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_all_close
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

import fastrnn
from fastrnn import ops
from fastrnn.ops import ScanWeights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnxscript").ir
pytest.importorskip("onnx.reference")
ONNXRegistry: Any = pytest.importorskip("torch.onnx._internal.exporter._registration").ONNXRegistry

pytestmark = [
    # torch.export says the first inside copyreg, and torch.onnx the second where two inputs share a dimension.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name. N will not be used:UserWarning"),
]

I, H = 3, 5
CELLS = {
    "rnn_tanh": lambda **options: fastrnn.RNN(I, H, **options),
    "rnn_relu": lambda **options: fastrnn.RNN(I, H, nonlinearity="relu", **options),
    "gru": lambda **options: fastrnn.GRU(I, H, **options),
    "lstm": lambda **options: fastrnn.LSTM(I, H, **options),
}
NODES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
# The sizes are T, N.
EXPORTED_SIZES = (4, 2)
OTHER_SIZES = ((7, 3), (1, 1), (9, 6))


@pytest.fixture(autouse=True, scope="module")
def one_table_of_translations() -> Generator[None, None, None]:
    """Each export makes the table of torch's own translations, in two fifths of its time. Here it gets a copy of the first."""
    made = functools.cache(ONNXRegistry.from_torchlib)

    def copied(**options: Any) -> Any:
        table = copy.copy(made(**options))
        table.functions = {target: [*found] for target, found in table.functions.items()}
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield


def make_module(cell: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    module = CELLS[cell](**options).eval()
    for parameter in module.parameters():
        parameter.data *= 2
    return module


def make_inputs(
    module: Any, T: int, N: int, *, hx: bool = False, lengths: bool = False
) -> dict[str, Any]:
    """Random arguments of a module; lengths reach from 0 to T."""
    dtype = module.weight_ih_l0.dtype
    shape = (N, T, I) if module.batch_first else (T, N, I)
    inputs: dict[str, Any] = {"input": torch.randn(shape, dtype=dtype)}
    if hx:
        rows = module.num_layers * (1 + module.bidirectional)
        states = tuple(torch.randn(rows, N, H, dtype=dtype) for _ in range(2))
        inputs["hx"] = states if module.mode == "LSTM" else states[0]
    if lengths:
        inputs["lengths"] = torch.linspace(T, 0, N).round().long() if N > 1 else torch.tensor([T])
    return inputs


def dynamic_shapes(module: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    T, N = Dim("T"), Dim("N")
    shapes: dict[str, Any] = {"input": {0: N, 1: T} if module.batch_first else {0: T, 1: N}}
    if "hx" in inputs:
        shapes["hx"] = ({1: N}, {1: N}) if module.mode == "LSTM" else {1: N}
    if "lengths" in inputs:
        shapes["lengths"] = {0: N}
    return shapes


def export(
    module: nn.Module,
    path: Path,
    inputs: dict[str, Any],
    shapes: dict[str, Any] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """Export to a file, check it and load it."""
    torch.onnx.export(
        module,
        (),
        path / "model.onnx",
        kwargs=inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        custom_translation_table=fastrnn.onnx.translation_table(),
        external_data=False,
        verbose=False,
        **options,
    )
    model = onnx.load(path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in NODES.values()]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def feed(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any]:
    arrays = [tensor.numpy() for tensor in tree_leaves(inputs)]
    return dict(zip((value.name for value in model.graph.input), arrays, strict=True))


def check_values(
    module: nn.Module, model: onnx.ModelProto, inputs: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    """Compare ONNX Runtime with eager; returns its results."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    actual = [torch.from_numpy(a) for a in session.run(None, feed(model, inputs))]
    with torch.no_grad():
        expected = tree_leaves(module(**inputs))
    assert [tuple(a.shape) for a in actual] == [tuple(b.shape) for b in expected]
    assert {a.dtype for a in actual} == {dtype}
    assert_all_close(actual, expected, dtype)
    return actual


@pytest.mark.parametrize(
    "options, given",
    [
        ({}, {}),
        ({"bias": False, "batch_first": True}, {"hx": True}),
        ({"batch_first": True}, {"lengths": True}),
        ({"bidirectional": True}, {"lengths": True, "hx": True}),
        ({"num_layers": 3}, {"hx": True}),
        (
            {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
            {"lengths": True, "hx": True},
        ),
    ],
    ids=lambda value: "-".join(value) or "plain",
)
@pytest.mark.parametrize("cell", CELLS)
def test_nodes_and_values(
    cell: str, options: dict[str, Any], given: dict[str, bool], tmp_path: Path
) -> None:
    module = make_module(cell, **options)
    inputs = make_inputs(module, *EXPORTED_SIZES, **given)
    model = export(module, tmp_path, inputs, dynamic_shapes(module, inputs), opset_version=18)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]

    nodes = nodes_of(model)
    directions = ("forward", "reverse")[: 1 + module.bidirectional]
    assert [node.op_type for node in nodes] == [NODES[cell]] * len(directions) * module.num_layers
    assert [attributes_of(node)["direction"].decode() for node in nodes] == (
        [*directions] * module.num_layers
    )
    for node in nodes:  # its inputs are X, W, R, B, sequence_lens, initial_h
        assert bool(node.input[3]) == module.bias
        assert bool(node.input[4]) == ("lengths" in inputs)

    for T, N in (EXPORTED_SIZES, *OTHER_SIZES):
        inputs = make_inputs(module, T, N, **given)
        output, *_ = check_values(module, model, inputs, torch.float32)
        if "lengths" in inputs:
            output = output if module.batch_first else output.transpose(0, 1)
            past = torch.arange(T) >= inputs["lengths"][:, None]
            assert output[past].eq(0).all()


@pytest.mark.parametrize("cell", CELLS)
def test_a_sample_without_steps_keeps_its_state(cell: str, tmp_path: Path) -> None:
    module = make_module(cell)
    inputs = make_inputs(module, 4, 3, hx=True, lengths=True)
    inputs["lengths"] = torch.tensor([0, 4, 0])
    model = export(module, tmp_path, inputs, dynamic_shapes(module, inputs))
    _, *finals = check_values(module, model, inputs, torch.float32)
    for final, state in zip(finals, tree_leaves(inputs["hx"]), strict=True):
        assert torch.equal(final[:, [0, 2]], state[:, [0, 2]])


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_exported_without_gradients(cell: str, optimize: bool, tmp_path: Path) -> None:
    module = make_module(cell)
    inputs = make_inputs(module, *EXPORTED_SIZES)
    shapes = dynamic_shapes(module, inputs)
    with torch.no_grad():
        model = export(module, tmp_path, inputs, shapes, optimize=optimize)
    assert len(nodes_of(model)) == 1
    check_values(module, model, make_inputs(module, 7, 3), torch.float32)


def test_default_opset_and_int32_lengths(tmp_path: Path) -> None:
    module = make_module("lstm")
    inputs = make_inputs(module, *EXPORTED_SIZES, lengths=True)
    inputs["lengths"] = inputs["lengths"].int()
    model = export(module, tmp_path, inputs, dynamic_shapes(module, inputs))
    inputs = make_inputs(module, 7, 3, lengths=True)
    inputs["lengths"] = inputs["lengths"].int()
    check_values(module, model, inputs, torch.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_float16(cell: str, tmp_path: Path) -> None:
    module = make_module(cell, bidirectional=True).half()
    inputs = make_inputs(module, *EXPORTED_SIZES, lengths=True)
    model = export(module, tmp_path, inputs, dynamic_shapes(module, inputs))
    check_values(module, model, make_inputs(module, 7, 3, lengths=True), torch.float16)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_float64(cell: str, tmp_path: Path) -> None:
    """ONNX's own evaluator runs it, which knows neither relu nor lengths: ONNX Runtime has no kernels."""
    module = make_module(cell).double()
    inputs = make_inputs(module, *EXPORTED_SIZES, hx=True)
    model = export(module, tmp_path, inputs, dynamic_shapes(module, inputs))
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {
        onnx.TensorProto.DOUBLE
    }
    inputs = make_inputs(module, 7, 3, hx=True)
    evaluator = onnx.reference.ReferenceEvaluator(model)
    actual = [torch.from_numpy(a) for a in evaluator.run(None, feed(model, inputs))]
    with torch.no_grad():
        assert_all_close(actual, tree_leaves(module(**inputs)), torch.float64)


@pytest.mark.parametrize(
    "module, states",
    [
        (fastrnn.RNNCell(I, H), 1),
        (fastrnn.RNNCell(I, H, nonlinearity="relu", bias=False), 1),
        (fastrnn.GRUCell(I, H), 1),
        (fastrnn.LSTMCell(I, H), 2),
    ],
    ids=["rnn_tanh", "rnn_relu", "gru", "lstm"],
)
def test_cells(module: nn.Module, states: int, tmp_path: Path) -> None:
    def inputs_of(N: int) -> dict[str, Any]:
        hx = tuple(torch.randn(N, H) for _ in range(states))
        return {"input": torch.randn(N, I), "hx": hx if states == 2 else hx[0]}

    N = Dim("N")
    shapes = {"input": {0: N}, "hx": ({0: N}, {0: N}) if states == 2 else {0: N}}
    model = export(module.eval(), tmp_path, inputs_of(2), shapes)
    assert len(nodes_of(model)) == 1
    for samples in (1, 7):
        check_values(module, model, inputs_of(samples), torch.float32)


def test_computed_weights_and_unbatched_input(tmp_path: Path) -> None:
    module = nn.utils.parametrizations.weight_norm(make_module("gru"), "weight_hh_l0")
    module.parametrizations.weight_hh_l0.original0.data *= 1.5
    model = export(module, tmp_path, {"input": torch.randn(4, I)}, {"input": {0: Dim("T")}})
    check_values(module, model, {"input": torch.randn(7, I)}, torch.float32)


class Scan(nn.Module):
    """The op as a user of the modules cannot call it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def forward(self, input: Tensor) -> Tensor:
        weights = ScanWeights(input.new_ones(H, I), input.new_ones(H, H))
        h_0 = input.new_zeros(2, H)
        return ops.scan("rnn_tanh", input, h_0, None, weights, **self.arguments)[0]


@pytest.mark.parametrize(
    "module, input, text",
    [
        (fastrnn.LSTM(I, H, proj_size=2), torch.ones(4, 2, I), r"have no proj_size \(weight_hr\)$"),
        (
            fastrnn.GRU(I, H).bfloat16(),
            torch.ones(4, 2, I, dtype=torch.bfloat16),
            r"have no bfloat16 .*model\.float\(\)",
        ),
        (Scan(batch_sizes=torch.tensor([2, 1])), torch.ones(3, I), "have no PackedSequence"),
        (Scan(reset=torch.zeros(4, 2, dtype=torch.bool)), torch.ones(4, 2, I), "have no reset=$"),
    ],
    ids=["projection", "bfloat16", "packed", "reset"],
)
def test_what_onnx_lacks(module: nn.Module, input: Tensor, text: str, tmp_path: Path) -> None:
    with pytest.raises(
        torch.onnx.errors.OnnxExporterError,
        match=f"(?m)fastrnn: ONNX's RNN, GRU and LSTM nodes {text}",
    ):
        export(module.eval(), tmp_path, {"input": input})


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"reset_h": "r"}, r"no reset_state= \(reset_h\)$"),
        ({"reset_c": "r"}, r"no reset_state= \(reset_c\)$"),
        ({"offsets": "o"}, r"no jagged tensor \(give"),
        ({"all_states": True}, r"no cell states of all steps \(return_all_states=True\)$"),
        ({"groups": 2}, r"no weights in groups \(vmap\)$"),
        ({"bias_ih": None}, "no bias_ih without bias_hh"),
        ({"reset": "r", "weight_hr": "w"}, r"no reset= and no proj_size \(weight_hr\)$"),
        ({"added_later": 0}, "no added_later$"),
        ({"cell": "sru"}, "no cell sru$"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_the_translation_refuses(arguments: dict[str, Any], text: str) -> None:
    given = dict.fromkeys(("h_0", "c_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"), "tensor")
    input = ir.Value(type=ir.TensorType(ir.DataType.FLOAT))
    with pytest.raises(NotImplementedError, match=f"^fastrnn: .* nodes have {text}"):
        fastrnn.onnx._translate(None, ir, **{"cell": "lstm", "input": input, **given, **arguments})


def test_a_cell_of_the_user_is_refused_with_what_to_do() -> None:
    @fastrnn.cells.cell(input_gates="a")
    def leak(x, h, s, p):  # type: ignore[no-untyped-def]
        return 0.5 * s.h + x.a

    name = fastrnn.Recurrent(leak, 3, 2)._cell
    input = ir.Value(type=ir.TensorType(ir.DataType.FLOAT))
    given = dict.fromkeys(("h_0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"), "tensor")
    text = f"nodes have no cell {name}: export a module that calls module.cell.step"
    with pytest.raises(NotImplementedError, match=text):
        fastrnn.onnx._translate(None, ir, cell=name, input=input, **given)


def test_onnxscript_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        fastrnn.onnx.translation_table()
