"""Every other method of PEFT, in our loop: its modules injected in place, and taken out again bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Insert, Method, Network
from ..errors import Refusal
from .linear import quantised
from .peft_types import BOOKKEEPING, DEFAULTS, NEEDS, OWN, UNFIT, closest, config_types, targets

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner

ADAPTER = "default"  # the name PEFT gives an adapter of which there is one


@dataclass(frozen=True)
class Peft(Method):
    """The method that PEFT calls `type`, with the arguments of its configuration as `options`.

    type      IA3, LN_TUNING, VERA, OFT, BOFT, LOHA, LOKR, FOURIERFT, ... (`python -c "import peft; print(list(peft.PeftType))"`)
    options   such as {r: 8, target_modules: [q_proj, v_proj]}. Without `target_modules`: those that PEFT names for the
              architecture; where it names none, all linear layers of the blocks (LN_TUNING: norms; BEFT: values; IA3: keys,
              values and the exit of the feed-forward, its section 3.3; a fused projection counts whole)

    Soft prompts are ours (`prompt`, `prefix`). Whether the start is neutral and whether the change merges is up to the type.
    """

    type: str = "IA3"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    paper: ClassVar[str] = "Mangrulkar et al. 2022 (PEFT), https://github.com/huggingface/peft; IA3: https://arxiv.org/abs/2205.05638"
    neutral: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    rates: ClassVar[Mapping[str, float]] = {"encoder": 5e-3, "decoder": 3e-3, "seq2seq": 3e-3}

    def refuse(self, net: Network) -> None:
        known = config_types()
        kind = self.type.upper()
        if kind in OWN:
            why = "it puts vectors before the text instead of changing layers, which is a method of its own here"
            raise Refusal(f"{kind} is not reached through peft", where="method.type", why=why, fix=f"method: {OWN[kind]}")
        if kind in UNFIT:
            why, fix = UNFIT[kind]
            raise Refusal(f"{kind} cannot be trained in this loop", where="method.type", why=why, fix=fix)
        if kind not in known:
            fix = closest(kind, known.keys() - OWN.keys() - UNFIT.keys())
            raise Refusal(f"PEFT has no method {self.type!r}", where="method.type", fix=fix)
        names = {f.name for f in fields(known[kind])} - BOOKKEEPING
        if odd := [name for name in self.options if name not in names]:
            raise Refusal(f"{kind} has no option {odd[0]!r}", where=f"method.options.{odd[0]}", fix=closest(str(odd[0]), names))
        if kind in NEEDS and not self.options.get(NEEDS[kind]):
            raise Refusal(f"{kind} needs {NEEDS[kind]}", where="method.options", fix=f"options: {{{NEEDS[kind]}: [...]}}")

    def inject(self, net: Network) -> list[Insert]:
        return [Bridge(net, self)]

    def config(self, net: Network) -> PeftConfig:
        """PEFT's configuration for this network, freshly made, because PEFT fills it in."""
        kind = self.type.upper()
        return config_types()[kind](**{**targets(kind, net, self.options), **DEFAULTS.get(kind, {}), **self.options})

    def trains(self, name: str, net: Network) -> bool:
        bridge = bridge_of(net)
        return bridge is not None and name in bridge.trainable

    def notes(self, net: Network) -> list[str]:
        bridge = bridge_of(net)
        return [] if bridge is None else [f"peft {self.type.upper()}: {text}" for text in bridge.said]


# ------------------------------------------------------------------------------------------------ what is put in and taken out


def bridge_of(net: Network) -> Bridge | None:
    return vars(net).get("peft_bridge")


