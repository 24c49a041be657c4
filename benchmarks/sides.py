"""One measurement: train one method on one side, in this process alone, and print what it took as JSON.

    python sides.py '{"side": "ours", "method": "lora", ...}'

`ours` is Tunesmith; `default` and `tuned` are PEFT + Hugging Face Trainer. `peers.py` writes the specification and starts the process.
Both sides see the same examples and the same model: mean pooling over a row's own tokens, dropout, one linear layer.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

WARM = 2  # steps that the steady state leaves out
ROWS = 20  # of a prompt and of a prefix
TOP = 2  # blocks that `layers` trains
SQUEEZE = 16  # width of the model over width of an adapter
VOCABULARY = 30_000
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Spec:
    """What to measure. `steps` 0: all epochs. `dropout` None: the published probabilities, in attention too."""

    side: str
    method: str
    model: str
    rate: float
    variant: dict[str, str] = field(default_factory=dict)
    examples: int = 512
    epochs: int = 1
    steps: int = 0
    size: int = 32
    seed: int = 0
    dropout: float | None = None
    threads: int = 2
    decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.0  # share of the steps
    classes: int = 2
    in_order: bool = False
    clock: str = "wall"
    malloc: bool = False  # the peer's process keeps freed memory too

    @property
    def total(self) -> int:
        return self.steps or self.epochs * -(-self.examples // self.size)

    @property
    def head_dropout(self) -> float:
        return 0.1 if self.dropout is None else self.dropout


@dataclass
class Taken:
    """What a run took: when each step ended, how many real tokens it read, what loss it had; the first entry of `ends` is the start."""

    ends: list[float]
    tokens: list[int]
    losses: list[float]
    peak: int
    setup: float

    def summary(self) -> dict[str, float]:
        whole, steady = self.ends[-1] - self.ends[0], self.ends[-1] - self.ends[WARM]
        return {
            "steady": sum(self.tokens[WARM:]) / steady,
            "whole": sum(self.tokens) / whole,
            "seconds": whole,
            "step": statistics.median(b - a for a, b in pairwise(self.ends[WARM:])),
            "peak": self.peak / 2**20,
            "loss": statistics.fmean(self.losses),
            "setup": self.setup,
        }


# ------------------------------------------------------------------------------------------------ the examples


def examples(spec: Spec) -> tuple[list[list[int]], list[int]]:
    """Rows of log-normal length (mean about 25, at most 64) of random tokens, and their classes.

    Class 1 draws from the lower quarter of the vocabulary, so there is something to learn.
    """
    g = torch.Generator().manual_seed(spec.seed)
    lengths = (torch.randn(spec.examples, generator=g) * 0.6 + 3.0).exp().clamp(4, 64).int().tolist()
    labels = torch.randint(2, (spec.examples,), generator=g).tolist()
    ends = [VOCABULARY // 4 if label else VOCABULARY for label in labels]
    rows = [torch.randint(1000, end, (n,), generator=g).tolist() for n, end in zip(lengths, ends, strict=True)]
    return rows, labels


def peak_memory() -> int:
    """Bytes: the largest resident set of this process so far."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


# ------------------------------------------------------------------------------------------------ ours


class Clock:
    """Listener: when each step ended. Not derived from ours, which the peer's process must not import."""

    def __init__(self, clock: str):
        self.ends: list[float] = []
        self.now = CLOCKS[clock]

    def begin(self, run, stage) -> None:
        pass

    def step(self, run, record) -> None:
        self.ends.append(self.now())

    def end(self, run, stage) -> None:
        pass


def our_network(spec: Spec):
    """The network with its head and the method attached."""
    from tunesmith.methods import METHODS
    from tunesmith.networks.heads import HeadSpec
    from tunesmith.networks.load import add_head, load_network, load_tokenizer, origin

    source = origin(spec.model)
    net = load_network(source, generates=False, tokenizer=load_tokenizer(source), dropout=spec.dropout)
    add_head(net, "task", HeadSpec(spec.classes, dropout=spec.head_dropout), spec.seed)
    torch.manual_seed(spec.seed)
    method = METHODS[spec.method](**{"layers": {"last": TOP}, "prompt": {"length": ROWS}, "prefix": {"length": ROWS}}.get(spec.method, {}))
    delta = method.attach(net, keep=False)
    net.room.kernel = spec.variant.get("kernel", "matmul")
    if spec.variant.get("dtype") == "bf16":
        net.compute = torch.bfloat16
        delta.cast(torch.bfloat16)
    return net, delta


def our_source(spec: Spec, delta):
    """The examples as a table, over stored states where a trunk rests under what moves."""
    from tunesmith.core import Ragged
    from tunesmith.sources.features import Features
    from tunesmith.sources.table import Table

    class InOrder(Table):
        """Rows as they come."""

        def order(self, epoch: int) -> Tensor:
            return torch.arange(len(self))

    rows, labels = examples(spec)
    ids = Ragged(torch.tensor([i for row in rows for i in row]), tuple(map(len, rows)))
    table = (InOrder if spec.in_order else Table)({"ids": ids, "label": torch.tensor(labels)}, size=spec.size, seed=spec.seed)
    return Features(table, delta.lowest, pooled=delta.lowest == delta.net.anatomy.depth) if delta.lowest else table


