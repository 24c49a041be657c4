"""Proofs that reinforcement learns: a verifiable reward by PPO, GRPO and RLOO, and games, each with before, after, bounds and a control.

    python benchmarks/proofs/reinforce.py words --model stories260k       six runs and three controls, about five minutes on two cores
    python benchmarks/proofs/reinforce.py games                            FrozenLake, TicTacToe (twice), Taxi, the desk: policies from scratch

Words: a language model goes on from the beginning of a story; 1 where a word of joy occurs within 48 tokens. The control pays by a hash of the text.
Games: a small Transformer first learns the form of the game from random play (supervised, by the same loop), then to win (PPO).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from policies import GAMES, beginner
from rows import written

from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

REWARDS = '''"""Rewards of the proof."""
import re, zlib
JOY = re.compile(r"\\b(happy|happily|smiled?|laugh(ed|ing)?|loved?|fun|glad|joy|excited|hug(ged)?)\\b")
def joy(sample): return float(bool(JOY.search(sample.completion)))
def chance(sample): return float(zlib.crc32(sample.completion.encode()) % 1000 < 350)
'''
WHO = (
    "girl named Lily",
    "boy named Tim",
    "dog named Spot",
    "cat named Mia",
    "bird",
    "boy named Max",
    "girl named Sara",
    "bear",
    "man",
    "fish",
    "frog",
    "rabbit",
)
WHERE = ("lived in a big house", "went to the park", "found a box", "lost a toy", "saw a tree", "was very sad", "wanted to eat", "sat in the car")
ALGORITHMS = {  # beta is not comparable: GRPO divides the reward by its deviation and not the KL
    "ppo": {"minibatches": 2, "epochs": 3, "beta": 0.05},
    "grpo": {"group": 8, "beta": 0.5},
    "rloo": {"group": 8, "beta": 0.05},
}
RATES = {"lora": {"ppo": 1e-3, "grpo": 2e-3, "rloo": 2e-3}, "full": {"ppo": 1e-4, "grpo": 2e-4, "rloo": 2e-4}}
BOUNDS = {
    "reward": 0.25,
    "kl": 5.0,
    "distinct_2": 0.7,
    "chance": 0.12,
}  # at least so much more; at most, nats a sample; at least, of before; at most, of the control


def words(args: argparse.Namespace) -> list[dict]:
    work = Path(args.work)
    (work / "rewards.py").write_text(REWARDS)
    beginnings = [f"Once upon a time, there was a little {who} who {where}." for who in WHO for where in WHERE]
    random.Random(0).shuffle(beginnings)
    for name, part in (("train", beginnings[:64]), ("eval", beginnings[64:])):
        written(work / f"{name}.jsonl", ({"text": t} for t in part * (4 if name == "eval" else 1)))
    rows = []
    for method in ("lora", "full"):
        for algorithm, options in ALGORITHMS.items():
            for reward in ("joy", *(("chance",) if method == "full" else ())):
                if not args.only or f"{algorithm}-{method}-{reward}" in args.only.split(","):
                    rows.append(word_run(args, work, method, algorithm, options, reward))
    return rows


def word_run(args: argparse.Namespace, work: Path, method: str, algorithm: str, options: dict, reward: str) -> dict:
    parts = [{"reward": f"{work}/rewards.py:{reward}"}, *([{"reward": f"{work}/rewards.py:joy", "weight": 0.0}] if reward == "chance" else [])]
    steps = args.steps * (3 if algorithm == "ppo" else 1)
    made = {
        "model": args.model, "task": "generate", "data": {"train": str(work / "train.jsonl"), "eval": str(work / "eval.jsonl")}, "method": method,
        "objective": {"kind": "reinforce", "algorithm": algorithm, "reward": parts, "length": 48, **options},
        "update": {"batch": 64, "rate": RATES[method][algorithm], "warmup": 0.0, "schedule": "constant"}, "budget": {"steps": steps},
        "evaluate": {"every": steps, "best": False}, "out": str(work / f"{algorithm}-{method}-{reward}"), "dtype": "fp32", "kernel": "matmul", "threads": args.threads,
    }  # fmt: skip
    result = run(recipe(made), Reporter(quiet=True), fresh=True)
    key = "reward" if reward == "joy" else "reward.joy"
    before, after = result["before"], result["after"]
    row = {"run": f"{algorithm}, {method}" + ("" if reward == "joy" else ", control"), "before": before[key], "after": after[key], "kl": after["kl"],
           "distinct_2": f"{before['distinct_2']:.3f} -> {after['distinct_2']:.3f}", "samples": steps // (3 if algorithm == "ppo" else 1) * 64, "seconds": result["train_seconds"]}  # fmt: skip
    gain, kept = after[key] - before[key], after["distinct_2"] / before["distinct_2"]
    good = gain >= BOUNDS["reward"] and kept >= BOUNDS["distinct_2"] if reward == "joy" else abs(gain) <= BOUNDS["chance"]
    row["within bounds"] = "yes" if good and after["kl"] <= BOUNDS["kl"] else "NO"
    return shown(row)


def games(args: argparse.Namespace) -> list[dict]:
    rows = []
    for name, game in GAMES.items():
        if args.only and name not in args.only.split(","):
            continue
        model, seconds = beginner(name, game, Path(args.work), args.threads, args.seed)
        made = {
            "model": str(model), "task": "generate", "data": {"train": "play/20000", "eval": "play/256"}, "method": "full",
            "objective": {"kind": "reinforce", "algorithm": "ppo", "environment": game.environment, "length": game.length, "turns": game.turns, "beta": 0.0, **game.objective},
            "update": {"batch": game.batch, "rate": game.rate, "warmup": 0.0}, "budget": {"steps": game.steps}, "evaluate": {"every": game.steps, "best": False},
            "out": str(Path(args.work) / f"{name}-ppo"), "seed": args.seed, "dtype": "fp32", "kernel": "matmul", "threads": args.threads,
        }  # fmt: skip
        result = run(recipe(made), Reporter(quiet=True), fresh=True)
        before, after = result["before"], result["after"]
        row = {"run": name, "before": before["success"], "after": after["success"], "return": f"{before['reward']:.2f} -> {after['reward']:.2f}", "least": game.least,
               "episodes": game.steps // game.objective["epochs"] * game.batch, "seconds": round(seconds + result["train_seconds"], 1),
               "within bounds": "yes" if after["success"] >= game.least else "NO"}  # fmt: skip
        rows.append(shown(row))
    return rows


def shown(row: dict) -> dict:
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def table(rows: list[dict]) -> str:
    cell = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    head = list(rows[0])
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(cell(row[k]) for k in head) + " |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["words", "games"])
    parser.add_argument("--model", default="desk-lm", help="of `words`: a folder or a hub id of a model that writes stories")
    parser.add_argument("--work", default="runs/proofs-reinforce")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the games' runs")
    parser.add_argument("--only", default="", help="some of them, comma between: grpo-lora-joy, ppo-full-chance ... or the games' names")
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    rows = {"words": words, "games": games}[args.what](args)
    print(table(rows))
    sys.exit(any(row["within bounds"] == "NO" for row in rows))


if __name__ == "__main__":
    main()
