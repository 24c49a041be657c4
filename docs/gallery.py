"""Draws docs/gallery.md and its figures: what each of the guide's methods moves, on an encoder and on a decoder.

python docs/gallery.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tunesmith.explanation.explain import Explanation, explain
from tunesmith.methods import METHODS
from tunesmith.networks.load import load_tokenizer, origin

QWEN = {  # the published shape of Qwen3-0.6B
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 40960,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
HEAD = """\
# What moves: the eight methods, drawn

Dark trains, light rests, orange was added and trains. Like blocks are drawn once. `tunesmith explain METHOD --model YOURS` draws the same for your
model, and counts it; no weights are loaded for that. Made by `docs/gallery.py`.
"""


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    out = args.parse_args().out
    (out / "figures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        Path(work, "config.json").write_text(json.dumps(QWEN))
        load_tokenizer(origin("minilm")).save_pretrained(work)
        models = {"minilm": ("minilm", "all-MiniLM-L6-v2, an encoder"), "qwen3": (work, "Qwen3-0.6B, a decoder")}
        text = HEAD
        for name in (m for m, row in METHODS.items() if m != "peft" and row.learns and not row.builds):
            text += "\n" + section(out, name, {key: (explain(name, model), title) for key, (model, title) in models.items()})
    (out / "gallery.md").write_text(text, encoding="utf-8")


def section(out: Path, name: str, found: dict[str, tuple[Explanation, str]]) -> str:
    first = next(iter(found.values()))[0]
    assert first.text
    said = f"## {first.text.name}: {first.text.does}\n\n{first.about}\n"
    for key, (explanation, title) in found.items():
        figure = explanation.figure
        assert figure
        (out / "figures" / f"{name}-{key}.svg").write_text(explanation.svg + "\n", encoding="utf-8")
        said += f"\n**{title}.** Trains {figure.trainable:,} of {figure.total:,} parameters ({figure.trainable / figure.total:.2%}); saves "
        said += f"{figure.artifact / 1e6:,.2f} MB.\n\n![{first.text.name} on {title}](figures/{name}-{key}.svg)\n"
    return said


if __name__ == "__main__":
    main()
