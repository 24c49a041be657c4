"""Who the teacher is: a run, a published model, or what one of them has answered before. Known by name before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
import xxhash
from torch import Tensor, nn

from ..artifact import describe, load
from ..checkpoint import digest
from ..core import Batch
from ..dataset import Dataset, reader_for
from ..errors import Refusal
from ..networks.load import Origin, load_config, load_network, load_tokenizer, origin
from ..networks.transformer import Transformer
from ..objectives.inner import Shape
from ..recipe import Recipe
from ..sections import Model
from ..sources.text.encode import Reader
from .cache import ABOUT, FILE


class Classifier(nn.Module):
    """A class of transformers with its own head, as a network that can be asked: padded rows, its own attention."""

    def __init__(self, model: Any, pad: int):
        super().__init__()
        self.model, self.pad = model, pad
        self.compute = next(model.parameters()).dtype

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, C), or (M, C) at the labelled positions."""
        rows = batch.ragged("ids").rows()
        cut = lambda columns, fill: nn.utils.rnn.pad_sequence(list(columns), True, fill)
        inputs = {"input_ids": cut(rows, self.pad), "attention_mask": cut([torch.ones_like(r) for r in rows], 0)}
        if "types" in batch:
            inputs["token_type_ids"] = cut(batch.ragged("types").rows(), 0)
        logits = self.model(**inputs).logits.float()
        return torch.cat([row[at] for row, at in zip(logits, batch.ragged("at").rows(), strict=True)]) if "at" in batch else logits


Teacher = Transformer | Classifier  # loaded, at rest


@dataclass(frozen=True)
class Named:
    """A teacher that is not loaded. `labels` in its own order; `reader` reads texts as it does."""

    name: str
    source: Origin
    labels: tuple[str, ...]
    reader: Reader
    config: Any
    blocks: tuple[int, ...] | None
    identity: str
    load: Callable[[torch.device], Teacher]

    @property
    def shape(self) -> Shape:
        return shape_of(self.config)

    @cached_property
    def depth(self) -> int:
        return len(self.blocks or range(self.config.num_hidden_layers))


def shape_of(config: Any) -> Shape:
    heads, causal = config.num_attention_heads, not config.is_encoder_decoder and type(config) not in hf.AutoModelForMaskedLM._model_mapping
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(config.hidden_size, heads, getattr(config, "num_key_value_heads", None) or heads, size, causal)


def stored(name: str) -> Path | None:
    """The file of answers that this name means, if it means one."""
    path = Path(name).expanduser()
    file = path / FILE if path.is_dir() else path
    return file if file.suffix == ".safetensors" and file.is_file() and (path.is_file() or not (path / "config.json").exists()) else None


def named(recipe: Recipe, data: Dataset, name: str) -> Named:
    """Raises Refusal where the teacher is not there, or answers another question than the student is asked."""
    path = Path(name).expanduser()
    if path.is_dir() and ((path / "artifact").is_dir() or (path / "tunesmith.json").exists()):
        return of_run(recipe, data, path)
    return of_published(recipe, data, name)


# ------------------------------------------------------------------------------------------------ a run


def of_run(recipe: Recipe, data: Dataset, folder: Path) -> Named:
    about = describe(folder)
    inside = folder / "artifact" if (folder / "artifact").is_dir() else folder
    if about.task["kind"] != data.task.kind:
        raise Refusal(
            f"the teacher {folder} was trained for {about.task['name']} ({about.task['kind']}), the student is for {data.task.name} ({data.task.kind})",
            where="objective.teacher", fix="a teacher of the same task",
        )  # fmt: skip
    labels = tuple(about.task["labels"])
    same_labels(labels, data.task.labels, str(folder))
    source, blocks = about.base, about.model.get("blocks")
    identity = hashed(*sorted(inside.glob("*.safetensors")), inside / "tunesmith.json")
    reader = Reader(load_tokenizer(Origin(str(inside), str(inside))), **about.reader)
    return Named(str(folder), source, labels, reader, load_config(source), blocks, identity, lambda device: taught_by_run(folder, device))