class Bridge(Insert):
    """PEFT's tuner in a network, and what it takes to undo it: the modules that it replaced and the weights that it rewrote.

    It is no child of the network: PEFT's own modules are, under PEFT's own names (`...q_proj.ia3_l.default`). Raises Refusal,
    with the network as it was, where PEFT raises anything at all.
    """

    def __init__(self, net: Network, method: Peft):
        super().__init__()
        self.kind, self.shown, self.merged = method.type.upper(), True, False
        self.children_before = [(m, dict(m._modules)) for m in net.model.modules()]
        flags = [(p, p.requires_grad) for p in net.parameters()]
        # some starts rewrite base weights (PiSSA, OLoRA): all are copied for a moment, and what did not change is let go
        copies = [(p, p.data.clone()) for p in net.model.parameters()]
        known = {id(t) for t in (*net.modules(), *net.parameters(), *net.buffers())}
        try:
            tuner, self.said = build(net, method)
        except Exception as e:  # PEFT raises nearly every kind, from deep inside
            self.restore(net, copies)
            for p, flag in flags:
                p.requires_grad_(flag)
            raise refusal(e, method) from e
        self.held = (net, tuner)  # a tuple, lest the network become a child of its guest
        self.rewritten = [place for p, copy in copies if not torch.equal(p.data, copy) for place in replaced(net, p, copy)]
        self.trainable = frozenset(n for n, p in net.named_parameters() if n.startswith("model.") and p.requires_grad)
        self.settle(net, known, method)
        vars(net)["peft_bridge"] = self  # not a child

    def settle(self, net: Network, known: set[int], method: Peft) -> None:
        """Make PEFT's modules behave like ours: in the network's mode, and each of their tensors in the state, once."""
        derived = any(k.startswith("save_") and v is False for k, v in method.options.items())  # the user wants them drawn again
        for module in net.model.modules():
            if id(module) not in known:
                module.training = net.training
            if not derived:
                module._non_persistent_buffers_set -= {n for n, t in module._buffers.items() if id(t) not in known}
        seen: set[int] = set()
        twice: list[str] = []
        for name, tensor in net.state_dict(keep_vars=True).items():
            if id(tensor) in seen and id(tensor) not in known:
                twice.append(name)
            seen.add(id(tensor))
        self.hook = net.register_state_dict_post_hook(partial(forget, tuple(twice)))

    @property
    def on(self) -> bool:  # type: ignore[override]
        return self.shown

    @on.setter
    def on(self, value: bool) -> None:
        """PEFT's own switch, which also touches `requires_grad`; that is put back, as the run decides it."""
        if value == self.shown:
            return
        self.shown = value
        flags = [(p, p.requires_grad) for p in self.held[0].parameters()]
        for layer in self.layers():
            layer.enable_adapters(value)
        for p, flag in flags:
            p.requires_grad_(flag)
        for host, name, original, rewritten in self.rewritten:
            host._parameters[name] = rewritten if value else original

    def layers(self) -> Iterator[Any]:
        """PEFT's layers, and its wrappers of modules that train whole."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        return (m for m in self.held[0].model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper))

    def fold(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        try:
            for layer in self.layers():
                if isinstance(layer, BaseTunerLayer):
                    if quantised(layer.get_base_layer()):
                        raise ValueError("the base is stored in 4 or 8 bits, and rounding the change to them moves the outputs")
                    deepcopy(layer).merge(safe_merge=True)  # a trial of every layer first: no network is left half merged
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as e:
            what, fix = f"PEFT cannot fold {self.kind} into these weights", "keep the artifact, which Tunesmith loads on its base"
            raise Refusal(what, where="export", why=first(e), fix=fix) from e
        self.held[1].merge_and_unload(safe_merge=True)
        self.merged = True

    def ungraft(self) -> None:
        net = self.held[0]
        if not self.merged:
            self.on = False
            self.restore(net, [])
        self.hook.remove()
        del vars(net)["peft_bridge"]

    def restore(self, net: Network, copies: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        for module, children in self.children_before:
            module._modules.clear()
            module._modules.update(children)
        for p, copy in copies:
            p.data.copy_(copy)
        net.model.__dict__.pop("peft_config", None)


def build(net: Network, method: Peft) -> tuple[BaseTuner, tuple[str, ...]]:
    """PEFT's tuner, its layers now in the network, and what it said meanwhile."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    model: Any = net.model
    out = model.get_output_embeddings()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config: Any = method.config(net)
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, ADAPTER)
        tuner._cast_adapter_dtype(ADAPTER)
    if model.get_output_embeddings() is not out:
        fix = "targets inside the blocks; method: head moves an output embedding that is not tied"
        raise Refusal("PEFT would change the output embedding, whose weight our loss reads by itself", where="method.options", fix=fix)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("it finds nothing to train here")
    return tuner, tuple(dict.fromkeys(str(w.message) for w in caught))


def replaced(net: Network, p: nn.Parameter, values: Tensor) -> list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]:
    """Give a base weight that PEFT rewrote its values again, and put a new parameter with PEFT's in its place: added, hence stored.

    Returns (host, name, original, rewritten) for each place.
    """
    rewritten = nn.Parameter(p.data, requires_grad=p.requires_grad)
    p.data = values
    places = [(m, n, p, rewritten) for m in net.model.modules() for n, q in m._parameters.items() if q is p]
    for host, name, _, _ in places:
        host._parameters[name] = rewritten
    return places


def forget(names: tuple[str, ...], _: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
    """A state hook: tensors that several layers share are stored under their first name."""
    for name in names:
        state.pop(prefix + name, None)


def refusal(error: Exception, method: Peft) -> Refusal:
    if isinstance(error, Refusal):
        return error
    fix = "other options, a base that is not quantised, or method: lora"
    return Refusal(f"PEFT cannot put {method.type.upper()} into this network", where="method.options", why=first(error), fix=fix)


def first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
