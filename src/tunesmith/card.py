"""The model card of a run: what was trained on what, what it reached, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from .dataset import Dataset
from .networks.embedded import published
from .recipe import Recipe

PIPELINES = {
    "classify": "text-classification",
    "tag": "token-classification",
    "score": "text-classification",
    "generate": "text-generation",
    "embed": "sentence-similarity",
}


def card(recipe: Recipe, data: Dataset, record: Mapping[str, Any]) -> str:
    """Markdown with the metadata block that the Hub reads."""
    metric, before, after = record["metric"], record["before"], record["after"]
    meta = {
        "base_model": published(data.source),
        "library_name": "tunesmith",
        **({"pipeline_tag": PIPELINES[recipe.task]} if recipe.task in PIPELINES else {}),
        "tags": ["tunesmith", recipe.method["kind"]],
    }
    rows = "\n".join(f"| {k} | {number(before.get(k))} | {number(v)} |" for k, v in after.items())
    table = f"| on {record_name(recipe)} | before | after |\n|---|---|---|\n{rows}\n" if after else "No evaluation data was given.\n"
    if "teacher" in record:
        table += "\n" + beside(record)
    return f"""---
{yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)}---

# {recipe.model.name}, {recipe.method["kind"]}, {recipe.task}

{record["trainable_parameters"]:,} of {record["total_parameters"]:,} parameters were trained on {record["train_rows"]:,} rows
({record["steps"]} steps, learning rate {record["learning_rate"]:g}, seed {record["seed"]}, {record["dtype"]}); {record["train_seconds"]:.0f} s,
peak memory {record["peak_memory_bytes"] / 1e9:.2f} GB. Main metric: {metric}.

{table}
## Use

```python
import tunesmith

tuned = tunesmith.load("{recipe.folder.name}")
print(tuned.predict(["..."]))
```

## Recipe

```yaml
{recipe.text()}```
"""


def beside(record: Mapping[str, Any]) -> str:
    """What deployment asks: the student by its teacher. A teacher whose answers alone are known has a name."""
    student, teacher, metric = record["student"], record["teacher"], record["metric"]
    rows = {"parameters": "parameters", "bytes": "bytes", "latency_ms": "ms a prediction"}
    lines = [f"| {name} | {number(student[key])} | {number(teacher.get(key))} |\n" for key, name in rows.items()]
    lines += [f"| {metric} | {number(student['scores'].get(metric))} | {number(teacher.get('scores', {}).get(metric))} |\n"] if metric else []
    return f"| | student | teacher {teacher['name']} |\n|---|---|---|\n{''.join(lines)}"


def record_name(recipe: Recipe) -> str:
    files = [one.data.eval for one in recipe.each().values()]
    return ", ".join(dict.fromkeys("held-out rows" if isinstance(file, float) else str(file) for file in files))


def number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"
