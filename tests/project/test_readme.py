"""The README and the pages with code run as they stand, from top to bottom, and do what they say.

Every page's links lead somewhere, and the commands it names exist.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

import fastrnn
from fastrnn import zoo
from fastrnn.cells import language
from fastrnn.cells.values import LATER

ROOT = Path(__file__).parents[2]
README, CELLS, FEATURES, GUIDE, INTEGRATIONS = (
    ROOT / "README.md",
    ROOT / "docs" / "cells.md",
    ROOT / "docs" / "features.md",
    ROOT / "docs" / "guide.md",
    ROOT / "docs" / "integrations.md",
)
# The package that each block of the page needs, in order.
INTEGRATED = ("torch", "sb3_contrib", "torchrl", "opacus", "lightning")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
MAX_README_LINES = 150

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks_of(page: Path, kinds: str) -> list[tuple[str, str]]:
    """Fenced blocks as (kind, text), in order."""
    return re.findall(rf"^```({kinds})\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run_python(page: Path) -> dict:
    """Run all Python blocks of a page as one program; its names."""
    names: dict = {}
    for _, block in blocks_of(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    return names


def test_the_readme_runs(capsys):
    torch.manual_seed(0)
    names = run_python(README)
    assert "replaced 0 by fastrnn.LSTM" in capsys.readouterr().out
    assert names["output"].shape == (8, 29, 64)
    assert all(w.grad.abs().max() > 0 for w in names["rnn"].parameters())
    assert type(names["model"][0]) is torch.nn.LSTM


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's export, of itself
@pytest.mark.filterwarnings("ignore:.*will not be used:UserWarning")  # names for equal sizes
def test_every_block_of_the_features_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    assert len(blocks_of(FEATURES, "python")) >= 6
    names = run_python(FEATURES)
    printed = capsys.readouterr().out
    assert "gru forward, float32, padded: T 100 N 32 I 64 H 128 R 128 steps run 3200" in printed
    assert names["per_sample"]["weight_hh_l0"].shape == (8, 256, 64)
    assert all(w.grad.abs().max() > 0 for w in names["lstm"].parameters())
    x = torch.randn(17, 3, 12)
    torch.testing.assert_close(names["compiled"](x), names["lstm"](x))
    assert (tmp_path / "gru.onnx").stat().st_size > 1000


@pytest.mark.slow  # compiles four cells
def test_every_block_of_the_cells_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [(_, formula)] = blocks_of(CELLS, "text")
    names = run_python(CELLS)
    printed = capsys.readouterr().out
    assert formula in printed
    assert "Recurrent(leaky, 1, 32, alpha=0.1)" in printed
    assert "torch.tanh cannot take a value of a cell: write tanh of fastrnn.cells" in printed
    assert names["output"].shape == (29, 8, 64)
    assert [path.suffix for path in (tmp_path / "kernels").iterdir()] == [".so"]


def test_the_cells_page_lists_the_language_and_the_zoo():
    page = CELLS.read_text()
    reference, _, of_zoo = page.partition("## What the language does not have")
    for name in language.__all__:
        assert re.search(rf"^\|.*`{name}[`(].*\|$", reference, re.MULTILINE), name
    arguments = inspect.signature(fastrnn.cells.cell).parameters.values()
    declared = [each.name for each in arguments if each.kind is each.KEYWORD_ONLY]
    assert "gates" in declared and all(f"| `{name}` |" in reference for name in declared)
    listed = re.findall(r"^\| (`.*?`) \|", of_zoo, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(listed))) == zoo.__all__
    for name in LATER:
        assert f"`{name}`" in of_zoo, name


def test_the_reference_has_every_public_name():
    """By its last part: what fastrnn and fastrnn.functional share is on one page."""
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^\.\. auto\w+:: [\w.]*?(\w+)(?:\(\))?$", text, re.MULTILINE))
    for module in (fastrnn, fastrnn.cells, fastrnn.data, fastrnn.functional, zoo):
        assert set(module.__all__) <= listed, set(module.__all__) - listed


@pytest.mark.slow
def test_every_block_of_the_guide_runs(tmp_path, monkeypatch, capfd, warm_python):
    pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(GUIDE, r"\w+")
    assert [kind for kind, _ in blocks].count("python") == 13 and len(blocks) == 15
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHON_EXEC": warm_python,  # torchrun's name for it
        "GLOO_SOCKET_IFNAME": "lo",
    }
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    names: dict = {"__name__": "guide"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(GUIDE), "exec"), names)
            continue
        assert kind == "sh"
        for line in block.splitlines():
            program, *options = line.split()
            module = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[program]
            command = [warm_python, *module, *options]
            subprocess.run(command, check=True, env=environment, timeout=240)
    printed = capfd.readouterr().out
    assert "fastrnn.dropin.LSTM" in printed and "3 trials" in printed
    assert names["loss"].isfinite() and (tmp_path / "tuning" / "best.toml").exists()
    assert list((tmp_path / "logs").iterdir()) and list((tmp_path / "run").iterdir())


def test_every_block_of_the_integrations_names_its_package():
    blocks = blocks_of(INTEGRATIONS, "python")
    assert all(package in block for (_, block), package in zip(blocks, INTEGRATED, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the packages
@pytest.mark.parametrize("package", INTEGRATED)
def test_a_block_of_the_integrations_runs(package, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    _, block = blocks_of(INTEGRATIONS, "python")[INTEGRATED.index(package)]
    names: dict = {}
    exec(compile(block, str(INTEGRATIONS), "exec"), names)
    layers = {
        "torch": lambda: names["lstm"],
        "sb3_contrib": lambda: names["model"].policy.lstm_actor,
        "torchrl": lambda: names["policy"].gru,
        "opacus": lambda: names["model"]._module.rnn,
        "lightning": lambda: names["trainer"].model.rnn,
    }
    assert isinstance(layers[package](), (fastrnn.GRU, fastrnn.LSTM))


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def anchors_of(page: Path) -> set[str]:
    """Names that a link may end with, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_citation_has_the_version():
    assert f"version: {fastrnn.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        url = urlsplit(link)
        if url.scheme:
            continue
        target = (page.parent / url.path).resolve() if url.path else page
        assert target.exists(), link
        assert not url.fragment or url.fragment in anchors_of(target), link


@every_page
def test_named_commands_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(
        re.findall(r"`([^`\n]+)`", page.read_text()) + [b for _, b in blocks_of(page, "sh")]
    )
    for target in re.findall(r"(?:^|\n)make ([\w-]+)", code):
        assert target in targets, target
    for script in re.findall(r"python ((?:\w+/)+\w+\.py)", code):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)?)", code):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


# The pages name the folders of the layout with csrc/torch; before it they name what is to come.
@pytest.mark.skipif(not (ROOT / "csrc" / "torch").is_dir(), reason="the tree has no csrc/torch yet")
@every_page
def test_named_files_exist(page):
    folders = "csrc|fastrnn|tests|benchmarks|examples|simulator"
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", page.read_text()):
        assert "NAME" in path or (ROOT / path).exists(), path
