"""Rollouts: the first ratio is 1 to the bit, rewards stand where they were earned, a run that is killed among the passes over a rollout ends in the
same bits, every method learns by them or is refused before a weight is loaded, and the record says what the policy does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import shop
from test_resume import same, tensors, train_with_stops
from tiny import network
from tunesmith import train as training
from tunesmith.advice.rehearsal import rehearse
from tunesmith.artifact import load
from tunesmith.ask import evaluate
from tunesmith.check import check
from tunesmith.comparison.arms import EIGHT
from tunesmith.core import Batch, Ragged
from tunesmith.dataset import read_data
from tunesmith.errors import Refusal
from tunesmith.job import assemble
from tunesmith.methods import METHODS, Prefix, Prompt
from tunesmith.networks import load as loading
from tunesmith.networks.sample import Draw, sample
from tunesmith.objectives import Reinforce
from tunesmith.progress import Reporter
from tunesmith.recipe import recipe
from tunesmith.shared import Shared
from tunesmith.sources.advantages import Estimator, sums
from tunesmith.sources.rollouts import Plan, Played, Rollouts
from tunesmith.sources.table import Table
from tunesmith.updates.descend import pieces

OPTIONS = {"adapter": {"width": 4}, "prompt": {"length": 4}, "prefix": {"length": 4}, "layers": {"last": 1}, "lora": {"rank": 2}}
WANTED = {"kind": "regex", "pattern": r"w1\d"}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    shop.decoder(folder / "model")
    return folder


def made(work: Path, method="lora", objective: dict | None = None, **more) -> dict:
    method = {"kind": method, **OPTIONS.get(method, {})} if isinstance(method, str) else method
    objective = {"kind": "reinforce", "algorithm": "grpo", "reward": WANTED, "length": 6, "group": 4, **(objective or {})}
    return shop.recipe(work, "generate", method, objective=objective, **{"update": {"batch": 16, "rate": 1e-2}, "budget": {"steps": 4}, **more})


def run(spec: dict):
    return training.run(recipe(spec), Reporter(quiet=True))


# ------------------------------------------------------------------------------------------------ the source


def play(net, rows, group, seed, eos=frozenset({3}), score=lambda s: float(len(s.at))) -> list[Played]:
    starts = [[7 + i % 5] * (1 + i % 4) for i in rows]
    samples = sample(net, starts, group, [seed * 100 + i for i in range(len(rows) * group)], Draw(7, 0.8, eos))
    return [Played({"ids": s.ids, "at": s.at, "label": s.written}, [0.0] * (len(s.at) - 1) + [score(s)], s.logp, s.ended, "") for s in samples]


def source_of(objective: Reinforce, base, micro: int = 30, **more) -> Rollouts:
    table = Table({"ids": Ragged(torch.arange(12), (1,) * 12)}, size=8)
    row = objective.row
    plan = Plan(8 // row.group * 2, row.group, 8, row.epochs, row.beta, row.kl == "reward", **more)
    return Rollouts(table, plan, Estimator(row.baseline, row.scale, row.whiten), play, objective.read, base, partial(pieces, tokens=micro))


def tuned(name: str, method: str, algorithm: str, **options):
    net = network(f"{name}:lm")
    torch.manual_seed(1)
    delta = {"prompt": Prompt(length=3), "prefix": Prefix(length=3)}.get(method, METHODS[method]()).attach(net)
    objective = Reinforce("generate", algorithm, reward="exact", temperature=0.8, length=7, **options)
    objective.meet(net)
    return net, delta, objective


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("method", EIGHT)
def test_the_first_ratio_is_one_to_the_bit(method: str, algorithm: str) -> None:
    """As the update reads it, in train mode, with a graph, in its own pieces; the reference of an untouched policy is the policy."""
    net, delta, objective = tuned("llama", method, algorithm, group=4)
    for batch, _ in zip(source_of(objective, delta.absent).batches(net), range(2), strict=False):
        net.train()
        net.rest_below(delta.floor)
        seen = [(objective.read(net, piece), piece) for piece in pieces(batch, 30)]
        assert len(seen) > 1
        for signals, piece in seen:
            assert signals["logp"].requires_grad
            assert torch.equal(signals["logp"].detach(), piece["old"])
            if objective.values:
                assert torch.equal(signals["value"].detach(), piece["value"])
        if method not in ("prompt", "prefix"):  # which change the network before the first step
            torch.testing.assert_close(batch["old"], batch["reference"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma2", "qwen3", "t5", "bart"])
def test_it_is_one_in_every_family(name: str) -> None:
    net, delta, objective = tuned(name, "full", "ppo")
    source = source_of(objective, delta.absent)
    if net.anatomy.kind == "seq2seq":
        source.play = lambda *a: [
            Played(
                {"ids": s.columns["ids"][: s.columns["at"][0] + 1], "target": s.columns["label"], "label": s.columns["label"]}, s.scores, s.drawn, s.ended, ""
            )
            for s in play(*a)
        ]
    batch = next(source.batches(net))
    net.train()
    assert source.plan.steps > 1
    logp = torch.cat([objective.read(net, piece)["logp"].detach() for piece in pieces(batch, 30)])
    if name == "t5":  # whose attention takes another kernel where there is no graph
        torch.testing.assert_close(logp, batch["old"], atol=1e-6, rtol=1e-6)
    else:
        assert torch.equal(logp, batch["old"])


@pytest.mark.parametrize("eos", [0, 3])
def test_the_rewards_of_a_sample_sum_to_score_less_beta_times_kl(eos: int) -> None:
    """Also where the padding token is the end-of-text token (0): what was written is known from the loop, not from ids."""
    net, delta, objective = tuned("llama", "full", "reinforce")
    source = source_of(objective, delta.absent)
    source.play = partial(play, eos=frozenset({eos, *range(20, 60)}))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)  # away from the reference
    held = source.rollout(net, 0)
    kl = sums(Ragged(held["old"] - held["reference"], held.ragged("old").lengths))
    score = torch.tensor([float(n) for n in held.ragged("label").lengths])
    total = score - 0.05 * kl
    first = torch.stack([row[0] for row in held.ragged("return").rows()])
    torch.testing.assert_close(first, total)
    assert len(set(held.ragged("label").lengths)) > 2
    torch.testing.assert_close(torch.stack([row[0] for row in held.ragged("advantage").rows()]), total - total.mean())


def test_a_reward_on_what_follows_the_end_would_be_noticed() -> None:
    """Every label is a token that was drawn, the last of an ended sample its end."""
    net, delta, objective = tuned("llama", "full", "grpo")
    source = source_of(objective, delta.absent)
    source.play = partial(play, eos=frozenset(range(20, 60)))
    held = source.rollout(net, 0)
    for ids, at, label in zip(held.ragged("ids").rows(), held.ragged("at").rows(), held.ragged("label").rows(), strict=True):
        assert torch.equal(ids[at + 1], label)
        assert at[-1] == len(ids) - 2
        assert all(not 20 <= t < 60 for t in label[:-1].tolist())


def test_a_rollout_is_passed_over_in_whole_epochs_with_new_orders() -> None:
    net, delta, objective = tuned("llama", "full", "ppo", group=1, epochs=3)
    source = source_of(objective, delta.absent)
    assert source.plan.steps == 6
    batches = [b for b, _ in zip(source.batches(net), range(12), strict=False)]
    ids = lambda b: sorted(tuple(r.tolist()) for r in b.ragged("ids").rows())
    epochs = [sorted(ids(a) + ids(b)) for a, b in zip(batches[::2], batches[1::2], strict=True)]
    assert epochs[0] == epochs[1] == epochs[2] != epochs[3]
    assert ids(batches[0]) != ids(batches[2])
    assert [b.said["reward"] for b in batches[:6]] == [batches[0].said["reward"]] * 6


def test_what_another_engine_drew_counts_by_how_likely_it_is_here() -> None:
    """As if the engine had found each token e^0.3 or e^2 times likelier or less likely than it is: the advantage is weighted by that, up to the cap."""
    net, delta, objective = tuned("llama", "full", "grpo", group=4)
    with torch.no_grad():
        plain = source_of(objective, delta.absent).rollout(net, 0)
    off = torch.tensor([-2.0, -0.3, 0.3, 2.0])

    def elsewhere(*a):
        return [replace(p, drawn=[x + float(off[i % 4]) for i, x in enumerate(p.drawn)]) for p in play(*a)]

    source = source_of(objective, delta.absent, cap=2.0)
    source.play = elsewhere
    batch = next(source.batches(net))
    held = source.held
    by_token = torch.cat([off[torch.arange(n) % 4] for n in held.ragged("label").lengths])
    weight = (-by_token).exp().clamp(max=2.0)
    assert sorted(set(weight.tolist())) == pytest.approx([math.exp(-2), math.exp(-0.3), math.exp(0.3), 2.0])
    torch.testing.assert_close(held["advantage"], plain["advantage"] * weight, rtol=1e-4, atol=1e-6)
    assert held.said["mismatch"] == pytest.approx(float(by_token.abs().mean()), rel=1e-4)
    net.train()
    logp = torch.cat([objective.read(net, piece)["logp"].detach() for piece in pieces(batch, 30)])
    assert torch.equal(logp, batch["old"])  # the ratio is that of the policy to itself, and one step a rollout is read again too
    one = source_of(objective, delta.absent, cap=2.0)
    one.plan = replace(one.plan, batch=16)
    assert one.plan.steps == 1 and "old" in next(one.batches(net))


def test_a_rollout_of_one_step_needs_no_second_reading() -> None:
    """Its ratio is 1 by name. The gradient is that with the column read again, to the bit; with a second step there is a column."""
    net, delta, objective = tuned("llama", "full", "grpo", group=4, estimate="k2")
    source = source_of(objective, delta.absent)
    assert source.plan.steps == 2 and "old" in next(source.batches(net))
    one = source_of(objective, delta.absent)
    one.plan = replace(one.plan, batch=16)
    batch = next(one.batches(net))
    assert "old" not in batch and batch.said["kl"] == pytest.approx(0, abs=1e-3)
    found = []
    for b in (batch, batch.plus(old=Ragged(objective.read(net, batch)["logp"].detach(), batch.ragged("label").lengths))):
        net.zero_grad()
        torch.stack(list(objective(net, b).values())).sum().backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0]) and any(g.any() for g in found[0].values())


def test_prompts_are_asked_in_the_order_of_the_epochs() -> None:
    _, delta, objective = tuned("llama", "full", "reinforce")
    source = source_of(objective, delta.absent)
    asked = [row for i in range(3) for row in source.prompts(i)]
    assert sorted(asked[:12]) == sorted(asked[12:24]) == list(range(12))
    assert asked[:12] != asked[12:24]


def test_samples_cut_off_are_kept_masked_or_fined() -> None:
    net, delta, objective = tuned("llama", "full", "dapo", group=4)
    found = {}
    for name, more in (("keep", {}), ("mask", {"keep_cut": False}), ("fine", {"penalty": 100.0})):
        source = source_of(objective, delta.absent, **more)
        source.play = partial(play, eos=frozenset(range(20, 32)))
        found[name] = source.rollout(net, 0)
    cut = torch.tensor(
        [
            n == 7 and int(row[-1]) not in range(20, 32)
            for n, row in zip(found["keep"].ragged("label").lengths, found["keep"].ragged("label").rows(), strict=True)
        ]
    )
    assert cut.any() and not cut.all()
    assert torch.equal(found["keep"]["weight"], torch.ones(16))
    assert torch.equal(found["mask"]["weight"], (~cut).float())
    fined = torch.stack([r[0] for r in found["fine"].ragged("return").rows()]) - torch.stack([r[0] for r in found["keep"].ragged("return").rows()])
    torch.testing.assert_close(fined, -100.0 * cut.float())
    assert found["keep"].said["truncated"] == pytest.approx(float(cut.float().mean()))


def test_an_adaptive_beta_moves_and_is_in_the_columns() -> None:
    net, delta, objective = tuned("llama", "full", "grpo", group=4)
    source = source_of(objective, delta.absent, target=5.0, horizon=100.0)
    betas = [float(b["beta"][0]) for b, _ in zip(source.batches(net), range(6), strict=False)][::2]
    assert betas[0] == pytest.approx(0.04) and betas[1] == pytest.approx(0.04 * (1 - 0.2 * 16 / 100)) and betas[2] < betas[1]


def test_it_says_so_when_the_reward_rises_while_answers_become_the_same() -> None:
    said: list[str] = []
    source = Rollouts(
        Table({"ids": Ragged(torch.arange(2), (1, 1))}),
        Plan(2, 1, 2, 1, 0.0, False),
        Estimator("mean"),
        play,
        lambda n, b: {},
        torch.no_grad,
        iter,
        said.append,
    )
    source.first = {"reward": 0.1, "distinct_2": 0.8}
    for reward, distinct in ((0.5, 0.7), (0.05, 0.1), (0.9, 0.1), (0.95, 0.05)):
        source.look_for_collapse({"reward": reward, "distinct_2": distinct, "kl": 3.0})
    assert len(said) == 1 and "answers become all the same" in said[0] and "0.9" in said[0]


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("method", EIGHT)
def test_every_method_is_reinforced(work, method, algorithm, tmp_path):
    spec = made(work, method, {"algorithm": algorithm, "group": 1 if algorithm == "ppo" else 4, "minibatches": 1, "epochs": 2}, out=str(tmp_path / "run"))
    before = {}
    result = run(spec)
    record = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(record) == 4
    for key in ("reward", "kl", "entropy", "distinct_2", "length", "truncated"):
        assert all(key in line for line in record) and key in result["before"] and key in result["after"] and key in result["last_step"], key
    assert record[0]["kl"] == pytest.approx(0.0, abs=1e-4) or method in ("prompt", "prefix")
    assert result["metric"] == "reward" and all(line["mismatch"] < 1e-4 for line in record)  # two epochs, so it was read again
    critic = result.folder / "artifact" / "objective.safetensors"
    assert critic.exists() == (algorithm == "ppo")
    if algorithm == "ppo":
        assert load_file(critic)["critic.weight"].abs().max() > 0
    assert isinstance(load(result.folder).predict(["w1 w2"])[0]["text"], str), before
    again = evaluate(result.folder, spec["data"]["eval"])["scores"]
    assert {key: again[key] for key in ("reward", "kl", "length")} == pytest.approx({key: result["after"][key] for key in ("reward", "kl", "length")}, abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora", "layers", "prefix", "seq2seq"])
def test_a_critic_of_its_own_learns_and_lets_the_policy_be(kind, work, tmp_path):
    """The policy's gradient is that of a detached critic, and what rests is not stored twice."""
    folder, method = (tmp_path, "lora") if kind == "seq2seq" else (work, kind)
    if kind == "seq2seq":
        shop.seq2seq(tmp_path / "model")
    ppo = {"algorithm": "ppo", "group": 1, "minibatches": 1, "epochs": 1}
    once = {"budget": {"steps": 1}, "update": {"batch": 16, "rate": 1e-2, "clip": 0}, "recompute": kind == "full"}
    ends = {critic: run(made(folder, method, {**ppo, "critic": critic}, out=str(tmp_path / critic), **once)).folder for critic in ("own", "detached")}
    changes = [{name: t for name, t in tensors(end).items() if not name.startswith("objective")} for end in ends.values()]
    assert changes[0].keys() == changes[1].keys() and all(torch.equal(t, changes[1][name]) for name, t in changes[0].items())
    kept = load_file(ends["own"] / "artifact" / "objective.safetensors")
    policy = sum(f.stat().st_size for f in (ends["own"] / "artifact").glob("*.safetensors") if f.name != "objective.safetensors")
    assert kept["critic.weight"].abs().max() > 0
    assert 0.5 * policy < sum(t.nbytes for n, t in kept.items() if n.startswith("moved.")) < 1.5 * policy
    longer = load_file(run(made(folder, method, {**ppo, "critic": "own"}, out=str(tmp_path / "longer"))).folder / "artifact" / "objective.safetensors")
    assert any(not torch.equal(longer[name], kept[name]) for name in kept if name.startswith("moved."))


