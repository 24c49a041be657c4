"""Environments: the games' rules, episodes of one seed alike and of nobody else's dice, transcripts whose ids are those of the whole dialogue, and
policies that get better at them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import shop
from tunesmith import train as training
from tunesmith.ask import evaluate
from tunesmith.environments import ENVIRONMENTS, environment
from tunesmith.environments.desk import Desk, cases
from tunesmith.environments.games import steps_to_go
from tunesmith.environments.tictactoe import TicTacToe, value
from tunesmith.errors import Refusal
from tunesmith.playing import between
from tunesmith.predicting import prompt_ids
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.sources.text.encode import Reader
from tunesmith.sources.text.examples import Turn
from tunesmith.sources.text.template import Template

OWN = ["tictactoe", {"kind": "tictactoe", "opponent": "perfect"}, "desk"]


def played(world, seed: int, moves) -> tuple[list[str], list[float], bool]:
    seen, _ = world.reset(seed=seed)
    texts, rewards, success = [seen], [], False
    for _ in range(30):
        seen, reward, terminated, truncated, info = world.step(moves(seen))
        texts, rewards, success = [*texts, seen], [*rewards, reward], info.get("success", False)
        if terminated or truncated:
            break
    return texts, rewards, success


def at_random(dice: random.Random):
    return lambda seen: dice.choice([c for c in seen.split() if c.isdigit()] or ["what is your order number?"])


@pytest.mark.parametrize("kind", OWN, ids=str)
def test_an_episode_is_a_function_of_its_seed_and_touches_no_global_dice(kind) -> None:
    before = random.getstate(), torch.get_rng_state()
    make = environment(kind)
    one, two = (played(make(), 7, at_random(random.Random(1))) for _ in range(2))
    assert one == two
    assert len({json.dumps(played(make(), seed, at_random(random.Random(1)))) for seed in range(8)}) > 3
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("kind", [*OWN, "frozenlake", {"kind": "frozenlake", "slippery": True}, "taxi", {"kind": "taxi", "guided": 30}], ids=str)
def test_a_world_that_begins_again_is_as_a_new_one(kind) -> None:
    """So it is made once, however many episodes are played: one of Taxi takes longer to make than to play."""
    make = environment(kind)
    words = ["left", "down", "right", "up", "south", "north", "east", "west", "pick", "drop"]
    moves = lambda seed: at_random(random.Random(seed)) if kind in OWN else lambda seen, dice=random.Random(seed): dice.choice(words)
    again = make()
    for seed in (3, 4, 5, 3):
        assert played(again, seed, moves(seed)) == played(make(), seed, moves(seed))


def best(seen: str) -> str:
    """The perfect player's own move."""
    board = "".join(c if c in "XO" else "." for c in seen.split())
    free = [i for i, c in enumerate(board) if c == "."]
    return str(1 + max(free, key=lambda i: value(board[:i] + "X" + board[i + 1 :], "O")))


def test_perfect_play_never_loses_and_the_perfect_player_is_never_beaten() -> None:
    random_player, perfect = environment("tictactoe"), environment({"kind": "tictactoe", "opponent": "perfect"})
    assert all(sum(played(random_player(), s, best)[1]) >= 0 for s in range(60))
    assert sum(played(random_player(), s, best)[2] for s in range(60)) > 50
    assert all(sum(played(perfect(), s, best)[1]) == 0 for s in range(20))
    outcomes = [sum(played(perfect(), s, at_random(random.Random(s)))[1]) for s in range(100)]
    assert max(outcomes) == 0 and min(outcomes) == -1


@pytest.mark.parametrize("said", ["", "ten", "0", "X"])
def test_no_legal_move_loses(said: str) -> None:
    world = TicTacToe()
    world.reset(seed=1)
    assert world.step(said)[1:4] == (-1.0, True, False)


