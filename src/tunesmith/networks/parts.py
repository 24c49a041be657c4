"""Where each architecture keeps its blocks, projections and embeddings: rows of data, and an inspection for all others.

Paths are relative to the trunk (what `AutoModel` builds). A row names the block list, the projections inside one block with
their role, the self-attention inside one block, the token embedding, what runs after the last block, and what a task head
never uses. A model outside the table gets a row by looking at it; what cannot be found is said by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from ..core import Anatomy
from ..errors import Refusal


@dataclass(frozen=True)
class Row:
    blocks: tuple[str, ...]  # module lists, in the order in which they run
    roles: Mapping[str, str]  # projection inside a block -> role
    attention: str  # self-attention inside a block
    embedding: str
    tails: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


BERT = Row(
    ("encoder.layer",),
    {
        "attention.self.query": "query",
        "attention.self.key": "key",
        "attention.self.value": "value",
        "attention.output.dense": "out",
        "intermediate.dense": "up",
        "output.dense": "down",
    },
    "attention.self",
    "embeddings.word_embeddings",
    unused=("pooler",),
)
LLAMA = Row(
    ("layers",),
    {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "out",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    },
    "self_attn",
    "embed_tokens",
    ("norm",),
)
BERT_OUT = {k: v for k, v in BERT.roles.items() if v in ("out", "up", "down")}
DEBERTA = replace(
    BERT,
    roles={
        "attention.self.query_proj": "query",
        "attention.self.key_proj": "key",
        "attention.self.value_proj": "value",
        "attention.self.pos_query_proj": "query",
        "attention.self.pos_key_proj": "key",
        **BERT_OUT,
    },
)
MPNET = replace(
    BERT,
    roles={"attention.attn.q": "query", "attention.attn.k": "key", "attention.attn.v": "value", "attention.attn.o": "out", **BERT_OUT},
    attention="attention.attn",
)
ATTENTION_T5 = {"q": "query", "k": "key", "v": "value", "o": "out"}
T5_ROLES = {f"layer.0.SelfAttention.{k}": v for k, v in ATTENTION_T5.items()} | {f"layer.1.EncDecAttention.{k}": v for k, v in ATTENTION_T5.items()}
T5_MLP = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
BART_ROLES = {
    **{f"{a}.{k}_proj": v for a in ("self_attn", "encoder_attn") for k, v in {"q": "query", "k": "key", "v": "value", "out": "out"}.items()},
    "fc1": "up",
    "fc2": "down",
}

ROWS: dict[str, Row] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "camembert"), BERT),
    "deberta-v2": DEBERTA,
    "mpnet": MPNET,
    "distilbert": Row(
        ("transformer.layer",),
        {
            "attention.q_lin": "query",
            "attention.k_lin": "key",
            "attention.v_lin": "value",
            "attention.out_lin": "out",
            "ffn.lin1": "up",
            "ffn.lin2": "down",
        },
        "attention",
        "embeddings.word_embeddings",
    ),
    "modernbert": Row(
        ("layers",),
        {"attn.Wqkv": "query+key+value", "attn.Wo": "out", "mlp.Wi": "gate+up", "mlp.Wo": "down"},
        "attn",
        "embeddings.tok_embeddings",
        ("final_norm",),
    ),
    "gpt2": Row(("h",), {"attn.c_attn": "query+key+value", "attn.c_proj": "out", "mlp.c_fc": "up", "mlp.c_proj": "down"}, "attn", "wte", ("ln_f",)),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2"), LLAMA),
    "phi3": replace(
        LLAMA,
        roles={"self_attn.qkv_proj": "query+key+value", "self_attn.o_proj": "out", "mlp.gate_up_proj": "gate+up", "mlp.down_proj": "down"},
    ),
    "t5": Row(
        ("encoder.block", "decoder.block"),
        T5_ROLES | {f"layer.{i}.DenseReluDense.{k}": v for i in (1, 2) for k, v in T5_MLP.items()},
        "layer.0.SelfAttention",
        "shared",
        ("decoder.final_layer_norm",),
    ),
    "bart": Row(("encoder.layers", "decoder.layers"), BART_ROLES, "self_attn", "shared"),
}


def anatomy(trunk: nn.Module, config: PretrainedConfig, at: str, kind: str) -> Anatomy:
    """The anatomy of a trunk that lives at path `at` of the network. `kind` is encoder, decoder or seq2seq."""
    row = ROWS.get(config.model_type) or inspect_row(trunk, config)
    lone = kind != "seq2seq" and config.is_encoder_decoder  # a head on an encoder-decoder reads the encoder
    lists = [trunk.get_submodule(path) for path in row.blocks if has(trunk, path) and not (lone and path.startswith("decoder."))]
    paths = {id(m): f"{at}.{n}" for n, m in trunk.named_modules()}
    blocks = [block for entry in lists for block in entry.children()]
    roles = {paths[id(block)]: dict(projections(block, row.roles)) for block in blocks}
    return Anatomy(
        kind=kind,
        blocks=tuple(roles),
        linears={f"{block}.{path}": role for block, found in roles.items() for path, role in found.items()},
        attentions=tuple(f"{block}.{row.attention}" for block in roles if row.attention),
        embedding=f"{at}.{row.embedding}",
        tails=tuple(f"{at}.{tail}" for tail in (t.replace("decoder.", "encoder.") if lone else t for t in row.tails) if has(trunk, tail)),
        unused=tuple(f"{at}.{part}" for part in ((*row.unused, "decoder") if lone else row.unused) if has(trunk, part)),
        width=config.hidden_size,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // config.num_attention_heads,
        positions=position_limit(trunk, config),
        position_offset=first_position(trunk),
    )


def has(module: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in module.named_modules())


def projections(block: nn.Module, roles: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The linear layers of one block with their roles. 4-bit and 8-bit layers are subclasses of nn.Linear."""
    for path, module in block.named_modules():
        if path in roles and isinstance(module, nn.Linear | Conv1D):
            yield path, roles[path]


