"""Is what `recommend` foretells true?

    TUNESMITH_DATA=... python benchmarks/advice.py --cells > cells.jsonl     # memory and time, foretold and measured, one line a cell
    python benchmarks/advice.py --table cells.jsonl                          # how far off, and the worst
    python benchmarks/advice.py --regret                                     # what its choice of method loses, one data set left out at a time

Cells: models x methods x lengths of rows. MiniLM as published; a BERT of 8 x 512 and a Llama of 6 x 384 with random weights, which cost what trained
ones cost. One process foretells, with three probe steps a method; then each cell is trained in a process of its own, twice: the faster one is what it
takes, for whatever else a machine does only adds. Processes are started as `tunesmith` starts itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as hf

from evidence import table as read_table
from tunesmith.advice import foresee
from tunesmith.advice.evidence import losses, regret, rows_of, source
from tunesmith.advice.rehearsal import rehearse
from tunesmith.comparison.arms import EIGHT
from tunesmith.machine import NO_CACHES, keep_freed_memory
from tunesmith.networks.load import load_tokenizer, origin
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared, device_of
from tunesmith.train import run

LENGTHS = {"short": (1, 32), "long": (5, 12)}  # sentences a row, rows a batch
STEPS = 24
REACHES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)
MODELS = ("minilm", "bert", "llama")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--cells", action="store_true")
    args.add_argument("--table", type=Path)
    args.add_argument("--regret", action="store_true")
    args.add_argument("--models", default=",".join(MODELS))
    args.add_argument("--methods", default=",".join(EIGHT))
    args.add_argument("--lengths", default=",".join(LENGTHS))
    args.add_argument("--turns", type=int, default=2)
    args.add_argument("--foretell", help=argparse.SUPPRESS)
    args.add_argument("--train", help=argparse.SUPPRESS)
    options = args.parse_args()
    if options.foretell:
        print(json.dumps(foretold(json.loads(options.foretell))))
    elif options.train:
        print(json.dumps(trained(json.loads(options.train))))
    elif options.table:
        print(report(options.table.read_text().splitlines()))
    elif options.regret:
        print(json.dumps({**regret(rows_of()), "recommend, its reach chosen without the set": blind(rows_of())}, indent=1))
    else:
        cells(options)


def blind(rows: list[dict]) -> float:
    """The regret where not even REACH has seen the set that is judged: chosen each time by the regret on the others."""
    lost = []
    for left in sorted({source(row["set"]) for row in rows}):
        others = [row for row in rows if source(row["set"]) != left]
        reach = min(REACHES, key=lambda reach: regret(others, reach)["recommend"])
        lost += [one["recommend"] for cell, one in losses(rows, reach).items() if source(cell) == left]
    return round(statistics.fmean(lost), 4)


def cells(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as work:
        folders = models(Path(work))
        for name in options.models.split(","):
            for length in options.lengths.split(","):
                plans = {m: plan(Path(work), folders[name], length, m) for m in options.methods.split(",")}
                said = apart("--foretell", plans)
                for method, made in plans.items():
                    turns = [apart("--train", {**made, "out": f"{work}/{name}-{length}-{method}-{turn}"}) for turn in range(options.turns)]
                    found = min(turns, key=lambda turn: turn["train_seconds"] + turn["fill_seconds"])
                    print(json.dumps({"model": name, "length": length, "method": method, **said[method], **found}), flush=True)


def models(work: Path) -> dict[str, str]:
    """Folders; the random ones are written."""
    torch.manual_seed(0)
    reader = load_tokenizer(origin("minilm"))
    bert = hf.BertConfig(vocab_size=len(reader), hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048)
    llama = hf.LlamaConfig(
        vocab_size=len(reader), hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1024, max_position_embeddings=512
    )
    for name, model in (("bert", hf.BertModel(bert)), ("llama", hf.LlamaForCausalLM(llama))):
        model.save_pretrained(work / name)
        reader.save_pretrained(work / name)
    return {"minilm": "minilm", "bert": str(work / "bert"), "llama": str(work / "llama")}


def plan(work: Path, model: str, length: str, method: str) -> dict:
    """A recipe; its rows are SST-2's sentences, several of them end to end where the row is to be long."""
    many, batch = LENGTHS[length]
    writes = model.endswith("llama")
    path = work / f"{length}-{writes}.jsonl"
    if not path.exists():
        dice = random.Random(0)
        found = read_table(Path(os.environ["TUNESMITH_DATA"]) / "sst2/train.tsv", 0, 1, "\t", False)
        rows = [[dice.choice(found) for _ in range(many)] for _ in range(500)]
        made = [{"text": " ".join(r["text"] for r in row)} | ({} if writes else {"label": row[0]["label"]}) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    rest = {"evaluate": {"samples": 0}, "checkpoint": {"every": 10**6}}
    task = "generate" if writes else "classify"
    return {"model": model, "task": task, "data": {"train": str(path)}, "method": method, "budget": {"steps": STEPS}, "update": {"batch": batch}, **rest}


def apart(what: str, given: dict) -> dict:
    """In a process of its own; its last line is the answer."""
    done = subprocess.run([sys.executable, __file__, what, json.dumps(given)], stdout=subprocess.PIPE, check=True, env=os.environ | NO_CACHES)
    return json.loads(done.stdout.splitlines()[-1])


def foretold(plans: dict[str, dict]) -> dict[str, dict]:
    keep_freed_memory()
    found, shared = {}, Shared(keeps=True)
    for method, made in plans.items():
        r = recipe(made)
        data = shared.data(r)
        began = time.perf_counter()
        seen = rehearse(r, data)
        took = time.perf_counter() - began
        speed = foresee.speed_of(seen.dtype, seen.width, min(2048, seen.step.tokens), str(device_of(r)))
        found[method] = {"memory_said": foresee.memory(seen, resident(shared)), "seconds_said": foresee.seconds(seen, speed), "rehearsal_s": took}
        found[method] |= {"live": seen.peak, "dtype_said": seen.dtype, "trainable_said": seen.trainable}
        resident(shared)
    for method, made in plans.items():
        r = recipe(made)
        began = time.perf_counter()
        found[method]["probe_said"] = foresee.probe(r, shared.data(r), shared)
        found[method]["probe_s"] = time.perf_counter() - began
    return found


def resident(shared: Shared, known: list[int] = []) -> int:  # noqa: B006
    """Of this process before the first rehearsal."""
    from tunesmith import machine

    return known[0] if known else known.append(machine.resident_memory()) or known[0]


def trained(made: dict) -> dict:
    record = run(recipe(made), Reporter(quiet=True)).record
    kept = ("peak_memory_bytes", "train_seconds", "fill_seconds", "trainable_parameters", "dtype")
    return {k: record[k] for k in kept}


def report(lines: list[str]) -> str:
    """Off by how much: memory, time by the probe, time by estimate; the median, and the worst cell."""
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    for row in rows:
        took = row["train_seconds"] + row["fill_seconds"]
        row["memory"] = row["memory_said"] / row["peak_memory_bytes"] - 1
        row["probe"], row["estimate"] = row["probe_said"] / took - 1, row["seconds_said"] / took - 1
        assert row["trainable_said"] == row["trainable_parameters"], row
    said = [f"{len(rows)} cells; trainable parameters exact in all"]
    for key in ("memory", "probe", "estimate"):
        worst = max(rows, key=lambda r: abs(r[key]))
        half = statistics.median(abs(r[key]) for r in rows)
        said.append(f"{key}: median off {half:.1%}, worst {worst[key]:+.1%} ({worst['model']}, {worst['length']}, {worst['method']})")
    head = f"{'model':8} {'length':6} {'method':8} {'GB':>6} {'said':>6} {'off':>7} {'s':>6} {'probe':>6} {'off':>7} {'guess':>6} {'off':>7}"
    table = [
        f"{r['model']:8} {r['length']:6} {r['method']:8} {r['peak_memory_bytes'] / 1e9:6.2f} {r['memory_said'] / 1e9:6.2f} {r['memory']:+7.1%} "
        f"{r['train_seconds'] + r['fill_seconds']:6.1f} {r['probe_said']:6.1f} {r['probe']:+7.1%} {r['seconds_said']:6.1f} {r['estimate']:+7.1%}"
        for r in rows
    ]
    return "\n".join([*said, "", head, *table])


if __name__ == "__main__":
    main()
