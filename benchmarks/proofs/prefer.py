"""Proof that preferences are learnt: which of two replies to a desk message is the better one, by language models and by a reward model.

python benchmarks/proofs/prefer.py [--model desk-lm] [--out FOLDER] [--only dpo,reward]

data      732 messages with a good and a poor reply to learn from, 156 held out, on which beta and rate were tried (docs/LOG.md); English and Chinese
policies  LoRA on a causal language model, three epochs: dpo, ipo, kto on pairs, kto on one verdict a message, orpo, simpo
reward    LoRA on MiniLM, one epoch: one number for a message with its reply
controls  dpo and reward with better and worse swapped in a random half of the pairs; "the longer reply is better"

Accuracy is the share of held-out pairs that are ranked rightly: by log pi / pi_ref of the whole answer where the loss has a reference (0.5 before, by
definition), else by the mean log-probability a token. Chosen and rejected are the mean log-ratios in nats: how far the policy went, and which way.
Exits with 1 where a bound is broken: dpo, ipo and kto reach 0.75 on pairs, kto on single verdicts, which are half of the answers, 0.66 (three standard errors above preferring
the longer reply), and the reward model 0.8, simpo and orpo do not end below where they began, the controls stay within 0.12 of one half, and no answer becomes more than e^40 times likelier or less likely on average.
What keeps that distance is beta: at the published 0.1 dpo goes twice as far for the same accuracy, and ipo, whose gap of 1 / (2 beta) is a token's, ten times (docs/LOG.md).

simpo and orpo have no reference, so what the base has memorised of the chosen replies counts as learnt already: their rise shows on a model that has not read them (--model).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from lanes import side_by_side
from rows import written

import tunesmith
from tunesmith.data import desk

FAR, NEAR, BOUNDS = 40.0, 0.12, {"dpo": 0.75, "ipo": 0.75, "kto": 0.75, "kto, one verdict a message": 0.66, "reward": 0.8}
RATE, BETA = 2e-3, {"dpo": 0.3, "kto": 0.3, "ipo": 0.5}


def files(out: Path) -> dict[str, str]:
    """Swapped pairs, and one verdict a message."""
    dice, rows = random.Random(0), desk.rows("prefer", "train")
    swapped = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} if dice.random() < 0.5 else r for r in rows]
    judged = [{"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"} for r in rows for side in [dice.choice(["chosen", "rejected"])]]
    return {"swapped": written(out / "swapped.jsonl", swapped), "judged": written(out / "judged.jsonl", judged)}


def recipe(model: str, loss: str, train: str, out: Path, rate: float) -> dict[str, Any]:
    reward, beta = loss == "reward", {"beta": BETA[loss]} if loss in BETA else {}
    return {
        "model": "minilm" if reward else model, "task": "score" if reward else "generate", "data": {"train": train, "eval": "desk/prefer"},
        "objective": {"kind": "prefer", "loss": loss, **beta}, "method": "lora", "budget": {"epochs": 1 if reward else 3},
        "update": {"batch": 16, **({} if reward else {"rate": rate})}, "checkpoint": {"every": 100_000},
        "evaluate": {"every": 100_000, "best": False, "samples": 0}, "out": str(out),
    }  # fmt: skip


def arms(of: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Name -> loss and rows to learn from."""
    pairs = "desk/prefer"
    return {
        "dpo": ("dpo", pairs),
        "dpo, swapped at random": ("dpo", of["swapped"]),
        "reward": ("reward", pairs),
        "reward, swapped at random": ("reward", of["swapped"]),
        **{loss: (loss, pairs) for loss in ("simpo", "kto", "ipo", "orpo")},
        "kto, one verdict a message": ("kto", of["judged"]),
    }


def faults(name: str, loss: str, before: dict[str, float | None], after: dict[str, float | None]) -> list[str]:
    accuracy = after["accuracy"] or 0.0
    wrong = abs(accuracy - 0.5) > NEAR if "swapped" in name else accuracy < BOUNDS.get(name, BOUNDS.get(loss, before["accuracy"] or 0.0))
    far = [k for k in ("chosen_ratio", "rejected_ratio") if abs(after.get(k) or 0.0) > FAR]
    return [f"{name}: accuracy {accuracy:.3f}"] * wrong + [f"{name}: {k} {after[k]:.1f}" for k in far]


def longer() -> float:
    """What "the longer reply is better" gets right."""
    rows = desk.rows("prefer", "dev")
    return sum((len(r["chosen"]) > len(r["rejected"])) + 0.5 * (len(r["chosen"]) == len(r["rejected"])) for r in rows) / len(rows)


def measured(name: str, loss: str, train: str, given: argparse.Namespace) -> tuple[str, list[str]]:
    """A row of the table, and what is wrong with it."""
    folder = given.out / name.replace(" ", "-").replace(",", "")
    result = tunesmith.run(recipe(given.model, loss, train, folder, given.rate))
    before, after = result["before"], result["after"]
    shown = [
        before["accuracy"],
        *(after.get(key) for key in ("accuracy", "margin", "chosen_ratio", "rejected_ratio")),
        before.get("perplexity"),
        after.get("perplexity"),
    ]
    row = [name, *("-" if v is None else f"{v:.3g}" for v in shown), f"{result['train_seconds']:.0f}"]
    return f"| {' | '.join(row)} |", faults(name, loss, before, after)


def main() -> int:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="desk-lm", help="a causal language model")
    args.add_argument("--rate", type=float, default=RATE, help="learning rate of the policies")
    args.add_argument("--only", default="", help="some of the arms, by the beginnings of their names")
    args.add_argument("--jobs", type=int, default=2, help="arms at a time, a thread each")
    args.add_argument("--out", type=Path, default=Path("runs/proofs/prefer"))
    given = args.parse_args()
    began, broken = time.perf_counter(), []
    print(
        "| | accuracy before | after | margin | chosen | rejected | perplexity of the chosen, before | after | seconds |\n|---|---|---|---|---|---|---|---|---|"
    )
    print(f"| the longer is better | {longer():.3f} | | | | | | | |")
    some = {name: how for name, how in arms(files(given.out)).items() if name.startswith(tuple(given.only.split(",")))}
    for row, wrong in side_by_side([partial(measured, name, *how, given) for name, how in some.items()], given.jobs):
        print(row, flush=True)
        broken += wrong
    print(f"\n{time.perf_counter() - began:.0f} s" + "".join(f"\nbroken: {fault}" for fault in broken))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
