"""What the verbs say to people, where it is more than a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison.compare import Comparison
    from .train import Result


def check_text(facts: dict[str, Any], warnings: list[str], recipe: Path) -> str:
    lines = [f"{facts['format']}; rows: " + ", ".join(f"{k} {v:,}" for k, v in facts["rows"].items())]
    lines += [f"  {row}" for row in facts["first_rows"]]
    for part, counts in facts["labels"].items():
        lines.append(f"labels in {part}: " + ", ".join(f"{k} {v}" for k, v in list(counts.items())[:16]) + (" ..." if len(counts) > 16 else ""))
    for part, t in facts["tokens"].items():
        lines.append(
            f"tokens in {part}: {t['per_epoch']:,} an epoch; rows: median {t['median']}, 95 % under {t['p95']}, longest {t['longest']}, limit {t['max_length']}"
        )
    lines.append(
        f"trains {facts['trainable_parameters']:,} of {facts['total_parameters']:,} parameters at rate {facts['learning_rate']:g} for {facts['steps']:,} steps; resting blocks: {facts['frozen_blocks']}"
    )
    lines.append(f"predicted peak memory: {facts['predicted_peak_memory_bytes'] / 1e9:.2f} GB")
    lines += [f"note: {n}" for n in facts["notes"]] + [f"warning: {w}" for w in warnings] + [f"\nnext: tunesmith run {recipe}"]
    return "\n".join(lines)


def run_text(result: Result) -> str:
    r = result.record
    lines = [f"{k}: {value(r['before'].get(k))} -> {value(v)}" for k, v in r["after"].items()]
    lines.append(
        f"{r['trainable_parameters']:,} parameters, {r['artifact_bytes'] / 1e6:.2f} MB, {r['train_seconds']:.1f} s, peak {r['peak_memory_bytes'] / 1e9:.2f} GB; {r['stopped']}"
    )
    return "\n".join([*lines, f"{result.folder}/artifact", f'\nnext: tunesmith predict {result.folder} "..."'])


def eval_text(scores: Mapping[str, Any]) -> str:
    return "\n".join([f"{k}: {value(v)}" for k, v in scores["scores"].items()] + [f"note: {why}" for why in dict.fromkeys(scores["undefined"].values())])


def answer_text(record: Mapping[str, Any]) -> str:
    """A prediction; of a text, the text alone."""
    return record["text"] if list(record) == ["text"] else json.dumps(record, ensure_ascii=False)


def list_text(shown: Mapping[str, list[str]]) -> str:
    """The tables, a row a line, with the first line of what each row says of itself."""
    from .methods import METHODS
    from .objectives import OBJECTIVES
    from .sources.streams import STREAMS
    from .strategies import STRATEGIES
    from .updates import UPDATES, Search

    tables: Mapping[str, Mapping[str, type]] = {
        "methods": METHODS, "objectives": OBJECTIVES, "streams": STREAMS, "strategies": STRATEGIES,
        "updates": {**UPDATES, "search": Search},
    }  # fmt: skip
    about = lambda table, name: (tables[table][name].__doc__ or "").strip().splitlines()[0] if table in tables else ""
    return "\n".join(f"{table}:\n" + "\n".join(f"  {name:11s} {about(table, name)}".rstrip() for name in names) for table, names in shown.items())


def mined_text(found: Mapping[str, Any]) -> str:
    lines = [f"{found['negatives']:,} negatives for {found['pairs']:,} pairs out of {found['documents']:,} texts; {found['pairs_without']:,} pairs have none"]
    lines.append(
        f"mean cosine: positives {value(found['positive_cosine'])}, negatives {value(found['negative_cosine'])}; {found['too_near']:,} candidates were too near"
    )
    return "\n".join([*lines, f"{found['out']}\n\nnext: data: {{train: {found['out']}}}"])


def value(number: float | None) -> str:
    return "undefined" if number is None else f"{number:.4g}"


def print_comparison(made: Comparison) -> None:
    from rich.console import Console

    from .comparison.table import shown

    out, record = Console(width=max(150, Console().width)), made.record
    out.print(shown(made.table))
    rest = ["", *record["notes"], f"{record['rows_judged']} rows judged; {record['seconds'] / 60:.1f} minutes", f"report: {made.report}"]
    out.print("\n".join(rest), highlight=False, markup=False, soft_wrap=True)


def print_demo(made: Comparison) -> None:
    print_comparison(made)
    best = next(row["folder"] for row in made.record["arms"] if row["label"] == made.record["best_trained"])
    print(f'\nTry one:         tunesmith predict {best} "my kettle leaks"')  # noqa: T201
    print("On your own file: tunesmith init yours.jsonl && tunesmith compare recipe.yaml")  # noqa: T201


def print_families(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("family", "model", "method", "objective", "metric", "before", "after", "trains", "s"):
        table.add_column(name, justify="right" if name in ("before", "after", "trains", "s") else "left")
    for r in rows:
        cells = [r[k] for k in ("family", "model", "method", "objective", "metric")]
        table.add_row(*cells, value(r["before"]), value(r["after"]), f"{r['trainable_parameters']:,}", f"{r['seconds']:.0f}")
    Console(width=max(130, Console().width)).print(table)