def taught_by_run(folder: Path, device: torch.device) -> Teacher:
    return load(folder, device=str(device)).net


def same_labels(theirs: tuple[str, ...], ours: tuple[str, ...], name: str) -> None:
    """The names must be the same; their order need not."""
    if odd := set(theirs) ^ set(ours):
        raise Refusal(
            f"the teacher {name} has the labels {', '.join(sorted(theirs)[:8])}, the data {', '.join(sorted(ours)[:8])}",
            where="objective.teacher",
            why=f"only one of them knows {', '.join(sorted(odd)[:4])}",
            fix="a teacher of the same labels, or rename them in the data",
        )


# ------------------------------------------------------------------------------------------------ a published model

CLASSES = {
    "classify": ("ForSequenceClassification", hf.AutoModelForSequenceClassification),
    "tag": ("ForTokenClassification", hf.AutoModelForTokenClassification),
}


def of_published(recipe: Recipe, data: Dataset, name: str) -> Named:
    source = origin(name)
    config = load_config(source)
    plain = replace(recipe, model=Model(name), method={"kind": "full"})
    reader = reader_for(plain, source)
    weights = sorted(Path(source.path).glob("*.safetensors")) if Path(source.path).is_dir() else []
    identity = hashed(*weights, Path(source.path) / "config.json") if weights else str(getattr(config, "_commit_hash", None) or name)
    if recipe.task == "generate":
        return Named(name, source, (), reader, config, None, identity, lambda device: taught_by_writer(source, reader, device))
    ending, auto = CLASSES.get(recipe.task, CLASSES["classify"])
    if not any(str(found).endswith(ending) for found in config.architectures or ()):
        raise Refusal(
            f"{name} has no head for {recipe.task}: it is a {', '.join(config.architectures or ['model without a class'])}",
            where="objective.teacher", why="a teacher must already know what it teaches", fix=f"train it first, and give the run's folder; or a hub model ...{ending}",
        )  # fmt: skip
    labels = tuple(str(name) for _, name in sorted((config.id2label or {}).items())) if data.task.labels else ()
    same_labels(labels, data.task.labels, name)
    return Named(name, source, labels, reader, config, None, identity, lambda device: taught_by_class(auto, source, reader.tokenizer.pad_token_id or 0, device))


def taught_by_writer(source: Origin, reader: Reader, device: torch.device) -> Teacher:
    net = load_network(source, generates=True, device=device, tokenizer=reader.tokenizer).eval()
    net.compute = next(net.parameters()).dtype
    return net


def taught_by_class(auto: Any, source: Origin, pad: int, device: torch.device) -> Classifier:
    model = auto.from_pretrained(source.path, dtype="auto", use_safetensors=True, trust_remote_code=False)
    return Classifier(model, pad).to(device).eval()


# ------------------------------------------------------------------------------------------------ identity


def hashed(*files: Path) -> str:
    return xxhash.xxh3_128("".join(digest_once(f, f.stat().st_mtime_ns) for f in files if f.exists()).encode()).hexdigest()


@lru_cache(maxsize=64)
def digest_once(file: Path, written: int) -> str:
    """Large weights are read once a process."""
    return digest(file)


def hash_of(tokenizer: Any) -> str:
    """Of all that decides how a text becomes tokens; not of how it was cut or padded last."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    how = json.loads(backend.to_str()) if backend is not None else {"vocab": sorted(tokenizer.get_vocab().items())}
    how = {k: v for k, v in how.items() if k not in ("truncation", "padding")}
    return xxhash.xxh3_128(json.dumps([how, tokenizer.chat_template], sort_keys=True).encode()).hexdigest()


def same_tokens(student: Any, teacher: Any) -> bool:
    """Equal size is not enough: ids of one mean other words in the other."""
    return student.get_vocab() == teacher.get_vocab()


__all__ = ["ABOUT", "FILE", "Named", "Teacher", "hash_of", "named", "same_tokens", "shape_of", "stored"]