def test_a_critic_of_its_own_is_foreseen(work):
    """Of `full`: as many numbers again, with their gradients' two moments."""
    ppo = {"algorithm": "ppo", "group": 1, "minibatches": 1, "epochs": 1}
    plans = {critic: recipe(made(work, "full", {**ppo, "critic": critic})) for critic in ("own", "shared")}
    own, shared = (rehearse(plan, read_data(plan)) for plan in plans.values())
    assert shared.own == shared.width + 1
    assert own.own == shared.trainable + shared.own
    assert own.peak - shared.peak >= 12 * shared.trainable


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_an_encoder_decoder_is_reinforced(algorithm, tmp_path):
    shop.seq2seq(tmp_path / "model")
    result = run(made(tmp_path, "lora", {"algorithm": algorithm, "group": 4, "minibatches": 1}, out=str(tmp_path / "run")))
    assert result["metric"] == "reward" and result["steps"] == 4


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_it_learns_what_is_rewarded_and_nothing_from_a_reward_of_chance(work, algorithm, tmp_path):
    """A fifth of the tokens is wanted; 40 steps raise their share. The control pays at random: the share stays."""
    (tmp_path / "rewards.py").write_text(
        "import zlib\ndef share(sample):\n    words = sample.completion.split()\n    return sum(w.startswith('w1') for w in words) / max(1, len(words))\n"
        "def chance(sample):\n    return (zlib.crc32(sample.completion.encode()) % 1000) / 1000\n"
    )
    more = {"group": 1, "epochs": 2, "minibatches": 1} if algorithm == "ppo" else {}
    found = {}
    for name in ("share", "chance"):
        objective = {
            "algorithm": algorithm,
            "beta": 0.01,
            **more,
            "reward": [{"reward": f"{tmp_path}/rewards.py:{name}"}, {"reward": f"{tmp_path}/rewards.py:share", "weight": 0.0}],
        }
        objective["reward"] = objective["reward"] if name == "chance" else objective["reward"][:1]
        spec = made(
            work,
            "full",
            objective,
            out=str(tmp_path / name),
            update={"batch": 32, "rate": 5e-3, "warmup": 0.0},
            budget={"steps": 40},
            evaluate={"every": 40},
            checkpoint={"every": 99},
        )
        result = run(spec)
        key = "reward" if name == "share" else "reward.share"
        found[name] = (result["before"][key], result["after"][key])
    assert found["share"][1] > found["share"][0] + 0.2, found
    assert abs(found["chance"][1] - found["chance"][0]) < 0.15, found


