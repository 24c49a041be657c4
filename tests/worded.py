"""Tiny models with a mask, and tokenizers that join words to the space before them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import shop

WORDS = [*shop.WORDS, "[MASK]", "good", "bad", "it", "was", ":"]


def masked_tokenizer() -> hf.PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=["input_ids", "token_type_ids", "attention_mask"], model_max_length=64, **special)


def masked(folder: Path) -> Path:
    torch.manual_seed(0)
    hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.1, **shop.SIZE)).save_pretrained(folder)
    masked_tokenizer().save_pretrained(folder)
    return folder


def spaced(kind: str) -> hf.PreTrainedTokenizerFast:
    """byte: GPT-2's way, a word after a space is another token than alone; meta: SentencePiece's way, a text begins with a space of its own."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if kind == "byte" else pre_tokenizers.Metaspace()
    raw.decoder = decoders.ByteLevel() if kind == "byte" else decoders.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "byte" else []
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "<mask>"], initial_alphabet=alphabet, show_progress=False)
    texts = ["It was good good bad very good, very bad.", "good", "bad", "very", "A film: It was good", "Sentiment: good\nSentiment: bad"] * 20
    raw.train_from_iterator(texts, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", mask_token="<mask>", pad_token="<s>")
