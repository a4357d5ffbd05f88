"""fastrnn.explain tells what ran, as is known otherwise of the machine, the case and the saved tensors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from common import AVAILABLE_INSTRUCTION_SETS, told

import fastrnn


def scans(module, *args, **kwargs):
    explanation = fastrnn.explain(module, *args, **kwargs)
    assert json.loads(json.dumps(explanation.as_dict())) == explanation.as_dict()
    for scan in explanation.scans:
        assert scan.instruction_set in str(explanation)
    return explanation.scans


def test_one_entry_a_layer_and_direction():
    model = torch.nn.Sequential(fastrnn.LSTM(7, 24, num_layers=2, bidirectional=True))
    entries = scans(model, torch.randn(5, 3, 7))
    assert [(s.cell, s.direction) for s in entries] == [
        ("lstm", "forward"),
        ("lstm", "reverse"),
    ] * 2
    assert entries[0].sizes == {"T": 5, "N": 3, "I": 7, "H": 24, "R": 24, "steps run": 15}
    assert entries[2].sizes["I"] == 48
    assert entries[0].flop == 2 * 15 * 4 * 24 * (7 + 24)


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"bias": False}])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_saved_bytes_are_those_autograd_holds(name, options):
    module = getattr(fastrnn, name)(6, 40, **options)
    x = torch.randn(9, 4, 6, requires_grad=True)
    parameters = {p.data_ptr() for p in module.parameters()}
    held = {}

    def pack(tensor):
        if tensor.data_ptr() not in parameters:
            held[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    # h_0 and c_0 are (1, 4, 40).
    states = 4 * 40 * 4 * (2 if name == "LSTM" else 1)
    (scan,) = scans(module, x)
    assert scan.saved_bytes == sum(held.values()) - states
    assert any("recompute=True" in reason for reason in scan.reasons) == (
        name != "RNN" and not options.get("recompute")
    )
    with torch.no_grad():
        assert scans(module, x)[0].saved_bytes == 0


def test_kernel_and_instruction_set(instruction_set):
    float32 = "avx512" if instruction_set == "amx" else instruction_set.removesuffix("_bf16")
    (scan,) = scans(fastrnn.GRU(8, 128), torch.randn(3, 2, 8))
    assert (scan.kernel, scan.instruction_set) == ("units in lanes", float32)
    assert f"FASTRNN_CPU_ISA or a program asks for {instruction_set}" in scan.reasons
    assert (
        "samples do not lie in the lanes: hidden units fill the lanes of a vector well"
        in scan.reasons
    )
    (scan,) = scans(fastrnn.GRU(8, 128).bfloat16(), torch.randn(3, 2, 8).bfloat16())
    assert scan.instruction_set == instruction_set
    with told():
        (scan,) = scans(fastrnn.GRU(8, 128), torch.randn(3, 2, 8))
    assert scan.instruction_set == instruction_set
    asked = "torch.backends.mkldnn.rnn.fp32_precision says so"
    assert any(asked in reason for reason in scan.reasons) == (instruction_set != float32)
    width = {"avx2": 8, "plain": 4, "neon": 4}.get(float32, 16)
    few = width // 2 if width > 4 else 2
    (scan,) = scans(fastrnn.GRU(1, few), torch.randn(3, 100, 1))
    assert scan.kernel == "samples in lanes"


def test_unavailable_sets_are_named():
    (scan,) = scans(fastrnn.RNN(8, 128), torch.randn(3, 2, 8))
    known = ["amx", "avx512_bf16", "avx512", "avx2", "plain"]
    missing = [name for name in known if name not in AVAILABLE_INSTRUCTION_SETS]
    if missing:
        assert f"this machine does not run {', '.join(missing)}" in scan.reasons


def test_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (large,) = scans(fastrnn.RNN(256, 256), torch.randn(8, 64, 256))
        (small,) = scans(fastrnn.RNN(2, 2), torch.randn(2, 1, 2))
        (long,) = scans(fastrnn.RNN(64, 64), torch.randn(200, 1, 64))
        torch.set_num_threads(1)
        (single,) = scans(fastrnn.RNN(256, 256), torch.randn(8, 64, 256))
    finally:
        torch.set_num_threads(before)
    assert large.threads == {"asked": 2, "sample_groups": 2, "unit_groups": 1}
    assert small.threads["asked"] == 1
    assert any(reason.startswith("1 of 2 threads") for reason in small.reasons)
    ahead = "threads without a part in a step make the input products of the next chunk"
    assert long.threads == {"asked": 2, "sample_groups": 1, "unit_groups": 1}
    assert ahead in long.reasons and ahead not in large.reasons
    assert single.threads["asked"] == 1
    assert not any("threads" in reason for reason in single.reasons)


def second_level_cache() -> int:
    """Bytes as the machine says, or 1 MiB; kernels count on 256 KiB to 2 MiB of it."""
    command = ["getconf", "LEVEL2_CACHE_SIZE"]
    if sys.platform != "linux" or not shutil.which(command[0]):
        return 1 << 20
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return min(max(int(said), 256 << 10), 2 << 20) if said.strip("0").isdigit() else 1 << 20


def test_tuning(two_threads):
    (scan,) = scans(fastrnn.LSTM(64, 512), torch.randn(8, 1, 64))
    cache = second_level_cache()
    assert scan.threads["unit_groups"] == 2
    assert scan.tuning == {
        "forward_chunk_bytes": cache // 2,
        "near_bytes": cache * 1_000_000 // (1 << 20),
        "barrier_threads": 2,
        "barrier_cycles": 1200,
    }
    usual = replace(
        scan, tuning=scan.tuning | {"forward_chunk_bytes": 1 << 19, "near_bytes": 10**6}
    )
    assert (
        "tuning: forward chunks of 512 KiB, weights up to 976 KiB are near, "
        "a barrier of 2 threads 1200 cycles"
    ) in str(usual)


def test_a_kernel_without_chunks_or_barriers_has_no_tuning():
    (scan,) = scans(fastrnn.GRU(1, 2), torch.randn(3, 100, 1))
    assert scan.kernel == "samples in lanes"
    assert scan.tuning == {} and "tuning" not in str(scan)


def test_layouts_lengths_and_a_single_step():
    gru = fastrnn.GRU(3, 20)
    x, lengths = torch.randn(6, 3, 3), torch.tensor([6, 1, 3])
    (padded,) = scans(gru, x, lengths=lengths)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    (rows,) = scans(gru, packed)
    nested = torch.nested.nested_tensor(
        [x[:n, i] for i, n in enumerate([6, 1, 3])], layout=torch.jagged
    )
    (jagged,) = scans(gru, nested)
    assert [s.layout for s in (padded, rows, jagged)] == ["padded", "packed", "jagged"]
    assert {s.sizes["steps run"] for s in (padded, rows, jagged)} == {10}
    (step,) = scans(fastrnn.GRUCell(3, 20), torch.randn(4, 3))
    assert step.sizes["T"] == 1
    assert any("a single step" in reason for reason in step.reasons)


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_frozen_layers_tell_the_type_of_their_packed_weights(weights):
    lstm = fastrnn.LSTM(7, 24, num_layers=2, bidirectional=True, proj_size=5, bias=False)
    copied, x, lengths = (
        fastrnn.freeze(lstm, weights),
        torch.randn(5, 3, 7),
        torch.tensor([5, 1, 2]),
    )
    own = weights or "float32"
    with torch.no_grad():
        for options in ({}, {"lengths": lengths}):
            expected = scans(lstm, x, **options)
            entries = scans(copied, x, **options)
            assert [scan.weights for scan in entries] == [own] * 4
            for scan, ordinary in zip(entries, expected, strict=True):
                assert ordinary.weights == "" and replace(scan, weights="") == ordinary
    assert f"weights: {own}, packed once" in str(fastrnn.explain(copied, x))


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_frozen_cells(name):
    cell = getattr(fastrnn, name)(7, 24)
    for shape in ((3, 7), (7,)):
        (scan,) = scans(fastrnn.freeze(cell, "int8"), torch.randn(shape))
        assert scan.sizes["N"] == (3 if len(shape) == 2 else 1)
        assert (scan.weights, scan.sizes["T"]) == ("int8", 1)
        assert not any("packed where they are read" in reason for reason in scan.reasons)


def test_what_does_not_run_a_layer():
    assert str(fastrnn.explain(torch.nn.Linear(2, 3), torch.randn(4, 2))) == "no fastrnn layer ran"
    with pytest.raises(TypeError, match="module must be callable, got int"):
        fastrnn.explain(3)
