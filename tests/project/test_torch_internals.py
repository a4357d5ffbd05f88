"""Private modules and functions of torch are taken in one file, where a new torch is checked."""

import ast
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).parent
HOME = PACKAGE / "torch_internals.py"
# torch documents these under the names of private modules.
DOCUMENTED = {"torch._inductor.aoti_compile_and_package"}


def is_private(name: str) -> bool:
    return any(
        part.startswith("_") and not (part.startswith("__") and part.endswith("__"))
        for part in name.split(".")
    )


def private_names(source: str) -> list[str]:
    """Private names of torch that a module imports, or reaches from a name that it imports."""
    tree = ast.parse(source)
    roots, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "torch":
                    roots[(name.asname or "torch")] = name.name if name.asname else "torch"
                    found.append(name.name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            for name in node.names:
                roots[name.asname or name.name] = f"{node.module}.{name.name}"
                found.append(f"{node.module}.{name.name}")
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in roots:
            found.append(".".join([roots[node.id], *reversed(parts)]))
    return sorted({name for name in found if is_private(name)})


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._C._x()", ["torch._C", "torch._C._x"]),
        ("import torch._dynamo as d\nd.reset()", ["torch._dynamo", "torch._dynamo.reset"]),
        ("from torch.autograd import forward_ad as f\nf._x", ["torch.autograd.forward_ad._x"]),
        ("from torch.utils._pytree import tree_map", ["torch.utils._pytree.tree_map"]),
        ("from torch import nn\nnn.RNNBase.__constants__\nself._C", []),
    ],
)
def test_what_counts_as_private(source, found):
    assert private_names(source) == found


def test_one_file_has_them_all():
    elsewhere = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path != HOME
        for name in private_names(path.read_text())
        if not any(known == name or known.startswith(f"{name}.") for known in DOCUMENTED)
    }
    assert not elsewhere
    assert len(private_names(HOME.read_text())) > 20
