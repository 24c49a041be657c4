"""The files beside a Hugging Face model that make its folder an embedder for sentence-transformers (2.2 and later), SetFit and mteb."""

from __future__ import annotations

import json
from typing import Any

from .sources.text.encode import Reader

MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
STEPS = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def sentence_files(width: int, pool: str, reader: Reader) -> dict[str, bytes]:
    """By path in the folder. Its `encode_query` and `encode_document` put our prompts of anchor and positive before a text, its `encode` that of text."""
    contents: dict[str, Any] = {
        "modules.json": [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(STEPS)],
        "sentence_bert_config.json": {"max_seq_length": reader.max_length, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": width, **{mode: name == pool for name, mode in MODES.items()}, "include_prompt": True},
        "2_Normalize/config.json": {},
        "config_sentence_transformers.json": {**prompts(reader), "similarity_fn_name": "cosine", "__version__": {}},
    }
    return {path: json.dumps(content, indent=2, ensure_ascii=False).encode() for path, content in contents.items()}


def prompts(reader: Reader) -> dict[str, Any]:
    given = reader.prompts
    if "text" in given and not {"anchor", "positive"} & set(given):
        return {"prompts": {"text": given["text"]}, "default_prompt_name": "text"}
    named = {"query": given.get("anchor", ""), "document": given.get("positive", ""), **({"text": given["text"]} if "text" in given else {})}
    return {"prompts": named if given else {}, "default_prompt_name": None}
