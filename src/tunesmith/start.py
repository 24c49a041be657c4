"""`tunesmith init`: look at a file, say what is in it, and write a short recipe with its choices explained."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import write_file
from .errors import Refusal
from .sources.text.formats import Format, detect, preview
from .sources.text.read import read
from .sources.text.records import Records

ORDER = ("tag", "generate", "score", "classify", "generate")  # the most particular first; generate again, for tables without names
MODELS = {"classify": "minilm", "tag": "minilm", "score": "minilm", "generate": "desk-lm"}
TEMPLATE = """\
# {file}: {name}, {rows} rows
{shown}
model: {model}            # hub id, folder, or `minilm` or `desk-lm`, which are embedded
task: {task}              # classify | tag | score | generate
data:
  train: {file}
  eval: 0.1                # a file, or the share of training rows to hold out
method: lora               # full | head | layers | adapter | prompt | prefix | lora | bitfit | peft
budget: {{epochs: 3}}        # or steps, tokens, minutes
out: {out}
# update: {{rate: 1.0e-3, batch: 32}}     the method's own measured rate is the default
# evaluate: {{patience: 2}}               stop after two evaluations without a better one
"""


def sniff(path: str, task: str | None = None, columns: dict[str, str] | None = None) -> tuple[str, Format, Records]:
    """The task that a file is for, its format and its rows. Raises Refusal where no task fits, with what each was missing."""
    records = read(path)
    faults: dict[str, Refusal] = {}
    for place, name in enumerate([task] if task else ORDER):
        try:
            found = detect(records, name, columns)
        except Refusal as e:
            faults[name] = e
            continue
        if task or place == len(ORDER) - 1 or fits(name, found):
            return name, found, records
    if task:
        raise faults[task]
    raise faults.get("classify", Refusal(f"no task fits {path}", where=path, fix="--task classify, tag, score or generate"))


def fits(task: str, found: Format) -> bool:
    """Plain text is in every file, and columns without names say little; numbers of few values are classes rather than scores; classes repeat."""
    if task == "generate":
        return found.name != "plain text" and not any(name.startswith("column") for name in found.columns.values())
    if task == "classify":
        return len({e.labels for e in found.examples()}) <= max(2, len(found) // 2)  # type: ignore[union-attr]
    if task == "score":
        values = {e.score for e in found.examples()}  # type: ignore[union-attr]
        return len(values) > 10 or any(v != int(v) for v in values)
    return True


def init(path: str, out: Path, task: str | None = None, force: bool = False) -> tuple[str, list[str]]:
    """Write the recipe; returns its text and what was noticed."""
    if out.exists() and not force:
        raise Refusal(f"{out} exists", where="--out", fix="--force replaces it, or give another --out")
    name, found, records = sniff(path, task)
    shown = "\n".join(f"#   {line[:110]}" for line in preview(found))
    text = TEMPLATE.format(file=path, name=found.name, rows=len(records), shown=shown, model=MODELS[name], task=name, out=f"runs/{Path(path).stem}-lora")
    write_file(out, text.encode())
    return text, [*records.notes, *found.notes]
