"""Small policies for the games: a Transformer over the game's own words, taught the form of the game, not how to win, by random play.

It learns to say what is said and to foresee what is then seen, so that it reads the world before it is paid for anything: of the answers alone,
a beginner at TicTacToe learns that digits are said, and not that a taken cell is none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from rows import written
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tunesmith.environments import environment
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.train import run

NEAR = {"epochs": 4, "minibatches": 2, "discount": 0.99, "value_weight": 0.5, "beta": 0.01}  # random play is the reference: what holds to it goes on to explore


@dataclass(frozen=True)
class Game:
    """`said(seen, dice)` is what random play says; `least`: the success that counts as learnt. The beginner sees `plays` random games in `taught` steps of `lesson`."""

    environment: Any
    said: Callable[[str, random.Random], str]
    least: float
    length: int = 1
    turns: int = 20
    batch: int = 64
    steps: int = 240
    rate: float = 1e-3
    plays: int = 400
    taught: int = 200
    lesson: int = 16
    width: int = 64
    spaces: bool = False
    objective: dict[str, Any] = field(default_factory=lambda: NEAR)


def one_of(*words: str) -> Callable[[str, random.Random], str]:
    return lambda seen, dice: dice.choice(words)


def free_cell(seen: str, dice: random.Random) -> str:
    return dice.choice([c for c in seen.split() if c.isdigit()] or ["1"])


def at_the_desk(seen: str, dice: random.Random) -> str:
    """Asks for the number three times in ten; of those who were told it, six in ten name it in the answer."""
    given = re.fullmatch(r"It is (.+)\.|The number is (.+)\.|(.+), thanks\.|Sure: (.+)", seen)
    if given:
        number = next(g for g in given.groups() if g)
        return f"Thank you, {number} leaves today." if dice.random() < 0.6 else "Thank you, it leaves today."
    return "What is your order number?" if dice.random() < 0.3 else "It leaves today."


BOARD = {"turns": 5, "steps": 2400, "batch": 128, "plays": 4000, "taught": 1000, "lesson": 32, "objective": NEAR | {"beta": 0.02}}
RIDE = ("south", "north", "east", "west", "pick", "drop")
STEPWISE = NEAR | {"discount": 0.7, "value_weight": 0.1, "beta": 0.03}  # guided, each step is paid for itself, and all are worth more
GAMES = {
    "frozenlake": Game("frozenlake", one_of("left", "down", "right", "up"), 0.9, steps=400, plays=200, taught=100),
    "tictactoe": Game("tictactoe", free_cell, 0.9, **BOARD),
    "desk": Game({"kind": "desk", "language": "en"}, at_the_desk, 0.9, length=24, turns=3, plays=800, taught=500, spaces=True),
    "taxi": Game({"kind": "taxi", "guided": 30}, one_of(*RIDE), 0.9, turns=30, steps=800, batch=32, taught=400, objective=STEPWISE),
    "tictactoe-perfect": Game({"kind": "tictactoe", "opponent": "perfect"}, free_cell, 0.9, **BOARD | {"steps": 1600}),
}


def beginner(name: str, game: Game, work: Path, threads: int, seed: int = 0) -> tuple[Path, float]:
    """A folder with a model that has seen random play, and the seconds that it took. Kept from one call to the next."""
    folder = work / f"{name}-beginner"
    world = environment(game.environment)()
    plays = [list(played(game, world, seed)) for seed in range(10_000_000, 10_000_000 + game.plays)]
    games = written(work / f"{name}.jsonl", ({"messages": p} for p in plays))
    texts = [m["content"] for p in plays for m in p]
    blank(folder, texts, game.width, game.spaces, seed)
    made = {
        "model": str(folder), "task": "generate", "data": {"train": games, "learn_prompt": True}, "method": "full", "budget": {"steps": game.taught},
        "update": {"batch": game.lesson, "rate": 3e-3},
        "out": str(work / f"{name}-taught"), "seed": seed, "dtype": "fp32", "kernel": "matmul", "threads": threads,
    }  # fmt: skip
    result = run(recipe(made), Reporter(quiet=True), fresh=True)
    from tunesmith.artifact import export

    export(result.folder, folder)
    return folder, result["train_seconds"]


def played(game: Game, world: Any, seed: int):
    """One random game, as messages."""
    dice = random.Random(seed)
    seen, _ = world.reset(seed=seed)
    for _ in range(game.turns):
        said = game.said(seen, dice)
        yield {"role": "user", "content": seen}
        yield {"role": "assistant", "content": said}
        seen, _, over, cut, _ = world.step(said)
        if over or cut:
            return


def blank(folder: Path, texts: list[str], width: int, spaces: bool, seed: int) -> None:
    """A Llama of two blocks that knows the words of these texts; digits and signs are words of their own, and `spaces` too."""
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "isolated" if spaces else "removed"), pre_tokenizers.Split(Regex(r"\d|[^\w\s]"), "isolated")]
    )
    pieces = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)} | ({"\n", " "} if spaces else set()))
    words = ["<pad>", "<s>", "</s>", "<unk>", *pieces]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = split
    if spaces:
        raw.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=["input_ids", "attention_mask"], **special).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 4 * width, "max_position_embeddings": 512}
    hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True, **sizes)
    ).save_pretrained(folder)