def first_position(trunk: nn.Module) -> int:
    """RoBERTa and its kin keep a row of the position table for padding and count from behind it."""
    tables = [m for n, m in trunk.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    return next((m.padding_idx + 1 for m in tables if m.padding_idx is not None), 0)


def position_limit(trunk: nn.Module, config: PretrainedConfig) -> int | None:
    """How long a row may be, or None where positions are relative without a limit (T5)."""
    limit = getattr(config, "max_position_embeddings", None)
    return limit - first_position(trunk) if limit else None


def inspect_row(trunk: nn.Module, config: PretrainedConfig) -> Row:
    """A row for an architecture that is not in the table, from the shapes and names of its modules."""
    blocks = [n for n, m in trunk.named_modules() if isinstance(m, nn.ModuleList) and len(m) == getattr(config, "num_hidden_layers", 0)]
    tables = [n for n, m in trunk.named_modules() if isinstance(m, nn.Embedding) and m.num_embeddings == config.vocab_size]
    found = {"a list of num_hidden_layers blocks": blocks, "a token embedding of vocab_size rows": tables}
    if missing := [what for what, where in found.items() if not where]:
        raise Refusal(
            f"cannot read the architecture {config.model_type!r}: no {' and no '.join(missing)} found",
            where="model",
            fix=f"add a row for it to networks/parts.py; known: {', '.join(sorted(ROWS))}",
        )
    block = trunk.get_submodule(blocks[0])[0]  # type: ignore[index]
    roles = {n: role_by_name(n) for n, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    owners = {path.rpartition(".")[0] for path in roles}  # the module that projects is the one that attends; others wrap it
    attention = next((n for n, m in block.named_modules() if n in owners and re.search("attn|attention", type(m).__name__.lower())), "")
    parent = blocks[0].rpartition(".")[0]
    beside = [".".join(filter(None, (parent, n))) for n, _ in trunk.get_submodule(parent).named_children()]
    after = [n for n in beside[beside.index(blocks[0]) + 1 :] if "norm" in n.lower() or n.endswith("ln_f")]
    return Row((blocks[0],), roles, attention, tables[0], tuple(after))


def role_by_name(path: str) -> str:
    """The role of a projection from its name; inside an attention the rest is `out`, outside it is `up`."""
    name = path.rsplit(".", 1)[-1].lower()
    hints = {"qkv": "query+key+value", "query_key_value": "query+key+value", "c_attn": "query+key+value", "gate_up": "gate+up", "gate": "gate", "up": "up"}
    hints |= {"down": "down", "fc2": "down", "w2": "down", "4h_to_h": "down", "fc1": "up", "w1": "gate", "w3": "up", "h_to_4h": "up"}
    hints |= {"query": "query", "q_": "query", "key": "key", "k_": "key", "value": "value", "v_": "value", "out": "out", "o_proj": "out"}
    for hint, role in hints.items():
        if hint in name:
            return role
    return "out" if "att" in path.lower() else "up"