def our_run(spec: Spec, net, delta, clock: Clock):
    from tunesmith.core import Run, Stage
    from tunesmith.objectives import Supervised
    from tunesmith.updates import Descend

    source = our_source(spec, delta)
    update = Descend(spec.rate, warmup=spec.warmup, decay=spec.decay, clip=spec.clip)
    return Run(net, delta, Supervised("single"), [Stage("train", source, spec.total, source.period)], update, (clock,), seed=spec.seed)


def ours(spec: Spec) -> Taken:
    from tunesmith.engine import fit
    from tunesmith.machine import keep_freed_memory

    begun = CLOCKS[spec.clock]()
    keep_freed_memory()
    clock = Clock(spec.clock)
    run = our_run(spec, *our_network(spec), clock)
    start = CLOCKS[spec.clock]()
    fit(run)
    return Taken([start, *clock.ends], [int(r["tokens"]) for r in run.log], [r["loss"] for r in run.log], peak_memory(), start - begun)


# ------------------------------------------------------------------------------------------------ theirs: the model


def classifier(spec: Spec) -> nn.Module:
    """The published trunk, mean pooling, dropout and a linear layer, as one PreTrainedModel; the head starts as ours does."""
    from transformers import AutoConfig, AutoModel, PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    class Classifier(PreTrainedModel):
        """`skip` rows stand before each row's own tokens and are not pooled."""

        config_class = AutoConfig
        skip = 0

        def __init__(self, config, backbone: nn.Module):
            super().__init__(config)
            self.backbone, self.dropout, self.classifier = backbone, nn.Dropout(spec.head_dropout), nn.Linear(config.hidden_size, spec.classes)

        def get_input_embeddings(self) -> nn.Module:
            return self.backbone.get_input_embeddings()

        def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None, past_key_values=None, **_):
            inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "past_key_values": past_key_values}
            given = {k: v for k, v in inputs.items() if v is not None}
            states = self.backbone(attention_mask=attention_mask, **given).last_hidden_state
            own = attention_mask[:, self.skip :, None].float()
            pooled = (states[:, -own.shape[1] :].float() * own).sum(1) / own.sum(1)
            logits = self.classifier(self.dropout(pooled)).float()
            return SequenceClassifierOutput(loss=None if labels is None else nn.functional.cross_entropy(logits, labels), logits=logits)

    config = AutoConfig.from_pretrained(spec.model)
    if spec.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = spec.dropout
    extra = {"config": config, "attn_implementation": spec.variant.get("attention", "sdpa"), "dtype": torch.float32}
    backbone = AutoModel.from_pretrained(spec.model, add_pooling_layer=False, **extra)
    torch.manual_seed(spec.seed)
    model = Classifier(config, backbone)
    nn.init.normal_(model.classifier.weight, std=0.02)
    nn.init.zeros_(model.classifier.bias)
    return model


class Pfeiffer(nn.Module):
    """A linear layer with a serial bottleneck behind it; `up` starts at zero."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        width = inner.out_features
        self.inner, self.down, self.up = inner, nn.Linear(width, round(width / SQUEEZE)), nn.Linear(round(width / SQUEEZE), width)
        nn.init.normal_(self.down.weight, std=width**-0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.up(nn.functional.gelu(self.down(y)))


def their_model(spec: Spec) -> nn.Module:
    """The classifier with the method on it: PEFT's where it has one, else by hand."""
    model = classifier(spec)
    depth = model.config.num_hidden_layers
    moves = {
        "full": lambda name: True,
        "head": lambda name: False,
        "layers": lambda name: any(f".layer.{i}." in name for i in range(depth - TOP, depth)),
        "bitfit": lambda name: name.endswith(".bias"),
        "adapter": lambda name: ".down." in name or ".up." in name,
    }
    if spec.method not in moves:
        return with_peft(spec, model)
    if spec.method == "adapter":
        for block in model.backbone.encoder.layer:
            block.output.dense = Pfeiffer(block.output.dense)
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("classifier.") or moves[spec.method](name))
    return model


def with_peft(spec: Spec, model: nn.Module) -> nn.Module:
    import peft

    model.skip = 0 if spec.method == "lora" else ROWS
    shared = {"task_type": peft.TaskType.SEQ_CLS}
    rows = {"num_virtual_tokens": ROWS, **shared}
    start = {"prompt_tuning_init": "SAMPLE_VOCAB", "tokenizer_name_or_path": spec.model}
    config = {
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", **shared),
        "prompt": lambda: peft.PromptTuningConfig(**start, **rows),
        "prefix": lambda: peft.PrefixTuningConfig(**rows),
    }[spec.method]()
    return peft.get_peft_model(model, config)


# ------------------------------------------------------------------------------------------------ theirs: the Trainer


