"""Derivatives of every order and mode, vmap, and both inside torch.compile: values, beside plain torch's.

The oracle is ``fastrnn.reference``, torch operations all the way down, under the same transform.
"""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from common import (
    CELLS,
    assert_all_close,
    by_name,
    call_scan,
    make_scan,
    present,
    scan_arguments,
    scan_backward_arguments,
)
from pairs import make_pair
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import ops, reference
from fastrnn.ops import ScanWeights

T, N, I, H = 4, 3, 2, 3
KINDS = ["plain", "lengths", "resets", "reverse"]
LAYERS = ["RNN", "GRU", "LSTM"]


def make_case(cell, kind, proj_size=0, sizes=(T, N, I, H)):
    """Tensors that may be differentiated, and a function of them, given ops.scan or reference.scan."""
    x, h, c, weights = make_scan(cell, sizes, proj_size=proj_size)
    steps, batch = sizes[:2]
    generator = torch.Generator().manual_seed(5)
    options = {"reverse": kind in ("resets", "reverse")}
    tensors = present([x, h, c, *weights])
    if kind in ("lengths", "resets"):
        options["lengths"] = torch.randint(0, steps + 1, (batch,), generator=generator)
    if kind == "resets":
        options["reset"] = torch.rand(steps, batch, generator=generator) < 0.4
        tensors += present([h.flip(0), None if c is None else c.flip(0)])

    def call(scan, *tensors):
        x, h, *rest = tensors
        c = rest.pop(0) if cell == "lstm" else None
        w = ScanWeights(*(None if each is None else rest.pop(0) for each in weights))
        states = {}
        if kind == "resets":
            states["reset_h"] = rest.pop(0)
            states["reset_c"] = rest.pop(0) if cell == "lstm" else None
        return tuple(present(scan(cell, x, h, c, w, all_states=True, **states, **options)))

    return tensors, call


def loss_of(call, scan):
    """A function that makes a number of all results, of none linearly."""

    def loss(*tensors):
        return sum(
            (result.sin() * (1 + index)).sum() for index, result in enumerate(call(scan, *tensors))
        )

    return loss


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "proj_size"), [*((cell, 0) for cell in CELLS), ("lstm", 2)])
def test_all_derivatives_numerically(cell, proj_size, kind):
    """First and second derivatives in forward, reverse and mixed mode, for every input and result."""
    tensors, call = make_case(cell, kind, proj_size)
    inputs = [t.clone().requires_grad_() for t in tensors]
    function = partial(call, ops.scan)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True
    )


def second(loss, tensors):
    inputs = [t.clone().requires_grad_() for t in tensors]
    first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first)
    return [*first, *torch.autograd.grad(penalty, inputs)]


def directional(loss, tensors):
    return [*jvp(loss, tuple(tensors), tuple(t.flip(0) for t in tensors))]


def forward_ad(loss, tensors):
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(t, t.flip(0)) for t in tensors]
        return [torch.autograd.forward_ad.unpack_dual(loss(*duals)).tangent]


def of_all(transform):
    return lambda loss, tensors: [*transform(loss, argnums=tuple(range(len(tensors))))(*tensors)]


