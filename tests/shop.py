"""A tiny workshop on disk: models with their tokenizers, saved as anybody would, and files of rows for every task."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(60))]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}


def tokenizer(closed: bool = True) -> hf.PreTrainedTokenizerFast:
    """Words w0 ... w59. `closed`: [CLS] and [SEP] around each text, as encoders have them."""
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece()
    if closed:
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if closed else ["input_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=inputs, model_max_length=64, **special)


def encoder(folder: Path) -> Path:
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(vocab_size=len(WORDS), pad_token_id=0, **SIZE)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def decoder(folder: Path, tied: bool = False) -> Path:
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.LlamaConfig(vocab_size=len(WORDS), num_key_value_heads=1, tie_word_embeddings=tied, **special, **SIZE)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer(closed=False).save_pretrained(folder)
    return folder


def seq2seq(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    tokenizer(closed=False).save_pretrained(folder)
    return folder


def texts(n: int, seed: int = 0) -> list[tuple[str, int]]:
    """Texts whose words come from one of two halves of the vocabulary, and which half."""
    dice = random.Random(seed)
    return [(" ".join(f"w{dice.randrange(30) + 30 * (i % 2)}" for _ in range(dice.randint(2, 9))), i % 2) for i in range(n)]


def tags(text: str, half: int) -> list[dict]:
    words = text.split()
    return [{"start": 0, "end": len(words[0]), "label": "ab"[half]}]


SHAPES = {
    "classify": lambda t, h: {"text": t, "label": "ab"[h]},
    "multi": lambda t, h: {"text": t, "labels": ["ab"[h], "c"] if len(t) % 2 else ["ab"[h]]},
    "pair": lambda t, h: {"premise": t, "hypothesis": t[::-1].strip() or "w1", "label": "ab"[h]},
    "tag": lambda t, h: {"text": t, "spans": tags(t, h)},
    "score": lambda t, h: {"text": t, "score": h + len(t) / 100},
    "generate": lambda t, h: {"prompt": t, "completion": f"w{30 * h} w{30 * h + 1}"},
    "messages": lambda t, h: {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": f"w{30 * h}"}]},
    "embed": lambda t, h: {"anchor": t, "positive": f"w{30 * h} {t}"},
    "grouped": lambda t, h: {"text": t, "label": "ab"[h]},
    "plain": lambda t, h: {"text": t},
    "prefer": lambda t, h: {"prompt": t, "chosen": f"w{30 * h} w{30 * h + 1}", "rejected": f"w{30 - 30 * h} w{31 - 30 * h} w4"},
    "judged": lambda t, h: {"prompt": t, "completion": f"w{30 * h} w{30 * h + 1}" if len(t) % 2 else f"w{30 - 30 * h}", "label": bool(len(t) % 2)},
}


def rows(path: Path, shape: str, n: int = 40, seed: int = 0) -> Path:
    """A JSONL file of n rows."""
    path.write_text("".join(json.dumps(SHAPES[shape](t, h)) + "\n" for t, h in texts(n, seed)))
    return path


def recipe(work: Path, shape: str = "classify", method: str | dict = "lora", **more: object) -> dict:
    """A recipe as a dict on the model in work/model, on the CPU, where a run can be repeated to the bit; `more` replaces sections."""
    task = {"multi": "classify", "pair": "classify", "messages": "generate", "plain": "generate", "grouped": "embed"}.get(shape, shape)
    train = work / f"{shape}.jsonl"
    if not train.exists():
        rows(train, shape)
    base = {
        "model": str(work / "model"), "task": task, "data": {"train": str(train), "eval": str(train)}, "method": method,
        "budget": {"steps": 6}, "update": {"batch": 8, "rate": 1e-3}, "checkpoint": {"every": 1}, "evaluate": {"every": 3, "samples": 2, "max_new_tokens": 4},
        "device": "cpu", "dtype": "fp32", "kernel": "matmul", "threads": 1, "out": str(work / "run"),
    }  # fmt: skip
    return {**base, **more}
