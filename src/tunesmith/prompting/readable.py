"""A designed prompt as what it is: a text for a person, and messages for any server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import write_file
from ..sources.text.wording import Wording

FILES = ("prompt.json", "prompt.txt", "messages.json")


def readable(wording: Wording, prior: Mapping[str, float], measured: Mapping[str, Any]) -> dict[str, bytes]:
    """prompt.txt has {text} where a text belongs and {label} where the answer does. `prior`: what each label scores without a text, to be taken from its score; empty
    where nothing is calibrated or it depends on the text.
    """
    pair = "{pair}" if "{pair}" in wording.template else None
    asked = wording.asked("{text}", pair)
    about = {
        "prompt": f"{asked.before}{asked.lead}{{label}}{asked.after}",
        "words": wording.words,
        "score": "the sum of a word's token log-probabilities after the prompt" + (", less the label's prior" if prior else ""),
        "prior": prior,
        "measured": measured,
        **{k: v for k, v in wording.plain().items() if k in ("template", "instruction", "shots", "pool", "nearest", "embedder", "chat")},
    }
    messages = [{"role": turn.role, "content": turn.content} for turn in wording.turns("{text}", pair)]
    text = about["prompt"] + "\n"
    return {
        "prompt.json": json.dumps(about, indent=2, ensure_ascii=False).encode(),
        "prompt.txt": text.encode(),
        "messages.json": json.dumps(messages, indent=2, ensure_ascii=False).encode(),
    }


def handed_out(artifact: Path, out: Path) -> list[str]:
    """The same files in a folder of their own: all that another server needs."""
    for name in FILES:
        write_file(out / name, (artifact / name).read_bytes())
    return sorted(FILES)
