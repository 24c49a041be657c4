"""What a masked language model does between its last states and its vocabulary, whatever its class calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ..errors import Refusal
from .trunk import Reached

VOICED = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "WithLMHead",
)  # classes that are published with a vocabulary


def voiced(architectures: Sequence[str] | None) -> bool:
    """Whether a checkpoint was saved with the head that predicts words. One that does not say what it is may have been."""
    return not architectures or any(name.endswith(VOICED) for name in architectures)


def before_vocabulary(model: Any, trunk: nn.Module, h: Tensor) -> Tensor:
    """(M, D) last states -> (M, D'), what the output embedding reads: the class's own head runs on these states, and stops where the vocabulary begins.

    Of BERT it is a dense layer, GELU and a norm; of ModernBERT a norm without a bias; classes place it differently, so it is heard, not known.
    """
    heard: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        heard.append(args[0])
        raise Reached

    def said(*args: object, **kwargs: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=h[None])  # type: ignore[arg-type]

    own, hook = trunk.__dict__.get("forward"), model.get_output_embeddings().register_forward_pre_hook(note)
    trunk.forward = said  # type: ignore[method-assign]
    try:
        model(input_ids=h.new_zeros(1, len(h), dtype=int))  # type: ignore[call-overload]
    except Reached:
        return heard[0][0]
    finally:
        hook.remove()
        if own is None:
            del trunk.__dict__["forward"]
        else:
            trunk.forward = own  # type: ignore[method-assign]
    raise Refusal(f"{type(model).__name__} reads its vocabulary in a way of its own", where="model", fix="another masked model, such as BERT or RoBERTa")
