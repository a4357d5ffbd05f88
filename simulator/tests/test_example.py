"""The example of README.md does what the page says, and so does its mistake."""

import re
from pathlib import Path

import pytest

from simulator import SimulatorFinding

PAGE = (Path(__file__).parents[1] / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(EXAMPLE, {})
    assert f"prints `{capsys.readouterr().out.strip()}`" in PAGE


def test_mistake_is_found_as_the_page_says() -> None:
    wrong = EXAMPLE.replace("i < n", "i <= n").replace("add_one", "add_one_wrong")
    with pytest.raises(SimulatorFinding) as caught:
        exec(wrong, {})
    said = f"SimulatorFinding: {caught.value}".replace("add_one_wrong", "add_one")
    assert without_address(said) in without_address(PAGE)


def without_address(text: str) -> str:
    """Where memory lies depends on what was there before."""
    return re.sub(r"0x[0-9a-f]+", "0x", text).replace("\t", "")
