"""Random tiny models of the published classes, and batches for them: what the laws are held against.

Every weight is moved away from its initial value, so that biases, norms and attention patterns all matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import torch
import transformers as hf
from torch import Tensor, nn

from tunesmith.core import Batch, Ragged
from tunesmith.networks import attention
from tunesmith.networks.heads import HeadSpec, Pool
from tunesmith.networks.load import add_head, attention_for, look_over
from tunesmith.networks.transformer import Transformer

VOCABULARY, CLASSES, WINDOW = 97, 3, 8
LENGTHS = (5, 11, 20, 3, 11)
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": VOCABULARY}
BERT = {**SIZE, **STILL, "max_position_embeddings": 64, "type_vocab_size": 2}
GROUPED = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODERS: dict[str, hf.PretrainedConfig] = {
    "bert": hf.BertConfig(**BERT),
    "roberta": hf.RobertaConfig(**BERT, pad_token_id=1),
    "xlm-roberta": hf.XLMRobertaConfig(**BERT, pad_token_id=1),
    "electra": hf.ElectraConfig(**BERT, embedding_size=16),
    "distilbert": hf.DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=VOCABULARY, dropout=0.0, attention_dropout=0.0, max_position_embeddings=64
    ),
    "modernbert": hf.ModernBertConfig(**SIZE, **SPECIAL, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=WINDOW),
    "deberta-v2": hf.DebertaV2Config(**BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    "mpnet": hf.MPNetConfig(**{k: v for k, v in BERT.items() if k != "type_vocab_size"}),
}
DECODERS: dict[str, hf.PretrainedConfig] = {
    "gpt2": hf.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=64, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0),
    "gpt-neox": hf.GPTNeoXConfig(**SIZE, max_position_embeddings=64),
    "llama": hf.LlamaConfig(**GROUPED),
    "mistral": hf.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "qwen2": hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, tie_word_embeddings=True),
    "qwen3": hf.Qwen3Config(**GROUPED, head_dim=8),
    "gemma2": hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=1.5),
    "gemma3": hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "phi3": hf.Phi3Config(**GROUPED, **SPECIAL, sliding_window=WINDOW),
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "dropout_rate": 0.0, "decoder_start_token_id": 0}
BART = {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 48))}
SEQ2SEQ: dict[str, hf.PretrainedConfig] = {
    "t5": hf.T5Config(**T5, vocab_size=VOCABULARY),
    "bart": hf.BartConfig(**BART, **SPECIAL, d_model=32, vocab_size=VOCABULARY, max_position_embeddings=64, dropout=0.0),
}
FAMILIES = ENCODERS | DECODERS | SEQ2SEQ
WRITERS = [*DECODERS, *SEQ2SEQ]
TYPED = ["bert", "electra", "deberta-v2"]
WINDOWED = ["modernbert", "mistral", "qwen2", "gemma2", "gemma3", "phi3"]


class Letters:
    """A tokenizer: one token a character."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": [5 + ord(c) % (VOCABULARY - 5) for c in text]}

    def __len__(self) -> int:
        return VOCABULARY


def built(auto, config: hf.PretrainedConfig, kernel: str, seed: int) -> nn.Module:
    """A model with random weights, in eval mode. Models share their configuration object, hence the copy."""
    torch.manual_seed(seed)
    attention.register()
    model = auto.from_config(copy.deepcopy(config), attn_implementation=kernel).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def plain(net: Transformer) -> nn.Module:
    """The same model as Hugging Face computes it: a fresh eager instance with the same weights."""
    model = type(net.model)._from_config(copy.deepcopy(net.model.config), attn_implementation="eager").eval()
    model.load_state_dict(net.model.state_dict())
    return model


def reader(config: hf.PretrainedConfig, seed: int = 0, pool: Pool | None = None, dropout: float = 0.0) -> Transformer:
    """A trunk with a head of three classes."""
    net = look_over(built(hf.AutoModel, config, attention_for(config), seed), False, pool, Letters())
    net.labels = ("good", "bad")
    add_head(net, "task", HeadSpec(CLASSES, dropout=dropout), seed)
    return net


def writer(config: hf.PretrainedConfig, seed: int = 0, **changed: object) -> Transformer:
    """A language model with its vocabulary."""
    config = copy.deepcopy(config)
    for key, value in changed.items():
        setattr(config, key, value)
    auto = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    return look_over(built(auto, config, attention_for(config), seed), True, None, Letters())


@lru_cache(maxsize=64)
def _kept(name: str) -> Transformer:
    family, _, job = name.partition(":")
    return writer(FAMILIES[family]) if job else reader(FAMILIES[family])


def network(name: str) -> Transformer:
    """A fresh copy of `bert`, `llama` ... with a head, or of `llama:lm` with its vocabulary."""
    return copy.deepcopy(_kept(name))


def rows(*lengths: int, seed: int = 1) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged(torch.randint(5, VOCABULARY, (sum(lengths),), generator=generator), lengths)


def texts(*lengths: int, seed: int = 1) -> Batch:
    """Rows of text with a class each."""
    return Batch({"ids": rows(*lengths, seed=seed), "label": torch.arange(len(lengths)) % CLASSES})


def spoken(*lengths: int, seed: int = 1) -> Batch:
    """Rows whose tokens from the second on are to be predicted, but for every third."""
    ids = rows(*lengths, seed=seed)
    at = [[i for i in range(n - 1) if i % 3 < 2] for n in lengths]
    label = [row[[i + 1 for i in spots]] for row, spots in zip(ids.rows(), at, strict=True)]
    sizes = tuple(len(spots) for spots in at)
    return Batch(
        {
            "ids": ids,
            "at": Ragged(torch.cat([torch.tensor(spots, dtype=torch.long) for spots in at]), sizes),
            "label": Ragged(torch.cat(label), sizes),
        }
    )


def answered(*lengths: int, seed: int = 1) -> Batch:
    """Rows of text, each with a text to write."""
    target = rows(*(1 + n % 4 for n in lengths), seed=seed + 1)
    return Batch({"ids": rows(*lengths, seed=seed), "target": target, "label": target})


def batch_for(net: Transformer, *lengths: int, seed: int = 1) -> Batch:
    """What suits the network: classes for a head, tokens for a vocabulary."""
    lengths = lengths or LENGTHS
    make: Callable[..., Batch] = texts if len(net.heads) else answered if net.anatomy.kind == "seq2seq" else spoken
    return make(*lengths, seed=seed)


def answer(net: Transformer, batch: Batch) -> Tensor:
    """The output that training looks at."""
    return net.logits(batch) if len(net.heads) else net.label_logp(batch)


def stir(params: dict[str, nn.Parameter], size: float = 0.05, seed: int = 3) -> None:
    """Move parameters by a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in sorted(params.items()):
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype), alpha=size)