def arguments(spec: Spec):
    """Trainer's defaults but for what both sides share, and for `tuned` the best flags we found."""
    from transformers import TrainingArguments

    best = {
        "train_sampling_strategy": "group_by_length",
        "bf16": spec.variant.get("dtype") == "bf16",
        "optim": "adamw_torch_fused",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "eval_strategy": "no",
    }
    budget = {"per_device_train_batch_size": spec.size, "num_train_epochs": spec.epochs, "max_steps": spec.steps or -1, "seed": spec.seed}
    update = {
        "learning_rate": spec.rate,
        "weight_decay": spec.decay,
        "max_grad_norm": spec.clip,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(spec.warmup * spec.total),
    }
    quiet = {"output_dir": tempfile.gettempdir(), "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    order = {"train_sampling_strategy": "sequential"} if spec.in_order else {}
    return TrainingArguments(**budget, **update, **quiet, **({**best, **order} if spec.side == "tuned" else order))


def trainer(spec: Spec, model: nn.Module):
    """A Trainer that notes when each step ended, and each step's tokens and loss."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainerCallback

    class Stopwatch(TrainerCallback):
        ends: list[float] = []
        tokens: list[int] = []
        losses: list[Tensor] = []

        def on_step_end(self, *args, **kwargs) -> None:
            self.ends.append(CLOCKS[spec.clock]())

    class Noted(Trainer):
        def compute_loss(self, *args, **kwargs):
            out = super().compute_loss(*args, **kwargs)
            watch.losses.append((out[0] if isinstance(out, tuple) else out).detach())
            return out

    watch, tokenizer, (rows, labels) = Stopwatch(), AutoTokenizer.from_pretrained(spec.model), examples(spec)
    pad = DataCollatorWithPadding(tokenizer)  # what Trainer takes by itself when it is given a tokenizer

    def collate(batch: list[dict]) -> dict:
        watch.tokens.append(sum(len(row["input_ids"]) for row in batch))
        return pad(batch)

    data = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": label} for row, label in zip(rows, labels, strict=True)]
    made = Noted(model, arguments(spec), data_collator=collate, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
    return made, watch


def theirs(spec: Spec, model: nn.Module | None = None) -> Taken:
    begun = CLOCKS[spec.clock]()
    made, watch = trainer(spec, model or their_model(spec))
    start = CLOCKS[spec.clock]()
    made.train()
    steps = len(watch.ends)
    return Taken([start, *watch.ends], watch.tokens[:steps], [float(x) for x in watch.losses], peak_memory(), start - begun)


# ------------------------------------------------------------------------------------------------ equality


def their_name(name: str, method: str) -> str:
    """Where the peer keeps what we call `name`."""
    peft = method in ("lora", "prompt", "prefix")
    if name.startswith("heads."):
        inner = f"classifier.{'modules_to_save.default.' if peft else ''}" + name.rsplit(".", 1)[-1]
    elif method == "lora":
        inner = name.replace("model.", "backbone.", 1).replace(".lora.", ".lora_") + ".default.weight"
    elif peft:
        return "prompt_encoder.default.embedding.weight"
    else:
        inner = name.replace("model.", "backbone.", 1).replace(".adapter.", ".")
    prefix = "" if not peft else "base_model.model." if method == "lora" else "base_model."
    return prefix + inner


@torch.no_grad()
def hand_over(net, delta, model: nn.Module, method: str) -> None:
    """The peer starts from our trainable values; the rest is the checkpoint on both sides."""
    here = dict(model.named_parameters())
    for name, p in delta.parameters().items():
        value = p.transpose(0, 1).flatten(1) if method == "prefix" and name.startswith("prefix.") else p
        target = here.pop(their_name(name, method))
        assert target.requires_grad and target.shape == value.shape, name
        target.copy_(value)
    left = [n for n, p in here.items() if p.requires_grad]
    assert not left, f"only the peer trains {left}"


def equal(spec: Spec) -> dict:
    """Relative difference of the loss, step by step: fp32, no dropout, the same start, the same batches."""
    from tunesmith.engine import fit

    net, delta = our_network(spec)
    model = their_model(spec)
    hand_over(net, delta, model, spec.method)
    run = fit(our_run(spec, net, delta, Clock(spec.clock)))
    mine, other = [r["loss"] for r in run.log], theirs(spec, model).losses
    gaps = [abs(a - b) / abs(b) for a, b in zip(mine, other, strict=True)]
    return {"ours": mine, "theirs": other, "gaps": gaps, "worst": max(gaps)}


# ------------------------------------------------------------------------------------------------ the process


def probe(spec: Spec, variants: list[dict[str, str]]) -> dict:
    """Real tokens a second of each variant over a few steps, one after another in this process."""
    from transformers import set_seed

    speeds = []
    for variant in variants:
        set_seed(spec.seed)
        tried = replace(spec, variant=variant)
        speeds.append((ours if spec.side == "ours" else theirs)(tried).summary()["steady"])
    return {"variants": variants, "speeds": speeds}


def main() -> None:
    order = json.loads(sys.argv[1])
    spec, mode = Spec(**order["spec"]), order["mode"]
    torch.set_num_threads(spec.threads)
    if mode == "equal":
        found = equal(spec)
    elif mode == "probe":
        found = probe(spec, order["variants"])
    else:
        found = (ours if spec.side == "ours" else theirs)(spec).summary()
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