def test_the_desk_must_ask_before_it_answers() -> None:
    world, strict = Desk(), Desk(names=True)
    for seed in range(20):
        text, _ = world.reset(seed=seed)
        assert world.number not in text
        told, reward, over, *_ = world.step("May I have your order number, please? 请问订单号?")
        assert world.number in told and (reward, over) == (0.0, False)
        assert world.step(f"Thanks, {world.number} leaves today.")[1:] == (1.0, True, False, {"success": True})
        world.reset(seed=seed)
        assert world.step(f"{world.number} leaves today.")[1:] == (0.0, True, False, {"success": False}), "a number by heart is worth nothing"
        world.reset(seed=seed)
        world.step("order number?")
        assert world.step("It leaves today.")[1] == 1.0, "obtained before it answered"
        world.reset(seed=seed)
        world.step("order number?")
        assert world.step(" ")[1] == 0.2
        strict.reset(seed=seed)
        strict.step("order number?")
        assert strict.step("It leaves today.")[1] == 0.2
    assert len(cases("train", None)) > 50 and {lang for *_, lang in cases("train", None)} == {"en", "zh"}
    assert all(number not in text for text, number, _ in cases("train", None))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tictacto", "did you mean `tictactoe`"),
        ({"kind": "tictactoe", "oponent": "x"}, "unknown key"),
        ({"kind": "tictactoe", "opponent": "x"}, "no opponent"),
        ("no.py:Env", "no file"),
    ],
)
def test_what_names_no_environment_is_refused(given, words) -> None:
    with pytest.raises(Refusal) as caught:
        environment(given)
    assert words in str(caught.value)


def test_gymnasium_in_words() -> None:
    pytest.importorskip("gymnasium")
    way = iter("down down right right down right".split())
    texts, rewards, success = played(environment("frozenlake")(), 0, lambda seen: f" {next(way)} ")
    assert success and sum(rewards) == 1.0 and texts[0] == "row 0 column 0" and texts[2] == "row 2 column 0"
    lost = environment("frozenlake")()
    lost.reset(seed=0)
    assert lost.step("dance")[:4] == ("row 0 column 0", 0.0, False, False)
    taxi = environment("taxi")()
    seen, _ = taxi.reset(seed=3)
    assert seen.split()[0] == "taxi" and taxi.step("pick")[1] in (-0.5, -0.05)


def test_a_guided_ride_is_paid_for_coming_nearer_and_for_nothing_else() -> None:
    """Over a ride the guidance adds up to the way from where it began to where it ended, whatever was done in between; one who follows it arrives by the shortest way."""
    gymnasium = pytest.importorskip("gymnasium")
    world = environment({"kind": "taxi", "guided": 10})()
    moves, words = gymnasium.make("Taxi-v4").unwrapped.P, ("south", "north", "east", "west", "pick", "drop")
    away = steps_to_go(moves)
    dice = random.Random(0)
    for seed in range(5):
        plain, guided = environment("taxi")(), environment({"kind": "taxi", "guided": 10})()
        state, total = plain.reset(seed=seed) and plain.last, 0.0
        guided.reset(seed=seed)
        began = away[state]
        for _ in range(10):
            said = dice.choice(words)
            total += guided.step(said)[1] - plain.step(said)[1]
        assert total == pytest.approx(10 / 20 * (began - away[plain.last]))
        world.reset(seed=seed)
        taken, over = 0, False
        while not over:
            best = min(range(6), key=lambda a: 0 if moves[world.last][a][0][3] else away[moves[world.last][a][0][1]])
            over, taken = world.step(words[best])[2], taken + 1
        assert taken == began


