"""Knowledge distillation: a student learns what a teacher answers, and from what goes on inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from ..core import Batch, Counts, Network, Objective, Ragged, Signals, Terms
from ..errors import Refusal
from .divergence import DIVERGENCES, Loss
from .inner import STATES, Shape, attention, relations

NOWHERE = -1e4  # log-probability of what a teacher's cut-off distribution gives no mass
Weight = Annotated[float, Ge(0)]
Map = dict[int, int]  # block of the student -> block of the teacher


class Distil(Objective):
    """alpha T^2 D(teacher at T, student at T) + (1 - alpha) loss on labels, and what is matched inside (Hinton et al. 2015, section 2).

    teacher      a run's folder, a hub id or folder, or what a teacher has been asked before (a cache, a .safetensors file); or several of them, whose
                 answers are averaged, logits and numbers to score as they are (PET; Schick & Schuetze 2021, section 3.4)
    loss         forward | reverse | jsd (with `beta`) | skew (with `skew`); a number to score is learnt by its squared error
    alpha        weight of the teacher against the labels, which rows may lack
    top          generate: tokens kept of the teacher's distribution; all others are one more bucket, and nothing is renormalised
    cache        where the teacher's answers lie; by default beside the run
    align        uld: a teacher with another tokenizer (Boizard et al. 2024)
    states, attention     blocks to match, student's: teacher's; `relations`, a weight, matches MiniLM's at `relation_blocks`
    on_policy    share of the batches that are replaced by what the student writes itself (Agarwal et al. 2024, GKD)

    Units: rows, labelled words or tokens for what is answered; tokens for what is matched inside. Each term is divided by its own.
    """

    tasks = ("classify", "tag", "score", "generate")
    unlabelled = True

    def __init__(
        self,
        kind: str,
        teacher: str | tuple[str, ...],
        loss: Loss = "forward",
        temperature: Annotated[float, Gt(0)] = 2.0,
        alpha: Annotated[float, Ge(0), Le(1)] = 0.5,
        beta: Annotated[float, Ge(0), Le(1)] = 0.5,
        skew: Annotated[float, Gt(0), Lt(1)] = 0.1,
        top: Annotated[int, Ge(1)] = 64,
        cache: str | None = None,
        align: Literal["uld"] | None = None,
        states: Map | None = None,
        states_loss: Literal["mse", "cosine"] = "mse",
        states_weight: Weight = 1.0,
        attention: Map | None = None,
        attention_weight: Weight = 1.0,
        relations: Weight = 0.0,
        relation_heads: Annotated[int, Ge(1)] | None = None,
        relation_blocks: tuple[int, int] | None = None,
        on_policy: Annotated[float, Ge(0), Le(1)] = 0.0,
        sample_temperature: Annotated[float, Gt(0)] = 1.0,
        max_new_tokens: Annotated[int, Ge(1)] = 64,
    ):
        super().__init__()
        self.kind, self.loss, self.temperature, self.alpha = kind, loss, float(temperature), float(alpha)
        self.teachers = (teacher,) if isinstance(teacher, str) else tuple(teacher)
        self.share = {"jsd": beta, "skew": skew}.get(loss, 0.0)
        self.top, self.cache, self.align = top, cache, align
        self.states, self.attention = numbers(states), numbers(attention)
        self.states_loss, self.relation_heads, self.relation_blocks = states_loss, relation_heads, relation_blocks
        self.weights = {"states": float(states_weight) * bool(states), "attention": float(attention_weight) * bool(attention), "relations": float(relations)}
        self.on_policy, self.sample_temperature, self.max_new_tokens = float(on_policy), sample_temperature, max_new_tokens
        self.projections = nn.ModuleDict()
        self.student: Shape | None = None
        self.taught: Shape | None = None
        for wrong, where, what, fix in self.contradictions():
            if wrong:
                raise Refusal(what, where=f"objective{where}", fix=fix)
        inside = {"teacher_states"} if self.states else set()
        inside |= {"teacher_heads"} if self.attention or self.weights["relations"] else set()
        self.needs = frozenset({"ids", "label", "teacher", *inside, *(("teacher_ids",) if kind == "generate" else ()), *(("written",) if on_policy else ())})

    def contradictions(self) -> list[tuple[bool, str, str, str]]:
        """(it is so, the key, what is wrong, what would work)."""
        inside, writes = any(self.weights.values()), self.kind == "generate"
        return [
            (self.kind not in ANSWERS, "", "these rows are compared or judged, and a teacher answers", "objective: prefer"),
            (not self.teachers or len(set(self.teachers)) < len(self.teachers), ".teacher", f"`teacher` is {list(self.teachers)}", "each once, and one at least"),
            (len(self.teachers) > 1 and (writes or inside), ".teacher", "several teachers of texts to write, or of what goes on inside, which are not averaged", "one of them"),
            (self.alpha == 0 and not inside, ".alpha", "`alpha: 0` gives the teacher no weight", "objective: supervised"),
            (self.kind == "score" and self.loss != "forward", ".loss", f"`loss: {self.loss}` and a number, which has no distribution", "leave `loss` out"),
            (self.align is not None and not writes, ".align", "`align` and a task without tokens to write: a teacher reads with its own tokenizer", "leave it out"),
            (self.on_policy > 0 and not writes, ".on_policy", "`on_policy` and a task in which nothing is written", "leave it out"),
            (self.align is not None and self.on_policy > 0, ".align", "`align` and `on_policy`: what the student writes is not aligned", "on_policy: 0"),
            (self.align is not None and inside, ".align", "`align` and matching inside: different tokens have different states", "one of the two"),
            (self.align is not None and self.loss != "forward", ".loss", f"`align: uld` and `loss: {self.loss}`", "leave `loss` out: it is the distance of sorted probabilities"),
        ]  # fmt: skip

    # -------------------------------------------------------------------------------------------- what is matched inside

    @property
    def ends(self) -> tuple[int, int]:
        """Blocks whose relations are matched, student's and teacher's; the last of each by default (MiniLM, section 3.1)."""
        return self.relation_blocks or (-1, -1)

    def heard(self, which: int) -> tuple[list[int], list[int]]:
        """Blocks to hear states and heads in, of the student (0) or the teacher (1), once both shapes are known. A teacher's may come up twice."""
        related = [self.ends[which]] if self.weights["relations"] else []
        return [pair[which] for pair in self.states.items()], [*(pair[which] for pair in self.attention.items()), *related]

    def equip(self, student: Shape, teacher: Shape) -> None:
        """Take note of both shapes and make the projections from one width to the other. Raises Refusal where heads do not match."""
        self.student, self.taught = student, teacher
        whole = student.heads == teacher.heads and student.kv_heads == teacher.kv_heads
        if self.attention and student.heads != teacher.heads:
            raise Refusal(
                f"the student has {student.heads} heads, the teacher {teacher.heads}", where="objective.attention", fix="relations: 1 with relation_heads"
            )
        if self.weights["relations"] and self.relation_heads is None and not whole:
            raise Refusal("student and teacher have different numbers of heads", where="objective.relation_heads", fix="relation_heads: 12, as in MiniLMv2")
        if self.relation_heads and any(size % self.relation_heads for shape in (student, teacher) for size in shape.sizes):
            raise Refusal(
                f"{self.relation_heads} relation heads do not part all of {sorted({*student.sizes, *teacher.sizes})}",
                where="objective.relation_heads",
                fix="a divisor",
            )
        if student.width != teacher.width:
            self.projections.update({str(s): nn.Linear(student.width, teacher.width, bias=False) for s in self.states})

    def inside(self, signals: Signals, batch: Batch) -> Terms:
        """Terms of what is matched inside, of those that are asked for."""
        found: dict[str, Tensor] = {}
        if self.states:
            parts = zip(self.states, batch["teacher_states"].float().unbind(1), strict=True)
            found["states"] = torch.stack([STATES[self.states_loss](self.projected(s, signals[f"states {s}"].float()), t) for s, t in parts]).sum()
        if "teacher_heads" in self.needs:
            assert self.student and self.taught
            lengths, causal, n = batch.ragged("ids").lengths, self.student.causal, len(self.attention)
            taught = [self.taught.parted(flat) for flat in batch["teacher_heads"].float().unbind(1)]
            mine = [self.student.parted(signals[f"heads {i}"].float()) for i in range(len(taught))]
            if n:
                found["attention"] = torch.stack([attention(s, t, lengths, causal) for s, t in zip(mine[:n], taught[:n], strict=True)]).sum()
            if self.weights["relations"]:
                found["relations"] = relations(mine[-1], taught[-1], lengths, causal, self.relation_heads)
        return {name: self.weights[name] * value for name, value in found.items()}

    def projected(self, block: int, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return self.projections[str(block)](states) if str(block) in self.projections else states

    # -------------------------------------------------------------------------------------------- the objective

    def read(self, net: Network, batch: Batch) -> Signals:
        if not any(self.weights.values()):
            return self.answers(net, batch)
        states, heads = self.heard(0)
        depth = net.anatomy.depth
        heads = [i % depth for i in heads]
        signals, heard = net.overheard(lambda: self.answers(net, batch), batch, [i % depth for i in states], heads)
        flat = {f"heads {i}": torch.cat([x.flatten(1) for x in heard.heads[block]], -1) for i, block in enumerate(heads)}
        return {**signals, **flat, **{f"states {i}": heard.states[i % depth] for i in states}}

    def answers(self, net: Network, batch: Batch) -> Signals:
        if self.kind != "generate":
            return {"logits": net.logits(batch)}
        ids = batch["teacher_ids"].shape[-1] if self.align else batch["teacher_ids"].long()
        found = net.bucket_logp(batch, ids, self.temperature)
        return {"logp": found.logp, "own": found.own}

    def score(self, signals: Signals, batch: Batch) -> Terms:
        soft, hard = ANSWERS[self.kind]
        factor = self.temperature**2 if self.kind != "score" and not self.align else 1.0
        known = answered(batch["teacher"])
        gaps = soft(self, signals, batch["teacher"].float().nan_to_num(0.0))
        terms = {"teacher": self.alpha * factor * torch.where(known, gaps, 0.0).sum()}
        if self.alpha < 1:
            terms["label"] = (1 - self.alpha) * hard(signals, batch, self.labelled(batch))
        return {**terms, **self.inside(signals, batch)}

    def count(self, batch: Batch) -> Counts:
        partial = self.kind == "tag" or self.align is not None
        counts = {"teacher": float(answered(batch["teacher"]).sum()) if partial else float(len(batch["teacher"]))}
        if self.alpha < 1:
            counts["label"] = float(self.labelled(batch).sum())
        return {**counts, **{name: float(len(batch["ids"])) for name, weight in self.weights.items() if weight}}

    def labelled(self, batch: Batch) -> Tensor:
        """Which units have a label: rows may come without, and what the student wrote itself is no label."""
        label = batch["label"]
        if self.kind != "generate":
            return ~label.isnan() if self.kind == "score" else (label[:, 0] if self.kind == "multi" else label) >= 0
        if "written" not in batch:
            return torch.ones_like(label, dtype=torch.bool)
        lengths = torch.tensor(batch.ragged("label").lengths, device=label.device)
        return (batch["written"] == 0).repeat_interleave(lengths, output_size=len(label))

    def presumed(self, net: Network, batch: Batch) -> Batch:
        """As if the teacher were built like the student."""
        if self.taught is None:
            a = net.anatomy
            shape = Shape(a.width, net.model.config.num_attention_heads, a.kv_heads, a.head_dim, a.kind == "decoder")
            self.equip(shape, shape)
        assert self.taught
        label, ids, n = batch.columns["label"], batch.ragged("ids"), len(batch["label"])
        top = min(self.top, net.model.config.vocab_size - 1)
        wide = top + 1 if self.kind == "generate" else len(net.labels)
        shapes = {"teacher": (n, wide) if self.kind != "score" else (n,)}
        added: dict[str, Tensor | Ragged] = {"teacher": like(torch.zeros(shapes["teacher"]), label)}
        if self.kind == "generate":
            added["teacher_ids"] = like(torch.zeros(n, top, dtype=torch.int32), label)
        states, heads = self.heard(1)
        added |= {"teacher_states": Ragged(torch.zeros(sum(ids.lengths), len(states), self.taught.width, dtype=torch.bfloat16), ids.lengths)} if states else {}
        added |= (
            {"teacher_heads": Ragged(torch.zeros(sum(ids.lengths), len(heads), sum(self.taught.sizes), dtype=torch.bfloat16), ids.lengths)} if heads else {}
        )
        return batch.plus(**added, **({"written": torch.zeros(len(ids.lengths))} if self.on_policy else {}))


def numbers(given: Map | None) -> Map:
    """A recipe that was written as JSON has its keys as text."""
    return {int(k): int(v) for k, v in (given or {}).items()}


def like(values: Tensor, column: Tensor | Ragged) -> Tensor | Ragged:
    return Ragged(values, column.lengths) if isinstance(column, Ragged) else values


def answered(teacher: Tensor) -> Tensor:
    """(n,): the units that the teacher has an answer for; it has not read others, or its tokens have no like of them."""
    return ~teacher.flatten(1).isnan().any(-1) if teacher.dim() > 1 else ~teacher.isnan()


# ------------------------------------------------------------------------------------------------ the teacher's answer, a unit: (n,)


def over_classes(self: Distil, signals: Signals, teacher: Tensor) -> Tensor:
    """One distribution over all classes; teacher's logits (n, C)."""
    p, q = ((x.float() / self.temperature).log_softmax(-1) for x in (teacher, signals["logits"]))
    return DIVERGENCES[self.loss](p, q, self.share)


def over_each_class(self: Distil, signals: Signals, teacher: Tensor) -> Tensor:
    """A distribution over yes and no for each class, averaged over classes; teacher's logits (n, C)."""
    p, q = (F.logsigmoid(torch.stack([x, -x], -1).float() / self.temperature) for x in (teacher, signals["logits"]))
    return DIVERGENCES[self.loss](p, q, self.share).mean(-1)


def of_numbers(self: Distil, signals: Signals, teacher: Tensor) -> Tensor:
    """Squared error to the teacher's number (n,)."""
    return (signals["logits"][:, 0].float() - teacher).square()


def over_buckets(self: Distil, signals: Signals, teacher: Tensor) -> Tensor:
    """Over K tokens and the rest (n, K + 1), both at T. A teacher that was stored without the rest has one minus its sum there."""
    q = signals["logp"]
    p = teacher if teacher.shape[-1] == q.shape[-1] else torch.cat([teacher, remainder(teacher)], -1)
    if self.align:
        return (p.exp() - q.exp()).abs().sum(-1)  # both sorted: Boizard et al. 2024, eq. 4
    return DIVERGENCES[self.loss](p.clamp(min=NOWHERE), q, self.share)


def remainder(logp: Tensor) -> Tensor:
    """(n, 1): log of what is left of 1."""
    return torch.log1p(-logp.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))


