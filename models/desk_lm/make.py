"""Make the embedded language model, `desk-lm`, or its larger teacher: corpus, tokenizer, random weights, three runs of our own loop, export.

    TUNESMITH_DATA=... python models/desk_lm/make.py WORK [--teacher] [--ship]

WORK holds everything that is made, and what is there already is not made again: an interrupted training continues. `--ship` writes the
model into the package. The recipes, `read.yaml`, `answer.yaml` and `reply.yaml`, name their files from within WORK.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tunesmith.artifact import export
from tunesmith.data import desk
from tunesmith.progress import Reporter
from tunesmith.recipe import read_recipe
from tunesmith.train import run
from wording import hasty, read, served, spared, varied, worded

HERE = Path(__file__).resolve().parent
PACKAGE = Path(desk.__file__).parent
SPECIAL = {"pad_token": "<|pad|>", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STORY = ("Tell me a story.", "Please tell me a short story.", "I would like to hear a story.", "A story, please!", "Write a little story.")
TO_ZH = ("Translate into Chinese: {}", "How do you say this in Chinese? {}", "请翻译成中文：{}", "这句话用中文怎么说？{}")
TO_EN = ("Translate into English: {}", "请翻译成英文：{}", "这句话用英文怎么说？{}", "What does this mean in English? {}")

PIECES = r"'[a-z]+| ?[A-Za-z]+|\p{N}|[^\s\p{P}\p{S}\p{N}A-Za-z]+| ?[\p{P}\p{S}]+|\s+"  # Latin words, digits, Chinese, punctuation: never in one token

Chat = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Size:
    """width of a token's state, blocks, inner width of a feed-forward, heads and key heads; steps of the three runs and their peak rates."""

    width: int
    blocks: int
    inner: int
    heads: int
    keys: int
    steps: tuple[int, int, int]
    rates: tuple[float, float, float]


SIZES = {
    "desk-lm": Size(256, 5, 512, 4, 2, (1500, 2600, 600), (3e-3, 2e-3, 1e-3)),
    "desk-lm-teacher": Size(384, 6, 768, 6, 3, (1500, 2600, 600), (2e-3, 1.3e-3, 7e-4)),
}
VOCABULARY = 6144
STAGES = ("read", "answer", "reply")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("work", type=Path)
    args.add_argument("--teacher", action="store_true")
    args.add_argument("--ship", action="store_true")
    args.add_argument("--corpus", action="store_true", help="only make the corpus, the tokenizer and the random weights")
    args.add_argument("--threads", type=int, default=1)
    options = args.parse_args()
    data = Path(os.environ["TUNESMITH_DATA"]).resolve()
    name = "desk-lm-teacher" if options.teacher else "desk-lm"
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(options.work)
    made = corpus(data)
    for stage in STAGES:
        written(f"{stage}.jsonl", made[stage])
    if not Path("tokenizer").exists():
        tokenizer(made["text"]).save_pretrained("tokenizer")
    start(name, Path(f"{name}-start"))
    if not options.corpus:
        train(name, options.threads)
    if options.ship:
        ship(Path(f"{name}-{STAGES[-1]}-model"), PACKAGE / "desk_lm")


# ------------------------------------------------------------------------------------------------ corpus


def corpus(data: Path) -> dict[str, list[Chat]]:
    """What each stage learns from, and the text that the tokenizer is made of. Of the desk, training rows alone."""
    dice = random.Random(0)
    rows = desk.records("train")
    stories = [chat(dice.choice(STORY), story) for story in told(data / "tinystories_sample/train_0.txt")]
    sentences = list(translations(data / "tatoeba_en_zh/cmn.txt", dice))
    reading = stories + sentences + [chat(*varied(row, dice)) for row in rows for _ in range(6)]
    messages = [chat(*varied(row, dice)) for row in rows for _ in range(20)]
    text = reading + messages + dice.sample(sentences, 3000)
    wording = read(HERE / "wording.txt")
    own = [chat(*pair) for pair in worded(wording, dice, 60)] + [chat(*served(row, wording, dice)) for row in rows for _ in range(12)]
    answering = own + dice.sample(messages, 6 * len(rows)) + dice.sample(sentences, 6000) + dice.sample(stories, 1500)
    plain = [hasty(served(row, wording, dice, ("order",)), dice) for row in rows for _ in range(10)] + list(worded(wording, dice, 25))
    plain += [varied(row, dice) for row in rows for _ in range(2)]
    replying = [chat(*pair) for pair in map(spared, plain) if pair] + dice.sample(sentences, 1500)
    unseen = {text.strip() for split in ("dev", "test") for row in desk.records(split) for text in (row.text, row.reply)}
    seen = {turn["content"].strip() for row in text + answering + replying for turn in row["messages"]}
    if seen & unseen:
        raise SystemExit(f"rows to judge by stand in the corpus: {sorted(seen & unseen)[:3]}")
    return {"read": reading, "answer": answering, "reply": replying, "text": text}


