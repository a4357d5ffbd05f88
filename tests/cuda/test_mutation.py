"""The operators of mutate.py find all their sites, and a sample of their mutants is caught."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from mutate import (
    ANCHOR,
    CSRC,
    KERNELS,
    LAUNCH,
    OPERATORS,
    SURVIVORS,
    Mutant,
    blank_comments,
    mutants,
    run,
    workers,
)

from simulator import ToolNotFoundError, toolchain

SAMPLE, SEED = 4, 1


def text(*files: str) -> str:
    return "".join(blank_comments((CSRC / file).read_text()) for file in files)


def test_no_site_is_left_out() -> None:
    all_mutants = mutants()
    count = Counter(mutant.operator for mutant in all_mutants)
    assert set(count) == set(OPERATORS)
    kernels = text(*KERNELS)
    assert count["drop a barrier"] == kernels.count("__sync")
    relaxed = kernels.count("relaxed.gpu.")
    strict = (
        kernels.count("asm volatile")
        - kernels.count('asm volatile(""')
        + kernels.count(': "memory"')
    )
    assert count["weaken an order or scope"] == 2 * relaxed + strict
    launch = text(*LAUNCH)
    taken = [m for m in all_mutants if m.operator == "shrink a buffer" and "take<" in before(m)]
    assert len(taken) == launch.count("arena.take<")


def before(mutant: Mutant) -> str:
    """The call that the site is an argument of."""
    return (CSRC / mutant.file).read_text()[: mutant.start][-16:]


def test_each_changes_its_file() -> None:
    all_mutants = mutants()
    assert len({m.describe((CSRC / m.file).read_text()) for m in all_mutants}) == len(all_mutants)
    for mutant in all_mutants:
        source = (CSRC / mutant.file).read_text()
        assert 0 <= mutant.start < mutant.end <= len(source)
        assert source[mutant.start : mutant.end] != mutant.text


def test_every_explanation_has_a_place_in_the_sources() -> None:
    """Every place that is marked has an explanation for one of its mutants, too."""
    used = Counter(m.anchor((CSRC / m.file).read_text()) for m in mutants())
    assert set(used) - {None} == set(SURVIVORS)
    marked = Counter(ANCHOR.findall(text_with_comments(*{m.file for m in mutants()})))
    assert {name: used[name] for name in SURVIVORS} == dict(marked)


def text_with_comments(*files: str) -> str:
    return "".join((CSRC / file).read_text() for file in files)


@pytest.mark.slow
def test_a_sample_is_caught() -> None:
    try:
        toolchain.require()
    except ToolNotFoundError as missing:
        pytest.skip(str(missing))
    chosen = random.Random(SEED).sample(mutants(), SAMPLE)
    with workers(2) as pool:
        outcomes = list(pool.map(run, chosen))
    for mutant, outcome in zip(chosen, outcomes, strict=True):
        source = (CSRC / mutant.file).read_text()
        assert outcome.result != "survived" or mutant.explanation(source), outcome
    assert [o for o in outcomes if o.result == "caught"]
