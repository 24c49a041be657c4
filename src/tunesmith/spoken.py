"""What the verbs of the command line have in common: the options that several take, how they answer, and how they fail. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

SPEAKS = os.environ.get("RANK", "0") == "0"  # of several processes on one run, the first: parallel.first, without torch
LOOSE = {"allow_extra_args": True, "ignore_unknown_options": True}
RecipeFile = Annotated[Path, typer.Argument(help="A recipe. Then any number of key=value, or --key value, to override it.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; progress on standard error.")]
Lang = Annotated[str, typer.Option(help="Language of report.html: en or zh-CN.")]
OneTask = Annotated[str | None, typer.Option("--task", help="Of a run of several tasks, one by its name.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a finished run.")]


def fail(text: str, code: int) -> None:
    if SPEAKS:
        print(f"tunesmith: {text}", file=sys.stderr)
    sys.exit(code)


def overrides(context: typer.Context) -> list[str]:
    """`key=value`, `--key value`, `--key=value` and bare `--flag` after the recipe, all as key=value."""
    found: list[str] = []
    rest = list(context.args)
    while rest:
        word = rest.pop(0)
        if "=" in word or not word.startswith("--"):
            found.append(word.removeprefix("--"))
        elif rest and not rest[0].startswith("--") and "=" not in rest[0]:
            found.append(f"{word.removeprefix('--')}={rest.pop(0)}")
        else:
            found.append(f"{word.removeprefix('--')}=true")
    return found


def tell(as_json: bool, record: Any, human: Callable[[], None]) -> None:
    if not SPEAKS:
        return
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    else:
        human()
