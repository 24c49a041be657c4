"""From a hub id, a folder or an embedded name to a Network, with what had to be found out about it on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from ..core import Batch, Ragged
from ..errors import Refusal
from ..hub import offline_if_unreachable
from . import attention
from .attention import NAME, Room, Seat
from .dropout import dropouts, quicken
from .embedded import Origin as Origin
from .embedded import origin as origin
from .heads import Head, HeadSpec, Pool
from .masked import voiced
from .parts import anatomy
from .quantised import configuration, own_tensors, tame
from .shorten import keep_blocks
from .transformer import Transformer

UNABLE = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)  # how a class says that it cannot run so
PACK_TOLERANCE = 1e-3  # of the largest state; a class that ignores the layout is off by its whole size


def load_tokenizer(source: Origin) -> hf.PreTrainedTokenizerBase:
    try:
        with offline_if_unreachable():
            tokenizer = hf.AutoTokenizer.from_pretrained(source.path, revision=source.revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise unreachable(source, e) from e
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_config(source: Origin) -> hf.PretrainedConfig:
    try:
        with offline_if_unreachable():
            config = hf.AutoConfig.from_pretrained(source.path, revision=source.revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise unreachable(source, e) from e
    return config.get_text_config() if hasattr(config, "text_config") else config


def unreachable(source: Origin, error: Exception) -> Refusal:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return Refusal(
            f"{source.name!r} runs code from its repository, which Tunesmith does not do", where="model", fix="choose a model whose class is in transformers"
        )
    return Refusal(
        f"cannot load {source.name!r}", where="model", why=text, fix="give a hub id, a folder with config.json and model.safetensors, `minilm` or `desk-lm`"
    )


def load_network(
    source: Origin,
    *,
    generates: bool,
    worded: bool = False,
    pool: Pool | None = None,
    device: torch.device | str = "cpu",
    dropout: float | None = None,
    tokenizer: hf.PreTrainedTokenizerBase | None = None,
) -> Transformer:
    """Load the published weights (safetensors only) in the dtype of the checkpoint and look the network over.

    generates   build the language model with its vocabulary head; otherwise the bare trunk
    worded      its vocabulary is asked for label words: the masked language model of an encoder, else as `generates`
    dropout     replaces the published dropout everywhere, attention included
    """
    attention.register()
    hf.utils.logging.disable_progress_bar()
    config = load_config(source)
    if dropout is not None:
        set_dropout(config, dropout)
    extra = {} if source.bits is None else {"quantization_config": configuration(source.bits), "device_map": {"": torch.device(device)}}
    try:
        made: Any = auto_class(config, generates, worded)
        model, found = made.from_pretrained(
            source.path, revision=source.revision or "main", config=config, dtype="auto", use_safetensors=True, trust_remote_code=False,
            attn_implementation=attention_for(config), output_loading_info=True, **extra,
        )  # fmt: skip
    except (OSError, ValueError, ImportError) as e:
        raise unreachable(source, e) from e
    if worded and found["missing_keys"]:
        raise mute(config)
    if source.blocks is not None:
        keep_blocks(model, source.blocks)
    if source.bits is None:
        return look_over(model.to(device), generates or worded, pool, tokenizer)  # type: ignore[arg-type]
    tame(model)
    net = look_over(model, generates or worded, pool, tokenizer)
    net.register_state_dict_post_hook(own_tensors)
    return net


def attention_for(config: hf.PretrainedConfig) -> str:
    """DeBERTa-v2 computes its own disentangled attention and never asks the interface."""
    return "eager" if config.model_type in ("deberta-v2", "mpnet") else NAME


def set_dropout(config: hf.PretrainedConfig, value: float) -> None:
    """Every dropout probability that the configuration names."""
    for key in dropouts(config):
        setattr(config, key, value)


def auto_class(config: hf.PretrainedConfig, generates: bool, worded: bool = False):
    if worded and kind_of(config) == "encoder":
        if not voiced(config.architectures):
            raise mute(config)
        return hf.AutoModelForMaskedLM
    if not generates and not worded:
        return hf.AutoModel
    if config.is_encoder_decoder:
        return hf.AutoModelForSeq2SeqLM
    if type(config) not in hf.AutoModelForCausalLM._model_mapping or kind_of(config) == "encoder":
        raise Refusal(
            f"a {config.model_type} model reads text but does not write it",
            where="task",
            fix="use a decoder (GPT-2, Llama, Qwen, ...) or an encoder-decoder (T5, BART), or task: classify | tag | score",
        )
    return hf.AutoModelForCausalLM


def mute(config: hf.PretrainedConfig) -> Refusal:
    return Refusal(
        f"this model was published as {(config.architectures or ['a trunk'])[0]}, without the head that predicts words",
        where="model",
        why="label words are read off the vocabulary at the mask",
        fix="a masked language model, such as google-bert/bert-base-uncased, or a decoder, such as desk-lm",
    )


def kind_of(config: hf.PretrainedConfig) -> str:
    """encoder, decoder or seq2seq. Encoders are what can predict masked tokens."""
    if config.is_encoder_decoder:
        return "seq2seq"
    return "encoder" if type(config) in hf.AutoModelForMaskedLM._model_mapping and not causal(config) else "decoder"


def causal(config: hf.PretrainedConfig) -> bool:
    return type(config) in hf.AutoModelForCausalLM._model_mapping and type(config) not in hf.AutoModelForMaskedLM._model_mapping


def look_over(model: Any, generates: bool, pool: Pool | None = None, tokenizer: Any = None) -> Transformer:
    """Find the parts, give every attention its seat, and check on two short rows whether the class runs packed."""
    net = laid_out(model, generates, pool, tokenizer)
    kind = net.anatomy.kind
    net.packs = net.packs and runs_packed(net)
    net.causal = kind == "decoder" and looks_back(net)
    if kind != "seq2seq":
        net.arity = block_arity(net)
        net.skips = skips_blocks(net)
    if generates and kind != "seq2seq":
        check_vocabulary(net)
    return net.eval()


def laid_out(model: Any, generates: bool, pool: Pool | None = None, tokenizer: Any = None) -> Transformer:
    """What can be said of a model without its values: where its parts are, and whether its attention takes a seat; such a class should pack."""
    config = model.config
    kind = "seq2seq" if generates and config.is_encoder_decoder else "encoder" if config.is_encoder_decoder else kind_of(config)
    at = "model" if not generates or kind == "seq2seq" else f"model.{model.base_model_prefix}"
    trunk = model if at == "model" else model.get_submodule(model.base_model_prefix)
    if kind == "seq2seq":
        at, trunk = f"model.{model.base_model_prefix}" if model.base_model is not model else "model", model.base_model
    parts = replace(anatomy(trunk, config, at, kind), vocabulary=output_embedding(model) if generates else None)
    fills = generates and kind == "encoder"
    if fills:
        parts = replace(parts, tails=(*parts.tails, *on_top(model)))
    quicken(model)
    net = Transformer(model, at, parts, pool=pool or ("last" if kind == "decoder" else "mean"), room=Room(), tokenizer=tokenizer, fills=fills)
    net.takes_prefix = seat(net)
    if not net.takes_prefix and config._attn_implementation == NAME:
        config._attn_implementation = "eager"  # else it builds masks for a function that it never calls
    net.packs, net.causal = net.takes_prefix and kind != "seq2seq", kind == "decoder"
    return net


def on_top(model: Any) -> list[str]:
    """Paths of what a masked language model has above its trunk."""
    return [f"model.{name}" for name, part in model.named_children() if part is not model.base_model and next(part.parameters(), None) is not None]


@torch.no_grad()
def check_vocabulary(net: Transformer) -> None:
    """Refuse a class whose logits are not what we make of its last states."""
    ids = two_rows(net).take(0, 1).ragged("ids")
    own = net.model(input_ids=ids.values[None]).logits[0].float()
    ours = net.logits(Batch({"ids": ids, "at": Ragged(torch.arange(len(own), device=own.device), ids.lengths)}))
    if ours.shape != own.shape or float((ours - own).abs().max()) > PACK_TOLERANCE * 30 * max(1.0, float(own.abs().max())):
        raise Refusal(
            f"{type(net.model).__name__} does more to its logits than its output embedding says",
            where="model",
            fix="another model for generate; classify, tag, score and embed work with this one",
        )


def output_embedding(model: Any) -> str | None:
    """Path of the output embedding, or None where it is tied to the input embedding."""
    out, table = model.get_output_embeddings(), model.get_input_embeddings()
    if out is None or out.weight is table.weight:
        return None
    return next(f"model.{n}" for n, m in model.named_modules() if m is out)


@torch.no_grad()
def seat(net: Transformer) -> bool:
    """Give each self-attention its seat. False where the class keeps its attention to itself."""
    if net.model.config._attn_implementation != NAME:
        return False
    for i, path in enumerate(net.anatomy.attentions):
        net.get_submodule(path).__dict__["seat"] = Seat(net.room, i)
    net.eval()
    net.room.heard = []
    net.padded(two_rows(net).take(0, 1))
    heard, net.room.heard = net.room.heard, None
    return 0 < len(heard) >= len(net.anatomy.attentions) / (1 + (net.anatomy.kind == "seq2seq"))  # a decoder is not run here


def two_rows(net: Transformer) -> Batch:
    """Seven tokens as two rows; ids that every vocabulary has."""
    ids = torch.arange(7, device=net.device) % max(2, net.model.config.vocab_size - 5) + 3
    return Batch({"ids": Ragged(ids, (3, 4))})


@torch.no_grad()
def looks_back(net: Transformer) -> bool:
    """Whether what becomes of a token depends on those before it alone: some embedders are decoders that see both ways (EmbeddingGemma)."""
    ids = two_rows(net).take(1, 2)["ids"]
    one, two = (net.states(Batch({"ids": Ragged(torch.cat([ids[:-1], end]), (len(ids),))})).values[:-1].float() for end in (ids[-1:], ids[:1]))
    return float((one - two).abs().max()) <= PACK_TOLERANCE * float(one.abs().max())


@torch.no_grad()
def runs_packed(net: Transformer) -> bool:
    """Whether two rows laid end to end give what each gives alone. A class that ignores the layout is silently wrong otherwise."""
    net.eval()
    batch = two_rows(net)
    try:
        together = net.states(batch).rows()
        alone = [net.padded(Batch({"ids": Ragged(row, (len(row),))})) for row in batch.ragged("ids").rows()]  # in the class's own positions
    except UNABLE:
        return False
    scale = max(float(row.abs().max()) for row in alone)
    exact = together[0].dtype is torch.float32 and all(p.is_floating_point() for p in net.model.parameters())
    coarse = 1 if exact else 30
    return all(float((a - b).abs().max()) <= PACK_TOLERANCE * coarse * scale for a, b in zip(together, alone, strict=True))


@torch.no_grad()
def block_arity(net: Transformer) -> int:
    """Length of the tuple that a block returns, 0 for a bare tensor."""
    seen: list[int] = []
    hook = net.get_submodule(net.anatomy.blocks[0]).register_forward_hook(lambda _m, _a, out: seen.append(len(out) if isinstance(out, tuple) else 0))
    try:
        net.states(two_rows(net))
    finally:
        hook.remove()
    return seen[0]


@torch.no_grad()
def skips_blocks(net: Transformer) -> bool:
    """Whether the network above a stored state is the whole network, bit for bit. T5 hands a position bias from block to block, so it is not."""
    if net.anatomy.depth < 2:
        return False
    batch = two_rows(net)
    stored = net.trunk_states(batch, 1)
    other = Batch({"ids": Ragged(batch["ids"].flip(0), (3, 4)), "trunk": stored, "floor": torch.ones(2, dtype=torch.long)})
    try:
        return torch.equal(net.states(other).values, net.states(batch).values)
    except UNABLE:
        return False


def add_head(net: Transformer, task: str, spec: HeadSpec, seed: int) -> None:
    """A fresh head, drawn from the seed alone."""
    state: Tensor = torch.get_rng_state()
    torch.manual_seed(seed)
    head = Head(net.anatomy.width, spec).train(net.training)
    net.heads[task] = head if net.device.type == "cpu" else head.to(net.device)  # a blank head cannot be moved, not even to where it is
    torch.set_rng_state(state)
