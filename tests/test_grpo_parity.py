"""trl as oracle: its GRPO losses and ours on the same tensors, the gradient too."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import shop
from tunesmith.core import Batch, Ragged
from tunesmith.objectives import Reinforce

trl = pytest.importorskip("trl")

LENGTHS, WIDTH = (3, 6, 1, 5), 6
CASES = {  # ours, trl's
    "grpo": ({"algorithm": "grpo"}, {"loss_type": "grpo"}),
    "grpo, beta": ({"algorithm": "grpo"}, {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": True}),
    "dapo": ({"algorithm": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo, beta": ({"algorithm": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.2, "use_bias_correction_kl": True}),
    "dr_grpo": ({"algorithm": "dr_grpo", "length": 16}, {"loss_type": "dr_grpo", "max_completion_length": 16}),
    "gspo": ({"algorithm": "gspo"}, {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return shop.decoder(tmp_path_factory.mktemp("trl") / "model")


def theirs(model: Path, options: dict, columns: dict[str, Tensor], out: Path) -> tuple[float, Tensor]:
    from datasets import Dataset

    args = trl.GRPOConfig(output_dir=str(out), use_cpu=True, bf16=False, report_to=[], num_generations=2, per_device_train_batch_size=4, **options)
    data = Dataset.from_list([{"prompt": "w1"}] * 4)
    trainer = trl.GRPOTrainer(model=str(model), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args, train_dataset=data)
    logp = columns["logp"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (logp, torch.zeros_like(logp), None)
    mask = columns["mask"]
    inputs = {
        "prompt_ids": torch.ones(4, 2, dtype=torch.long), "prompt_mask": torch.ones(4, 2, dtype=torch.long), "completion_ids": torch.ones(4, WIDTH, dtype=torch.long),
        "completion_mask": mask, "advantages": columns["advantage"], "old_per_token_logps": columns["old"], "ref_per_token_logps": columns["reference"],
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    trainer.model.eval()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    assert logp.grad is not None
    return float(loss.detach()), logp.grad[mask.bool()]


def ours(options: dict, beta: float, columns: dict[str, Tensor]) -> tuple[float, Tensor]:
    objective = Reinforce("generate", reward="exact", **options)
    mask = columns["mask"].bool()
    packed = {name: Ragged(columns[name][mask], LENGTHS) for name in ("old", "reference")}
    packed["advantage"] = Ragged(columns["advantage"].repeat_interleave(torch.tensor(LENGTHS)), LENGTHS)
    label = Ragged(torch.zeros(sum(LENGTHS), dtype=torch.long), LENGTHS)
    batch = Batch({"ids": label, "label": label, **packed, "weight": torch.ones(4), "beta": torch.full((4,), beta)})
    logp = columns["logp"][mask].clone().requires_grad_()
    count = objective.count(batch)
    loss = sum(v / count[k] for k, v in objective.score({"logp": logp}, batch).items())
    loss.backward()  # type: ignore[union-attr]
    assert logp.grad is not None
    return float(loss.detach()), logp.grad  # type: ignore[union-attr]


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_trl(case: str, model: Path, tmp_path: Path) -> None:
    mine, other = CASES[case]
    draw = lambda seed, scale=1.0: torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed)) * scale
    old = draw(0) - 2
    columns = {
        "old": old, "logp": old + draw(1, 0.3 if case != "gspo" else 1e-3), "reference": old + draw(2, 0.3), "advantage": torch.tensor([1.0, -0.5, 2.0, -1.5]),
        "mask": (torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None]).long(),
    }  # fmt: skip
    loss, grad = ours(mine, other.get("beta", 0.0), columns)
    want, slope = theirs(model, other, columns, tmp_path)
    assert math.isclose(loss, want, rel_tol=1e-5, abs_tol=1e-6), (loss, want)
    torch.testing.assert_close(grad, slope, atol=1e-6, rtol=1e-5)