def blocks(transform):
    """Second derivatives, with respect to the input and two weights."""

    def chosen_blocks(loss, tensors):
        chosen = (0, len(tensors) // 2, 2)
        return [each for row in transform(loss, argnums=chosen)(*tensors) for each in row]

    return chosen_blocks


def per_sample(loss, tensors):
    """Gradients of every tensor, for three inputs mapped over."""
    x = torch.stack([tensors[0] * scale for scale in (1, 2, 3)])
    argnums = tuple(range(len(tensors)))
    dims = (0, *(None,) * (len(tensors) - 1))
    return [*vmap(grad(loss, argnums=argnums), in_dims=dims)(x, *tensors[1:])]


def ensemble(loss, tensors):
    """Every second tensor mapped over, from the first weight on; gradients through the map."""
    leaves = [torch.stack([t, 2 * t], dim=-1) if i % 2 else t for i, t in enumerate(tensors)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    dims = tuple(-1 if i % 2 else None for i in range(len(tensors)))
    values = vmap(loss, in_dims=dims)(*leaves)
    return [values, *torch.autograd.grad(values.square().sum(), leaves)]


def nested(loss, tensors):
    """A map within a map, over inputs and a weight."""
    x = torch.stack([tensors[0], 2 * tensors[0]])
    position = len(tensors) // 2
    weights = torch.stack([tensors[position] * scale for scale in (1, -1, 2)])

    def both(x, weight):
        return loss(x, *tensors[1:position], weight, *tensors[position + 1 :])

    gradients = grad(both, argnums=(0, 1))
    return [*vmap(vmap(gradients, in_dims=(None, 0)), in_dims=(0, None))(x, weights)]


def products(loss, tensors):
    """A Hessian times a vector for each of two inputs, twice in reverse mode."""
    x = torch.stack([tensors[0], 2 * tensors[0]])

    def product(x):
        inner = lambda w, x: (grad(loss)(x, *tensors[1:-1], w) * x).sum()  # noqa: E731
        return grad(inner, argnums=(0, 1))(tensors[-1], x)

    return [*vmap(product)(x)]


TRANSFORMS = {
    "double backward": second,
    "jvp": directional,
    "forward_ad": forward_ad,
    "jacrev": of_all(jacrev),
    "jacfwd": of_all(jacfwd),
    "hessian": blocks(hessian),
    "jacrev of jacrev": blocks(lambda f, argnums: jacrev(jacrev(f, argnums), argnums)),
    "jacrev of jacfwd": blocks(lambda f, argnums: jacrev(jacfwd(f, argnums), argnums)),
    "per-sample gradients": per_sample,
    "ensemble": ensemble,
    "nested vmap": nested,
    "per-sample Hessian products": products,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_those_of_plain_torch(transform, cell, kind):
    tensors, call = make_case(cell, kind)
    expected = TRANSFORMS[transform](loss_of(call, reference.scan), tensors)
    actual = TRANSFORMS[transform](loss_of(call, ops.scan), tensors)
    assert_all_close(actual, expected, torch.float64)
    assert any(value.abs().max() > 1e-3 for value in expected)


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_on_every_instruction_set(instruction_set, cell):
    for sizes in [(5, 3, 4, 5), (3, 17, 19, 83), (6, 75, 3, 5)]:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            tensors, call = make_case(cell, "resets", sizes=sizes)
            tensors = [t.to(dtype) for t in tensors]
            if cell == "rnn_relu" and dtype == torch.bfloat16:
                continue  # a sum near zero may round to the other side of the kink
            actual = second(loss_of(call, ops.scan), tensors)
            expected = second(loss_of(call, reference.scan), [t.double() for t in tensors])
            for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
                error = (a.double() - b).norm() / b.norm().clamp_min(1e-30)
                limit = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
                assert error < limit, (sizes, dtype, index, error)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(70, 6, 3, 20), (9, 40, 5, 4), (1, 4, 2, 130)])
def test_per_sample_gradients_are_those_of_a_loop(cell, sizes):
    """Each sample's weight gradients, with lengths mapped over, too; some steps take several chunks."""
    x, h, c, weights = make_scan(cell, sizes)
    lengths = torch.randint(
        0, sizes[0] + 1, (sizes[1],), generator=torch.Generator().manual_seed(3)
    )

    def loss(weights, x, h, c, length):
        states = (h[None], None if c is None else c[None])
        results = ops.scan(cell, x[:, None], *states, ScanWeights(*weights), lengths=length[None])
        return sum(result.sin().sum() for result in present(results))

    weights = tuple(present(weights))
    dims = (None, 1, 0, None if c is None else 0, 0)
    actual = vmap(grad(loss), in_dims=dims)(weights, x, h, c, lengths)
    for n in range(sizes[1]):
        alone = grad(loss)(weights, x[:, n], h[n], None if c is None else c[n], lengths[n])
        assert_all_close([each[n] for each in actual], alone, torch.float64)


def test_vmap_of_a_packed_batch():
    x, h, c, weights = make_scan("lstm", (5, 4, 3, 6))
    packed = pack_padded_sequence(x, torch.tensor([5, 3, 3, 1]))
    many = torch.stack([packed.data, 2 * packed.data])

    def call(data, w):
        results = ops.scan(
            "lstm", data, h, c, weights._replace(weight_hh=w), batch_sizes=packed.batch_sizes
        )
        return tuple(present(results))

    w = torch.stack([weights.weight_hh, -weights.weight_hh])
    for dims, values in (((0, None), (many, weights.weight_hh)), ((0, 0), (many, w))):
        actual = vmap(call, in_dims=dims)(*values)
        for i in range(2):
            alone = call(many[i], values[1] if dims[1] is None else w[i])
            for a, b in zip(actual, alone, strict=True):
                assert torch.equal(a[i], b)
    with pytest.raises(NotImplementedError, match="vmap over jagged input is not supported"):
        offsets = torch.tensor([0, 5, 8, 11, 12])
        vmap(lambda data: ops.scan("lstm", data, h, c, weights, offsets=offsets)[0])(many)


# Torch 2.14 reads .grad of tensors that are no leaves, which its check of an op has made.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("layout", ["padded", "packed", "jagged", "lengths and resets"])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck(cell, layout):
    """The ops as torch.library checks them: schema, fake kernels, autograd, traced with any sizes."""
    x, h, c, weights = make_scan(cell, (4, 3, 2, 5), proj_size=3 if cell == "lstm" else 0)
    rows = layout in ("packed", "jagged")
    schedule = {
        "padded": {},
        "packed": {"batch_sizes": torch.tensor([3, 2])},
        "jagged": {"offsets": torch.tensor([0, 2, 2, 5])},
        "lengths and resets": {"lengths": torch.tensor([4, 0, 3]), "reset": torch.rand(4, 3) < 0.5},
    }[layout]
    tensors = by_name(
        cell,
        x.flatten(0, 1)[:5] if rows else x,
        h,
        c,
        *weights,
        h + 1,
        None if c is None else c + 1,
    )
    reverse = layout == "jagged"
    # Gates of steps that no sample runs are left as they are, and opcheck compares all of them.
    options = {"recompute": layout == "lengths and resets", "all_states": True}
    arguments = scan_arguments(cell, tensors, schedule, reverse=reverse)
    torch.library.opcheck(torch.ops.fastrnn.scan.default, arguments, options)
    leaves = {
        name: None if t is None else t.clone().requires_grad_() for name, t in tensors.items()
    }
    arguments = scan_arguments(cell, leaves, schedule, reverse=reverse)
    torch.library.opcheck(torch.ops.fastrnn.scan.default, arguments, options)

    results = call_scan(cell, tensors, schedule, reverse=reverse, **options)
    grads = {name: tensor for name, tensor in results.items() if name != "gates"}
    backward = scan_backward_arguments(cell, grads, tensors, results, schedule, reverse=reverse)
    torch.library.opcheck(torch.ops.fastrnn.scan_backward.default, backward)


def test_opcheck_in_groups():
    x, h, _, weights = make_scan("gru", (4, 6, 2, 5))
    weights = [
        w if i % 2 else w.expand(3, *w.shape).contiguous() for i, w in enumerate(present(weights))
    ]
    tensors, groups = by_name("gru", x, h, None, *weights), {"groups": 3}
    arguments = scan_arguments("gru", tensors)
    torch.library.opcheck(torch.ops.fastrnn.scan.default, arguments, groups)
    results = call_scan("gru", tensors, **groups)
    backward = scan_backward_arguments("gru", {"y": results["y"]}, tensors, results)
    torch.library.opcheck(torch.ops.fastrnn.scan_backward.default, backward, groups)


# --- modules --------------------------------------------------------------------------------------


def make_module(name, package=fastrnn, **options):
    torch.manual_seed(0)
    return getattr(package, name)(I, H, dtype=torch.float64, **options)


def detached_call(module):
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return lambda x: functional_call(module, parameters, (x,))[0]


@pytest.mark.parametrize("name", LAYERS)
def test_ensemble_of_stacked_modules(name):
    """The recipe of torch's own tutorial on ensembles, weights of every layer mapped over."""
    options = {"num_layers": 2, "bidirectional": True}
    modules = [make_module(name, **options) for _ in range(3)]
    for scale, module in enumerate(modules):
        with torch.no_grad():
            module.weight_hh_l0.mul_(scale)
    parameters, _ = stack_module_state(modules)
    x = torch.randn(T, N, I, dtype=torch.float64)
    base = copy.deepcopy(modules[0]).to("meta")
    together = vmap(lambda p: functional_call(base, p, (x,))[0])(parameters)
    assert_all_close(list(together), [module(x)[0] for module in modules], torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_func_on_an_accelerated_model(name):
    model = nn.ModuleDict(
        {"rnn": make_module(name, nn), "head": nn.Linear(H, 1, dtype=torch.float64)}
    )
    x = torch.randn(T, N, I, dtype=torch.float64)

    def per_sample(model):
        def loss(weights, sample):
            rnn = {
                key.removeprefix("rnn."): w for key, w in weights.items() if key.startswith("rnn.")
            }
            return functional_call(model["rnn"], rnn, (sample,))[0].sin().sum()

        weights = {key: w.detach() for key, w in model.named_parameters()}
        return vmap(grad(loss), in_dims=(None, 1))(weights, x)

    report = fastrnn.Report()
    fast = fastrnn.accelerate(copy.deepcopy(model), report=report)
    assert report.replaced == {"rnn": f"fastrnn.{name}"}
    sample_gradients = per_sample(fast)
    for n in range(N):
        model.zero_grad()
        model["rnn"](x[:, n])[0].sin().sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(sample_gradients[key][n], parameter.grad)


@pytest.mark.parametrize("name", LAYERS)
def test_per_sample_gradients_of_a_module_with_lengths(name):
    """A module checks the values of lengths, which vmap hides and grad wraps once more."""
    module = make_module(name)
    weights = {key: w.detach() for key, w in module.named_parameters()}
    x, lengths = torch.randn(T, N, I, dtype=torch.float64), torch.arange(N) + 1

    def loss(weights, sample, length):
        call = (sample.unsqueeze(1),), {"lengths": length.unsqueeze(0)}
        return functional_call(module, weights, *call)[0].sin().sum()

    actual = vmap(grad(loss), in_dims=(None, 1, 0))(weights, x, lengths)
    for n in range(N):
        alone = grad(loss)(weights, x[:, n], lengths[n])
        assert_all_close([actual[key][n] for key in weights], alone.values(), torch.float64)
    with pytest.raises(ValueError, match=r"lengths\[0\] is 9, expected 0 <= length <= T"):
        grad(loss)(weights, x[:, 0], torch.tensor(9))


def test_gradient_penalty_trains_a_critic():
    """WGAN-GP's penalty, ten steps of training beside torch.nn's GRU."""
    losses = []
    for package in (nn, fastrnn):
        torch.manual_seed(1)
        critic = nn.ModuleList([make_module("GRU", package), nn.Linear(H, 1, dtype=torch.float64)])
        optimizer = torch.optim.Adam(critic.parameters(), lr=0.05)
        x = torch.randn(T, 8, I, dtype=torch.float64)
        for _ in range(10):
            points = x.clone().requires_grad_()
            score = critic[1](critic[0](points)[0][-1]).sum()
            (slope,) = torch.autograd.grad(score, points, create_graph=True)
            loss = score.square() + (slope.pow(2).sum((0, 2)).sqrt() - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


COMPILED = {
    "jvp": lambda call, x: jvp(call, (x,), (x.flip(0),))[1],
    "grad": lambda call, x: grad(lambda x: call(x).sin().sum())(x),
    "per-sample gradients": lambda call, x: vmap(
        grad(lambda x: call(x[:, None]).sin().sum()), in_dims=1
    )(x),
    "vmap": lambda call, x: vmap(lambda x: call(x[:, None]), in_dims=1)(x),
    "jacfwd": lambda call, x: jacfwd(lambda x: call(x).sum(-1))(x),
}


@pytest.mark.filterwarnings("ignore")  # torch warns of what it deprecates in itself
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
@pytest.mark.parametrize("transform", COMPILED)
def test_transforms_inside_compile(transform, name):
    module = make_module(name)
    x = torch.randn(T, N, I, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: COMPILED[transform](detached_call(module), x), backend="aot_eager", fullgraph=True
    )
    expected = COMPILED[transform](detached_call(module), x)
    torch.testing.assert_close(compiled(x), expected)
    assert expected.abs().max() > 1e-3


# --- what there is no rule for raises -------------------------------------------------------------


def third_derivative(module, x):
    first = torch.autograd.grad(module(x)[0].sin().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sin().sum(), x, create_graph=True)[0]
    return torch.autograd.grad(second.sum(), x)


def through_compiled(module, x):
    torch._dynamo.reset()
    y = torch.compile(module, backend="aot_eager")(x)[0]
    gradient = torch.autograd.grad(y.sin().sum(), x, create_graph=True)[0]
    return torch.autograd.grad(gradient.square().sum(), x)


WITHOUT_A_RULE = {
    "third derivative": third_derivative,
    "jvp of jvp": lambda m, x: jvp(lambda x: jvp(lambda x: m(x)[0], (x,), (x,))[1], (x,), (x,)),
    "jacfwd of jacfwd": lambda m, x: jacfwd(jacfwd(lambda x: m(x)[0]))(x),
    "second derivative through a compiled module": through_compiled,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", WITHOUT_A_RULE)
def test_what_has_no_rule_raises(case, name):
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    with pytest.raises(
        (NotImplementedError, RuntimeError), match=r"not supported|wrongly|double backward"
    ):
        WITHOUT_A_RULE[case](make_module(name), x)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_batches_of_gradients(name, create_graph):
    """torch.autograd.grad(is_grads_batched=True) and what torch.autograd.functional makes of it."""
    options = {"num_layers": 2, "bidirectional": True}
    theirs, ours = make_pair(name, options, size=(I, H))
    x = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True)
    cotangents = torch.randn(3, T, N, 2 * H, dtype=torch.float64)

    def batched(module):
        leaves = [x, *module.parameters()]
        slopes = torch.autograd.grad(
            module(x)[0], leaves, cotangents, is_grads_batched=True, create_graph=create_graph
        )
        if not create_graph:
            return slopes
        return [*slopes, *torch.autograd.grad(slopes[1].square().sum(), leaves)]

    assert_all_close(batched(ours), batched(theirs), torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_vectorized_hessian(name):
    """Its second derivatives come in a batch, too."""
    x = torch.randn(3, 1, I, dtype=torch.float64)
    hessians = [
        torch.autograd.functional.hessian(lambda x, m=m: m(x)[0].square().sum(), x, vectorize=True)
        for m in make_pair(name, size=(I, H))
    ]
    assert_all_close(hessians[:1], hessians[1:], torch.float64)


@pytest.mark.parametrize("name", LAYERS)
def test_jacobian_of_a_single_sample(name):
    """A batch folded into one sample is a view of its own strides."""
    x = torch.randn(3, 1, I, dtype=torch.float64)
    jacobians = [jacrev(lambda x, m=m: m(x)[0])(x) for m in make_pair(name, size=(I, H))]
    assert_all_close(jacobians[:1], jacobians[1:], torch.float64)