# ------------------------------------------------------------------------------------------------ labels, summed over the units that have one


def class_labels(signals: Signals, batch: Batch, known: Tensor) -> Tensor:
    return F.cross_entropy(signals["logits"].float(), batch["label"], reduction="sum", ignore_index=-1)


def several_labels(signals: Signals, batch: Batch, known: Tensor) -> Tensor:
    """Averaged over classes."""
    losses = F.binary_cross_entropy_with_logits(signals["logits"].float(), batch["label"].clamp(min=0), reduction="none")
    return torch.where(known, losses.mean(-1), 0.0).sum()


def number_labels(signals: Signals, batch: Batch, known: Tensor) -> Tensor:
    return torch.where(known, (signals["logits"][:, 0].float() - batch["label"].nan_to_num(0.0)).square(), 0.0).sum()


def token_labels(signals: Signals, batch: Batch, known: Tensor) -> Tensor:
    return -torch.where(known, signals["own"], 0.0).sum()


Soft = Callable[[Distil, Signals, Tensor], Tensor]
Hard = Callable[[Signals, Batch, Tensor], Tensor]
ANSWERS: dict[str, tuple[Soft, Hard]] = {
    "single": (over_classes, class_labels),
    "multi": (over_each_class, several_labels),
    "tag": (over_classes, class_labels),
    "score": (of_numbers, number_labels),
    "generate": (over_buckets, token_labels),
}
