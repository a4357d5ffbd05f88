"""Tests of the simulator alone are skipped where a tool is missing, and say which."""

import pytest

from simulator import ToolNotFoundError, toolchain


@pytest.fixture(autouse=True, scope="session")
def tools() -> None:
    try:
        toolchain.require()
    except ToolNotFoundError as missing:
        pytest.skip(str(missing))
