"""PyTorch's own module database: every sample input and every error input of its six modules, run on ours."""

from __future__ import annotations

import pytest
import torch
from common import DEVICE, assert_all_close, gradients
from pairs import flatten
from torch import nn
from torch.torch_version import TorchVersion

import fastrnn

# torch's own test code needs packages that torch itself does not: expecttest is one.
common_modules = pytest.importorskip("torch.testing._internal.common_modules")
ModuleErrorEnum, module_db = common_modules.ModuleErrorEnum, common_modules.module_db

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__module__.startswith("torch.nn")}  # fmt: skip


def samples(name, *, dtype=torch.float64, training=True):
    info = INFOS[name]
    return list(
        info.module_inputs_func(
            info, device=DEVICE, dtype=dtype, requires_grad=True, training=training
        )
    )


def error_samples(name):
    info = INFOS[name]
    if info.module_error_inputs_func is None:
        return []
    return list(
        info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
        )
    )


SAMPLES = [
    pytest.param(name, index, training, id=f"{name}-{index}-{'train' if training else 'eval'}")
    for name in NAMES
    for training in (True, False)
    for index in range(len(samples(name)))
]
ERRORS = [
    pytest.param(name, index, id=f"{name}-{index}")
    for name in NAMES
    for index in range(len(error_samples(name)))
]


def test_database_has_what_we_expect():
    """A torch whose database is empty or renamed must not pass by running nothing."""
    assert all(samples(name) for name in NAMES)
    assert len(ERRORS) >= (30 if TorchVersion(torch.__version__) >= (2, 13) else 10)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "index", "training"), SAMPLES)
def test_sample_input(name, index, training, without_cudnn):
    """Ours gives the numbers and gradients of torch.nn's module, and those of its no-batch reference where it has one."""
    sample = samples(name, training=training)[index]
    construct, call = sample.constructor_input, sample.forward_input
    by_package = []
    for package in (nn, fastrnn):
        torch.manual_seed(0)
        module = getattr(package, name)(*construct.args, dtype=torch.float64, **construct.kwargs)
        module.train(training)
        results = module(*call.args, **call.kwargs)
        tensors = flatten(results)
        inputs = [t for t in flatten(call.args) if t.requires_grad]
        by_package.append(tensors + gradients(tensors, inputs + list(module.parameters())))
        if package is fastrnn and sample.reference_fn is not None:
            expected = sample.reference_fn(module, *call.args, **call.kwargs)
            assert_all_close(tensors, flatten(expected), torch.float64)
    assert_all_close(by_package[1], by_package[0], torch.float64)


@pytest.mark.parametrize(("name", "index"), ERRORS)
def test_error_input(name, index):
    error = error_samples(name)[index]
    construct = error.module_error_input.constructor_input
    kind = getattr(fastrnn, name)
    if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(error.error_type, match=error.error_regex):
            kind(*construct.args, **construct.kwargs)
        return
    module = kind(*construct.args, **construct.kwargs)
    call = error.module_error_input.forward_input
    with pytest.raises(error.error_type, match=error.error_regex):
        module(*call.args, **call.kwargs)
