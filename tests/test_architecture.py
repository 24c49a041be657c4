"""The house: who may import whom, tables that are whole, bounds on size, a ninth method in three steps, and a quick `--help`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import shop
from tunesmith import methods, objectives, recipe
from tunesmith.core import Method, Objective
from tunesmith.core.method import WIDTHS
from tunesmith.progress import Reporter
from tunesmith.train import run

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "tunesmith"
FILES = sorted(SRC.rglob("*.py"))
SIBLINGS = ("networks", "methods", "objectives", "sources", "updates")
UNDER = {"errors", "core", "parallel"}
ALLOWED = {
    "core": {"errors"},
    "parallel": set(),
    **{name: UNDER | {"hub", "machine"} for name in SIBLINGS},
    "engine": UNDER,
    "evaluate": UNDER,
    "checkpoint": UNDER,
    "recipe_yaml": {"errors"},
    "construct": {"errors", "recipe_yaml"},
    "sections": set(),
    "strategies": {*UNDER, *SIBLINGS},
    "handed": {"errors", "construct", "recipe_yaml"},
    "contradictions": {*UNDER, *SIBLINGS, "construct", "recipe", "recipe_yaml", "sections", "strategies"},
    "recipe": {*UNDER, *SIBLINGS, "aliases", "construct", "contradictions", "handed", "recipe_yaml", "sections", "strategies"},
    "machine": set(),
    "hub": set(),
    "data": {"errors"},
}


def imports(path: Path) -> set[str]:
    """Our top-level modules that a file imports, at any depth of it."""
    found = set()
    package = path.relative_to(SRC).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                full = [*base, *(node.module.split(".") if node.module else [])]
                found |= {full[0]} if full else {alias.name for alias in node.names}
            elif node.module and node.module.startswith("tunesmith."):
                found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_down(path):
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    if own in ALLOWED:
        assert imports(path) <= ALLOWED[own] | {own}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 310
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            start = node.body[1].lineno if len(node.body) > 1 and ast.get_docstring(node) else node.lineno
            assert (node.end_lineno or 0) - start + 1 <= 60, node.name
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


def subclasses(base: type) -> set[type]:
    return {c for c in base.__subclasses__() if c.__module__.startswith("tunesmith.")}


def test_every_method_and_objective_is_in_its_table():
    assert subclasses(Method) == set(methods.METHODS.values())
    assert {c for c in subclasses(Objective) if c.tasks} == set(objectives.OBJECTIVES.values())  # the others stand around one


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_a_method_names_its_paper_and_its_rates(name):
    cls = methods.METHODS[name]
    assert "http" in cls.paper or name == "peft"
    assert set(cls.rates) == set(WIDTHS)
    assert inspect.getdoc(cls)
    at = lambda width: cls.rate(cls.__new__(cls), "encoder", width)
    assert at(384) == cls.rates["encoder"] and at(768) == pytest.approx(at(384) / 2 if cls.matrices else at(384), rel=0.01)


def test_the_core_imports_torch_only():
    for path in (SRC / "core").glob("*.py"):
        heads = {n.module.split(".")[0] for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and not n.level and n.module}
        assert heads <= {"__future__", "abc", "collections", "contextlib", "dataclasses", "functools", "typing", "torch"}


def test_help_answers_at_once_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['tunesmith', '--help']\nimport tunesmith.cli\ntry: tunesmith.cli.main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    took = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        took.append(time.perf_counter() - began)
    assert done.stdout.strip().endswith("False False")
    assert "compare" in done.stdout
    assert min(took) < 2.0  # 0.1 s on a quiet machine; the promise of 0.5 s is for one


def test_a_ninth_method_in_three_steps(tmp_path, monkeypatch):
    """The listing in docs/architecture.md, as it stands there."""
    listing = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert listing
    code = "\n".join(line.removeprefix("   ") for line in listing.group(1).splitlines())
    head = (
        "from collections.abc import Callable, Mapping\nfrom dataclasses import dataclass\nfrom typing import ClassVar\nimport torch\nfrom torch import Tensor, nn\n"
        "from tunesmith.core import Graft, Insert, Method, Network\nfrom tunesmith.methods.linear import features\n"
    )
    (tmp_path / "ninth.py").write_text("from __future__ import annotations\n" + head + code)
    monkeypatch.syspath_prepend(tmp_path)
    ninth = importlib.import_module("ninth")
    monkeypatch.setitem(methods.METHODS, "ia3", ninth.IA3)
    shop.encoder(tmp_path / "model")
    made = shop.recipe(tmp_path, "classify", "ia3", update={"batch": 8, "rate": 5e-3}, budget={"steps": 30})
    result = run(recipe.recipe(made), Reporter(quiet=True))
    assert result["after"]["loss"] < result["before"]["loss"]
    assert "ia3" in recipe.vocabulary()["methods"]
