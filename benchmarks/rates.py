"""Which learning rate suits which method: a sweep on real data, the same budget for each, one line a run.

    TUNESMITH_DATA=... python benchmarks/rates.py --methods lora,full --steps 63 > rates.jsonl

SST-2 and TREC (1,000 training rows each, a stated subset), the embedded desk; judged on rows that no run trained on. Decoders: stories260k (width 64) and desk-lm (256) on E2E.
Encoder-decoders, of which none can be had without a hub: a small T5 that is first taught to end TinyStories' sentences, and then E2E too (`--sets e2e-t5`). The chosen
rates stand in each method's `rates`; the sweep itself in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import torch
import transformers as hf

from tunesmith.artifact import export
from tunesmith.errors import Diverged
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

GRID = {
    "full": (5e-5, 1e-4, 2e-4, 4e-4),
    "head": (1e-2, 3e-2, 1e-1, 3e-1),
    "layers": (2e-4, 5e-4, 1e-3, 2e-3),
    "adapter": (2e-3, 5e-3, 1e-2, 2e-2),
    "prompt": (3e-3, 1e-2, 3e-2),
    "prefix": (3e-3, 1e-2, 3e-2, 1e-1),
    "lora": (5e-4, 1e-3, 2e-3, 5e-3),
    "bitfit": (1e-3, 3e-3, 1e-2, 3e-2),
    "fusion": (1e-4, 1e-3, 5e-3, 2e-2),
    "mixture": (2e-3, 5e-3, 2e-2, 5e-2),
}
BUILT_ON = {"fusion": "adapter", "mixture": "lora"}  # one run on each of the other sets, at its own rate


def sets(root: str) -> dict[str, dict]:
    """Model, task and rows by data set."""
    classify = {"model": "minilm", "task": "classify"}
    found: dict[str, dict] = {"desk": {**classify, "data": {"train": "desk", "test": "desk"}}}
    if root:
        base = Path(root)
        sst2 = {"train": str(base / "sst2/train.tsv"), "test": str(base / "sst2/dev.tsv"), "header": False}
        trec = {"train": str(base / "trec/TREC.train"), "test": str(base / "trec/TREC.test"), "encoding": "latin-1"}
        found["sst2"] = {**classify, "data": {**sst2, "limit": 1000}}
        found["trec"] = {**classify, "data": {**trec, "limit": 1000, "columns": {"text": "column3", "label": "column1"}}}
        e2e = {"train": str(base / "e2e_nlg/devset.csv"), "eval": 0.1, "limit": 2000, "columns": {"prompt": "mr", "completion": "ref"}}
        found["e2e"] = {"model": str(base.parent / "models/stories260k"), "task": "generate", "data": e2e, "metric": "perplexity"}
        found["e2e-desk"] = {**found["e2e"], "model": "desk-lm"}
        found["e2e-t5"] = {**found["e2e"], "model": str(Path(tempfile.gettempdir()) / "stories-t5")}
    return found


def stories_t5(root: Path, folder: Path, steps: int = 700) -> None:
    """A T5 of 4 + 4 blocks of 128, trained from nothing by our own loop on pairs of sentences that follow each other."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as work:
        reader = hf.AutoTokenizer.from_pretrained(root / "models/stories260k")
        sizes = {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 4, "num_heads": 4, "dropout_rate": 0.0}
        torch.manual_seed(0)
        config = hf.T5Config(vocab_size=len(reader), pad_token_id=0, eos_token_id=reader.eos_token_id, decoder_start_token_id=0, **sizes)
        hf.T5ForConditionalGeneration(config).save_pretrained(f"{work}/start")
        reader.save_pretrained(f"{work}/start")
        text = (root / "data/tinystories_sample/train_0.txt").read_text(encoding="utf-8")
        ends = [part.strip() for line in text.splitlines() for part in line.split(". ") if 20 < len(part) < 200]
        rows = [{"prompt": a, "completion": b} for a, b in pairwise(ends)][: 32 * steps]
        Path(f"{work}/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        rest = {"evaluate": {"samples": 0}, "checkpoint": {"every": 10**6}, "out": f"{work}/run"}
        made = {"model": f"{work}/start", "task": "generate", "data": {"train": f"{work}/rows.jsonl"}, "method": "full", "budget": {"steps": steps}}
        print(json.dumps({"taught": run(recipe({**made, "update": {"rate": 2e-3}, **rest}), Reporter(quiet=True)).record["train_seconds"]}), flush=True)
        export(f"{work}/run", folder)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--methods", default=",".join(GRID))
    args.add_argument("--rates", default="", help="instead of the grid")
    args.add_argument("--sets", default="sst2,trec")
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--steps", type=int, default=63)
    args.add_argument("--threads", type=int, default=torch.get_num_threads())
    args.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "tunesmith-rates", help="where runs that others are built on are kept")
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    data = sets(os.environ.get("TUNESMITH_DATA", ""))
    if "e2e-t5" in options.sets:
        stories_t5(Path(os.environ["TUNESMITH_DATA"]).parent, Path(data["e2e-t5"]["model"]))
    for name in options.methods.split(","):
        for rate in [float(r) for r in options.rates.split(",") if r] or GRID[name]:
            for chosen in options.sets.split(","):
                others = {k: v for k, v in data.items() if k != chosen and v["model"] == data[chosen]["model"]}
                print(json.dumps(swept(name, rate, chosen, data[chosen], others, options)), flush=True)


def swept(name: str, rate: float, chosen: str, data: dict, others: dict[str, dict], options: argparse.Namespace) -> dict:
    """Mean over the seeds, and each seed's."""
    method = {"kind": name}
    if kind := BUILT_ON.get(name):
        method["runs"] = [finished(kind, other, made, options) for other, made in others.items()]
    runs = [one(method, rate, data, seed, options.steps) for seed in range(options.seeds)]
    found = {"method": name, "rate": rate, "data": chosen, "steps": options.steps}
    key = data.get("metric", "accuracy")
    values = [run.get(key, float("nan")) for run in runs]
    return {**found, key: round(statistics.fmean(values), 4), "by_seed": values}


def finished(kind: str, name: str, data: dict, options: argparse.Namespace) -> str:
    """The folder of a run of a method on a set, made where there is none."""
    folder = options.runs / f"{kind}-{name}-{options.steps}"
    made = {**{k: v for k, v in data.items() if k != "metric"}, "method": kind, "budget": {"steps": options.steps}, "out": str(folder)}
    if not (folder / "result.json").exists():
        run(recipe(made), Reporter(quiet=True))
    return str(folder)


def one(method: dict, rate: float, data: dict, seed: int, steps: int) -> dict:
    """What the rows kept aside say after one run; nothing where it diverged."""
    with tempfile.TemporaryDirectory() as folder:
        rest = {"evaluate": {"samples": 0}, "checkpoint": {"every": 10**6}, "out": folder}
        made = {
            **{k: v for k, v in data.items() if k != "metric"},
            "method": method,
            "budget": {"steps": steps},
            "update": {"rate": rate},
            "seed": seed,
            **rest,
        }
        try:
            record = run(recipe(made), Reporter(quiet=True)).record
        except Diverged:
            return {}
    return {k: round(v, 4) for k, v in (record.get("test") or record["after"]).items() if v is not None}


if __name__ == "__main__":
    main()