def test_any_environment_of_gymnasium_with_a_rendering(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    (tmp_path / "m.py").write_text("def render(o): return f'sum {o[0]} against {o[1]}'\ndef act(text): return {'hit': 1, 'stick': 0}.get(text)\n")
    world = environment({"kind": "gymnasium", "id": "Blackjack-v1", "render": f"{tmp_path}/m.py:render", "act": f"{tmp_path}/m.py:act"})()
    seen, _ = world.reset(seed=0)
    assert seen.startswith("sum ") and world.step("stick")[2]


# ------------------------------------------------------------------------------------------------ transcripts

CHAT = "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} [SEP] {% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("ended", [True, False])
def test_ids_between_turns_are_those_of_the_whole_dialogue(chat: bool, ended: bool) -> None:
    """Start, the policy's tokens, what is between, ...: put together they are the dialogue's text as one, though nothing was tokenised twice."""
    tokenizer = shop.tokenizer(closed=False)
    tokenizer.chat_template = CHAT if chat else None
    reader = Reader(tokenizer, 64)
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    said = ids("w5 w6")
    turns = (Turn("user", "w1 w2", False), Turn("assistant", "w5 w6", True), Turn("user", "w7", False))
    found = prompt_ids(reader, turns[:1], 99) + said + ([tokenizer.eos_token_id] if ended else []) + between(reader, "w7", ended)
    assert found == ids(Template.of(tokenizer).asked(turns))


def words_model(folder: Path, words: list[str]) -> Path:
    """A one-block Llama that knows these words."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *words]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=["input_ids", "attention_mask"], **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 96}
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=1, eos_token_id=2, **size)).save_pretrained(folder)
    return folder


MAZE = '''
import random
class Echo:
    """Says a word; worth 1 each time it is said back, three times."""
    def reset(self, *, seed=None):
        self.dice, self.left = random.Random(seed), 3
        self.word = self.dice.choice(["a", "b"])
        return self.word, {}
    def step(self, action):
        reward, self.left = float(action == self.word), self.left - 1
        self.word = self.dice.choice(["a", "b"])
        return self.word, reward, self.left == 0, False, {"success": reward > 0}
class Ids(Echo):
    """The same, as token ids."""
    def reset(self, *, seed=None):
        return [4 + "ab".index(super().reset(seed=seed)[0])], {}
    def step(self, action):
        seen, *rest = super().step(action)
        return [4 + "ab".index(seen)], *rest
'''


@pytest.mark.parametrize(("kind", "algorithm"), [("Echo", "grpo"), ("Ids", "ppo")])
def test_a_policy_learns_to_play(kind, algorithm, tmp_path: Path) -> None:
    """An environment of the user's, in words or as ids, of three turns: said back at random 1 in 8, then nearly always."""
    words_model(tmp_path / "model", ["a", "b", "c", "d"])
    (tmp_path / "maze.py").write_text(MAZE)
    more = {"epochs": 2, "minibatches": 1} if algorithm == "ppo" else {}
    spec = {
        "model": str(tmp_path / "model"), "task": "generate", "data": {"train": "play/64", "eval": "play/32"}, "method": "full",
        "objective": {"kind": "reinforce", "algorithm": algorithm, "environment": f"{tmp_path}/maze.py:{kind}", "length": 1, "beta": 0.0, **more},
        "update": {"batch": 64, "rate": 1e-2, "warmup": 0}, "budget": {"steps": 30}, "evaluate": {"every": 30}, "checkpoint": {"every": 99}, "dtype": "fp32", "kernel": "matmul",
        "threads": 1, "out": str(tmp_path / "run"),
    }  # fmt: skip
    result = training.run(recipe(spec), Reporter(quiet=True))
    assert result["before"]["reward"] < 1.0 and result["after"]["reward"] > 2.5, (result["before"], result["after"])
    assert result["after"]["success"] > 0.8 and result["after"]["length"] == 3.0
    lines = [json.loads(line) for line in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 32 and len(lines[0]["predicted"].split()) >= 6
    fresh = evaluate(result.folder, "play/16")
    assert fresh["rows"] == 16 and fresh["scores"]["success"] > 0.8
    with pytest.raises(Refusal, match="plays an environment"):
        evaluate(result.folder, "rows.jsonl")


def test_an_encoder_decoder_does_not_play(tmp_path: Path) -> None:
    shop.seq2seq(tmp_path / "model")
    objective = {"kind": "reinforce", "environment": "tictactoe", "length": 1}
    spec = shop.recipe(tmp_path, "generate", "lora", objective=objective, data={"train": "play/8", "eval": "play/8"})
    with pytest.raises(Refusal, match="an environment has turns"):
        training.run(recipe(spec), Reporter(quiet=True))
    assert set(ENVIRONMENTS) >= {"frozenlake", "taxi", "tictactoe", "desk", "gymnasium"}