@pytest.mark.parametrize(
    "objective",
    [
        {"algorithm": "ppo", "group": 1, "epochs": 2, "minibatches": 2, "target": 0.01, "horizon": 200},
        {"algorithm": "ppo", "group": 1, "epochs": 2, "minibatches": 2, "critic": "own"},
        {"algorithm": "grpo", "epochs": 3},
    ],
    ids=["ppo", "ppo-own", "grpo"],
)
def test_a_kill_among_the_passes_over_a_rollout_costs_nothing(work, objective, tmp_path, monkeypatch):
    spec = made(work, "lora", objective, budget={"steps": 9}, evaluate={"every": 3}, checkpoint={"every": 1})
    straight = run({**spec, "out": str(tmp_path / "straight")}).folder
    broken = train_with_stops({**spec, "out": str(tmp_path / "broken")}, monkeypatch, [2, 3, 6])
    assert same(straight, broken)
    lines = [(f / "metrics.jsonl").read_text() for f in (straight, broken)]
    assert [json.loads(x) for x in lines[0].splitlines()] == [json.loads(x) for x in lines[1].splitlines()]
    critics = [f / "artifact" / "objective.safetensors" for f in (straight, broken)]
    assert critics[0].exists() == (objective["algorithm"] == "ppo")
    if critics[0].exists():
        assert critics[0].read_bytes() == critics[1].read_bytes()


