"""Fixtures of the tests."""

from __future__ import annotations

import pytest
from common import AVAILABLE_INSTRUCTION_SETS, INSTRUCTION_SETS


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in AVAILABLE_INSTRUCTION_SETS:
        pytest.skip(f"this machine cannot run {request.param}")
    monkeypatch.setenv("FASTRNN_CPU_ISA", request.param)
    return request.param
