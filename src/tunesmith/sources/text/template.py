"""How a dialogue becomes one text, and which of its characters are to be learnt: the model's chat template, or a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Refusal
from .examples import Turn


@dataclass(frozen=True)
class Rendered:
    """`learn` are half-open character spans of `text`; `prompt` is how much of it stands before the last answer."""

    text: str
    learn: tuple[tuple[int, int], ...]
    prompt: int


@dataclass(frozen=True)
class Template:
    """`chat`: the tokenizer's own template (transformers renders it in a sandbox). `plain`: each turn on a line, answers closed by EOS."""

    tokenizer: Any
    kind: str  # chat | plain

    @classmethod
    def of(cls, tokenizer: Any, wanted: str = "auto") -> Template:
        has = bool(getattr(tokenizer, "chat_template", None))
        if wanted == "chat" and not has:
            raise Refusal("this tokenizer has no chat template", where="data.template", fix="template: plain, or a model that was trained to chat")
        return cls(tokenizer, "chat" if has and wanted != "plain" else "plain")

    def render(self, turns: Sequence[Turn], everything: bool = False) -> Rendered:
        """The whole dialogue. `everything`: loss on what was asked, too."""
        text = self.text(turns, answer=False)
        spans = [self.span(turns, i, text) for i, turn in enumerate(turns) if turn.role == "assistant" and turn.learn]
        return Rendered(text, ((0, len(text)),) if everything else tuple(spans), spans[-1][0] if spans else len(text))

    def span(self, turns: Sequence[Turn], i: int, text: str) -> tuple[int, int]:
        """Where answer i stands, with what closes it. A template that rewrites earlier turns once later ones come cannot be cut."""
        before, upto = self.asked(turns[:i]), self.text(turns[: i + 1], answer=False)
        if not (upto.startswith(before) and text.startswith(upto)):
            raise Refusal(
                "the chat template changes what it wrote before, once more turns follow",
                where="data.template",
                why=f"expected the text to go on after {before[-60:]!r}",
                fix="template: plain, or dialogues with one answer",
            )
        return len(before), len(upto)

    def asked(self, turns: Sequence[Turn]) -> str:
        """The text up to where the model is to write."""
        return self.text(turns, answer=True)

    def text(self, turns: Sequence[Turn], answer: bool) -> str:
        if self.kind == "plain":
            return "".join(turn.content + (self.tokenizer.eos_token or "" if turn.role == "assistant" else "\n") for turn in turns)
        if not turns:
            return ""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)

    def special(self, text: str) -> bool:
        """Whether the tokenizer should add its special tokens: not where the template wrote the first one itself."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos)) and self.kind == "plain"
