"""What models say to the desk's rows that they did not learn from: loss a token of the replies by split and language, and greedy replies.

    python models/desk_lm/judge.py MODEL ... [--samples 5]

MODEL is a folder or an embedded name. One JSON object a model; with --samples its replies to all dev messages are counted, and the first of each language shown.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence

import torch

from tunesmith.data.desk import Record, records
from tunesmith.evaluate.evaluate import Probe
from tunesmith.networks.decode import Sampling
from tunesmith.networks.load import load_network, load_tokenizer, origin
from tunesmith.predicting import write
from tunesmith.sources.table import Table
from tunesmith.sources.text.encode import Reader, Task
from tunesmith.sources.text.examples import Dialogue, Turn

TASK = Task("generate", "generate")
LONGEST = 96  # tokens of a reply


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("models", nargs="+")
    args.add_argument("--samples", type=int, default=0)
    options = args.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        source = origin(name)
        reader = Reader(load_tokenizer(source), 512)
        net = load_network(source, generates=True, tokenizer=reader.tokenizer).float()
        print(json.dumps({"model": name, **{f"{split} {lang}": loss(net, reader, split, lang) for split in ("dev", "test") for lang in ("en", "zh")}}))
        for lang in ("en", "zh") if options.samples else ():
            rows = of("dev", lang)
            answers = write(net, reader, [(Turn("user", row.text, False),) for row in rows], Sampling(LONGEST))
            print(json.dumps({lang: counted(rows, answers, reader)}))
            for row, answer in list(zip(rows, answers, strict=True))[: options.samples]:
                print(f"{row.id} {row.intent}\n  > {row.text}\n  < {answer}")


def of(split: str, lang: str) -> list[Record]:
    return [row for row in records(split) if row.lang == lang]


def loss(net, reader: Reader, split: str, lang: str) -> dict[str, float]:
    """Nats and perplexity a token of the replies, their end included."""
    rows = of(split, lang)
    examples = [Dialogue((Turn("user", row.text, False), Turn("assistant", row.reply, True)), i) for i, row in enumerate(rows)]
    table = Table(reader.encode(examples, TASK).columns, "generate")
    found = Probe(split, lambda _: table.once(), "generate", (), [row.reply for row in rows]).ask(net).loss
    return {"loss": round(found, 3), "perplexity": round(math.exp(found), 2)}


def counted(rows: Sequence[Record], answers: Sequence[str], reader: Reader) -> dict[str, str]:
    """Replies that came to an end, are in the language of the message, differ from all others, and name the order of a message that has one."""
    ended = sum(len(reader.tokenizer(answer)["input_ids"]) < LONGEST for answer in answers)
    right = sum(bool(re.search(r"[\u4e00-\u9fff]", answer)) == (row.lang == "zh") for row, answer in zip(rows, answers, strict=True))
    orders = [([row.text[s.start : s.end] for s in row.spans if s.label == "order"], answer) for row, answer in zip(rows, answers, strict=True)]
    named = [any(order in answer for order in found) for found, answer in orders if found]
    return {"rows": str(len(rows)), "ended": str(ended), "language": str(right), "different": str(len(set(answers))), "order": f"{sum(named)} of {len(named)}"}


if __name__ == "__main__":
    main()
