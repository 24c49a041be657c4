"""The model card of a run: what was trained on what, what it reached, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from .dataset import Dataset
from .networks.embedded import published
from .recipe import Recipe

PIPELINES = {"classify": "text-classification", "tag": "token-classification", "score": "text-classification", "generate": "text-generation"}


def card(recipe: Recipe, data: Dataset, record: Mapping[str, Any]) -> str:
    """Markdown with the metadata block that the Hub reads."""
    metric, before, after = record["metric"], record["before"], record["after"]
    meta = {
        "base_model": published(data.source),
        "library_name": "tunesmith",
        "pipeline_tag": PIPELINES[recipe.task],
        "tags": ["tunesmith", recipe.method["kind"]],
    }
    rows = "\n".join(f"| {k} | {number(before.get(k))} | {number(v)} |" for k, v in after.items())
    table = f"| on {record_name(recipe)} | before | after |\n|---|---|---|\n{rows}\n" if after else "No evaluation data was given.\n"
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


def record_name(recipe: Recipe) -> str:
    return "held-out rows" if isinstance(recipe.data.eval, float) else str(recipe.data.eval)


def number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"