def test_plain_text_is_a_prompt_to_go_on_from(work, tmp_path):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1} w3"}) + "\n" for i in range(8)))
    result = run(made(work, "lora", out=str(tmp_path / "run"), data={"train": str(rows), "eval": str(rows), "columns": {"text": "prompt"}}))
    assert result["metric"] == "reward"


# ------------------------------------------------------------------------------------------------ refused before a weight is loaded


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": {"reward": "exat"}}, "no reward `exat`"),
        ({"objective": {"reward": None}}, "needs a reward"),
        ({"objective": {"kl": "loss", "estimate": "k1"}}, "k1 in the loss"),
        ({"objective": {"group": 5}}, "no whole number of groups"),
        ({"objective": {"critic": "own"}}, "has no critic"),
        ({"objective": {"reward": None, "environment": "tictactoe"}}, "data: play"),
        ({"data": {"train": "play"}}, "data: play"),
        ({"dropout": 0.1}, "the one that wrote"),
        ({"method": {"kind": "lora", "dropout": 0.1}}, "the one that wrote"),
        ({"budget": {"tokens": 1000}}, "not known before"),
        ({"objective": {"algorithm": "pposs"}}, "algorithm"),
        ({"objective": {"clip": 0.2}}, "unknown key"),
    ],
)
def test_what_cannot_be_is_refused_before_loading(work, change, words, monkeypatch, tmp_path):
    monkeypatch.setattr(loading.hf.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("a weight was loaded"))
    spec = made(
        work,
        change.get("method", "lora"),
        change.get("objective"),
        out=str(tmp_path / "run"),
        **{k: v for k, v in change.items() if k not in ("objective", "method")},
    )
    with pytest.raises(Refusal) as caught:
        run(spec)
    assert words in str(caught.value)


