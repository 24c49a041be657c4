"""The benchmarks still fit the code: each imports and says what it does."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


COMMANDS = [path for path in sorted(FOLDER.glob("*.py")) if "argparse" in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.stem)
def test_a_benchmark_says_what_it_does(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    assert left.value.code in (0, None)
    assert "usage" in capsys.readouterr().out