def chat(asked: str, answer: str) -> Chat:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def told(path: Path) -> list[str]:
    """Whole stories; the last of the file is cut off."""
    return [story.strip() for story in path.read_text(encoding="utf-8").split("<|endoftext|>")[:-1] if story.strip()]


def translations(path: Path, dice: random.Random) -> Iterator[Chat]:
    """Each pair of sentences asked for in one direction and in the other; only those in simplified characters, as the desk's are."""
    for line in path.read_text(encoding="utf-8").splitlines():
        english, chinese = line.split("\t")[:2]
        try:
            chinese.encode("gb2312")  # has no traditional characters
        except UnicodeEncodeError:
            continue
        yield chat(dice.choice(TO_ZH).format(english), chinese)
        yield chat(dice.choice(TO_EN).format(chinese), english)


def written(name: str, rows: Sequence[Chat]) -> None:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ tokenizer and weights


def tokenizer(rows: Sequence[Chat]) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE. Each digit is a token of its own, so that a number can be copied that was never seen."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    special = [*SPECIAL.values(), *ROLES]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    raw.train_from_iterator((turn["content"] for row in rows for turn in row["messages"]), trainer)
    raw.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", raw.token_to_id("<|begin|>"))])
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=raw, model_max_length=512, extra_special_tokens=list(ROLES), clean_up_tokenization_spaces=False, **SPECIAL
    )
    made.chat_template = TEMPLATE
    return made


def start(name: str, folder: Path) -> None:
    """A Llama with random weights and its tokenizer."""
    if folder.exists():
        return
    size, reader = SIZES[name], hf.AutoTokenizer.from_pretrained("tokenizer")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(reader), hidden_size=size.width, num_hidden_layers=size.blocks, intermediate_size=size.inner, num_attention_heads=size.heads,
        num_key_value_heads=size.keys, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=reader.pad_token_id,
        bos_token_id=reader.bos_token_id, eos_token_id=reader.eos_token_id,
    )  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    reader.save_pretrained(folder)


# ------------------------------------------------------------------------------------------------ training


def train(name: str, threads: int) -> None:
    """Each stage by its recipe, from what the one before exported; prints what the desk's dev rows say before and after."""
    model, size = f"{name}-start", SIZES[name]
    for stage, steps, rate in zip(STAGES, size.steps, size.rates, strict=True):
        given = [f"model={model}", f"budget.steps={steps}", f"update.rate={rate}", f"out={name}-{stage}", f"threads={threads}"]
        record = run(read_recipe(HERE / f"{stage}.yaml", given), Reporter()).record
        kept = ("before", "after", "train_seconds", "real_tokens_per_second", "total_parameters")
        print(json.dumps({"stage": stage, **{key: record.get(key) for key in kept}}), flush=True)
        model = f"{name}-{stage}-model"
        if not Path(model).exists():
            export(f"{name}-{stage}", Path(model))


def ship(model: Path, folder: Path) -> None:
    """The weights in bf16, the tokenizer and the two configurations, in the package."""
    folder.mkdir(exist_ok=True)
    state = {key: value.to(torch.bfloat16).contiguous() for key, value in load_file(model / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(model / file, folder / file)
    config = json.loads((model / "config.json").read_text()) | {"dtype": "bfloat16"}
    reader = json.loads((model / "tokenizer_config.json").read_text())
    for file, values in (("config.json", config), ("tokenizer_config.json", {k: v for k, v in reader.items() if "local" not in k})):
        (folder / file).write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