def test_an_encoder_has_nothing_to_say(tmp_path):
    shop.encoder(tmp_path / "model")
    with pytest.raises(Refusal, match="reads text but does not write it"):
        run(made(tmp_path, "lora", out=str(tmp_path / "run")))


def test_the_notes_say_what_a_name_is_and_what_the_budget_means(work, tmp_path):
    spec = recipe(made(work, "lora", {"algorithm": "rloo"}, out=str(tmp_path / "run")))
    shared = Shared()
    data = shared.data(spec)
    with shared.lent(spec, data) as net:
        job = assemble(spec, data, net, Reporter(quiet=True), shared)
    text = "\n".join(job.notes)
    assert "REINFORCE whose baseline is the mean of the prompt's other samples" in text
    assert "4 steps are 4 rollouts of 4 prompts x 4 samples; 1 pass over each, 1 steps" in text
    assert isinstance(job.run.stream[0].train, Rollouts) and Batch


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_check_foresees_it(work, algorithm, tmp_path):
    """Steps, rate and memory are known beforehand; nothing is sampled."""
    facts = check(recipe(made(work, "full", {"algorithm": algorithm}, update={"batch": 16}, out=str(tmp_path / "run"))), Reporter(quiet=True)).facts
    assert facts["steps"] == 4 and facts["predicted_peak_memory_bytes"] > 0
    assert any("rollouts of" in note for note in facts["notes"])
    assert facts["learning_rate"] == pytest.approx(METHODS["full"]().rate("decoder", 32) / 10)
