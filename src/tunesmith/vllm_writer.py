"""Writing through vLLM: the samples of networks/sample.py by kernels that were made for it, from weights that are handed over before each rollout.

It runs in this process, knows a configuration and no file, and is given the tuned network as a plain one. Its kernels round in ways of their own, so what it
drew is not to the bit what is scored, and what LoRA changes is rounded to the dtype of the base in which it is folded; sources/rollouts.py weighs by what lies
between (`mismatch` in the record).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .core import Delta, Method
from .errors import Refusal
from .methods.bitfit import make_room
from .methods.peft_bridge import Peft
from .networks.sample import Answer, Draw, Sample, rows_of, took
from .networks.transformer import Transformer
from .parallel import world

SURROUNDINGS = {  # in this process, at home, and nobody is told
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
WHERE, OWN = "objective.engine", "engine: own"


def foreseen(method: Method, bits: int | None, seq2seq: bool) -> None:
    """Raise Refusal, before weights are loaded, for what vLLM cannot run."""
    kind = type(method).__name__.lower()
    plain = "vLLM runs published classes"
    checks = [
        (find_spec("vllm") is None, "vllm is not installed", "pip install 'tunesmith[vllm]', on a machine with a GPU"),
        (not method.merges or isinstance(method, Peft), f"{plain}, and what `{kind}` adds cannot be folded into one here", f"{OWN}; or method: lora, full, layers, bitfit"),
        (bits is not None, f"{plain} in full precision here, and this base is stored in {bits} bits", f"{OWN}, or a base without `bits`"),
        (seq2seq, f"{plain} of decoders here", OWN),
        (world() > 1, "vLLM in this process would want the other processes too", f"{OWN}, or a single process"),
    ]  # fmt: skip
    for wrong, what, fix in checks:
        if wrong:
            raise Refusal(what, where=WHERE, fix=fix)


@dataclass(frozen=True)
class Engine:
    """A Writer (networks/sample.py) that hands the tuned network to vLLM and lets it write. cache: GiB for the keys and values of all rows."""

    delta: Delta
    cache: float

    def __call__(
        self, net: Transformer, starts: Sequence[Sequence[int]], copies: int, seeds: Sequence[int], draw: Draw, answer: Answer | None = None
    ) -> list[Sample]:
        llm = started(configuration(net, self.delta), str(net.compute).removeprefix("torch."), self.cache, net.device.type == "cpu")
        longest = llm.llm_engine.model_config.max_model_len
        if (needed := max(map(len, starts)) + draw.length) > longest:
            raise Refusal(
                f"a prompt and its answer take {needed} tokens, and vLLM has room for {longest}", where="objective.cache", fix=f"cache: {2 * self.cache:g}"
            )
        hand_over(llm, net, self.delta)
        draw = replace(draw, total=min(draw.total, longest))
        rows = rows_of(starts, copies, seeds)
        going = rows
        while going:
            turns = written(llm, going, draw)
            going = [row for row, (tokens, logp) in zip(going, turns, strict=True) if took(row, tokens, logp, draw, answer)]
        return rows


def configuration(net: Transformer, delta: Delta) -> str:
    """Of the plain network, as JSON."""
    config = copy.deepcopy(net.model.config)
    make_room(net, delta, config, WHERE, f"{OWN}, or method: lora")
    config.architectures = [type(net.model).__name__]
    config.tie_word_embeddings = net.anatomy.vocabulary is None
    return config.to_json_string(use_diff=False)


@lru_cache(maxsize=1)
def started(config: str, dtype: str, cache: float, cpu: bool) -> Any:
    """The engine of a configuration, with no weights yet. One is kept, for all rollouts and for the next arm of a comparison."""
    os.environ.update(SURROUNDINGS)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config)
        try:
            return LLM(
                model=folder, dtype=dtype, load_format="dummy", skip_tokenizer_init=True, trust_remote_code=False, enforce_eager=cpu, enable_chunked_prefill=not cpu, enable_prefix_caching=True,
                logprobs_mode="processed_logprobs", max_model_len=-1, kv_cache_memory_bytes=int(cache * 2**30), gpu_memory_utilization=0.01, disable_log_stats=True,
            )  # fmt: skip
        except (ValueError, RuntimeError, NotImplementedError) as e:
            raise Refusal(f"vLLM cannot run {json.loads(config)['architectures'][0]}", where=WHERE, why=str(e).strip().partition("\n")[0], fix=OWN) from e


def hand_over(llm: Any, net: Transformer, delta: Delta) -> None:
    """The weights as they are now; what was remembered of the ones before is forgotten."""
    from transformers.core_model_loading import revert_weight_conversion

    published = revert_weight_conversion(net.model, dict(delta.folded()))
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(published.items()), "is_checkpoint_format": True})
    llm.reset_prefix_cache()


def written(llm: Any, rows: Sequence[Sample], draw: Draw) -> list[tuple[list[int], list[float]]]:
    """A turn of each: its tokens and their log-probabilities under softmax(logits / temperature)."""
    from vllm import SamplingParams

    asked = [
        SamplingParams(
            temperature=draw.temperature, top_p=1.0, top_k=0, min_p=0.0, seed=(row.seed + len(row.at)) & 0x7FFF_FFFF, logprobs=0, detokenize=False,
            max_tokens=min(draw.length, draw.total - len(row.ids)), stop_token_ids=sorted(draw.eos),
        )
        for row in rows
    ]  # fmt: skip
    answered = [said.outputs[0] for said in llm.generate([{"prompt_token_ids": row.ids} for row in rows], asked, use_tqdm=False)]
    return [(list(one.token_ids), [step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)]) for one in answered]
