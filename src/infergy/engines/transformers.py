"""Hugging Face transformers, not compiled by default: the unoptimised reference that the study calls PyTorch.

Hooks on the models count what `generate` does not report: drafted tokens, visited experts, the first token's time.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, Self

from infergy.engines.engine import (
    GPU_UUIDS,
    STATIC_BATCHES,
    Completion,
    EngineOutOfMemoryError,
    Work,
    check_assisted_batch,
    check_transformers,
    gpu_uuid_of,
)
from infergy.engines.weights import LAWS, config_folder, draw_weights
from infergy.errors import MissingError, UsageError
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup
from infergy.records.engine_setup import Speculation
from infergy.records.window import Drafts, sum_drafts
from infergy.units import SECONDS_PER_MILLISECOND

ATTENTION = "sdpa"
ROUTER_NAME = "router"
"""Part of the class names of routers that return which experts they chose (transformers from 5 on: OlmoeTopKRouter)."""


class TransformersEngine:
    """`generate` on a whole batch at once: static batch, SDPA attention; dynamic KV cache, or static and compiled."""

    name = "transformers"
    packages: tuple[str, ...] = ("torch", "transformers", "accelerate", "triton")

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Reject what transformers lacks."""
        check_transformers(setup, decoding, arrivals)
        # Real weights are placed on the GPU by accelerate.
        for package in ("torch", "transformers", *(() if setup.weights in LAWS else ("accelerate",))):
            if importlib.util.find_spec(package) is None:
                raise MissingError.package("engine transformers", package, "pip install 'infergy[transformers]'")

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> TransformersSession:
        """Build the model on the GPU (on the CPU where there is none) from its configuration, or load real weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        # cuDNN's attention builds a plan for every new length of the KV cache, some 40 ms per step on an H200 the first
        # time; PyTorch's flash attention builds none, so that no compilation happens in a window.
        torch.backends.cuda.enable_cudnn_sdp(False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"dtype": getattr(torch, setup.dtype), "attn_implementation": ATTENTION}
        if setup.weights in LAWS:
            shape = AutoConfig.from_pretrained(config_folder(config))
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(shape, **options)
            draw_weights(model, setup.weights, seed)
        else:
            model = AutoModelForCausalLM.from_pretrained(setup.weights, device_map=device, **options)
        assistant, speculation = None, setup.speculation
        if speculation is not None:
            assistant = AutoModelForCausalLM.from_pretrained(speculation.weights, device_map=device, **options)
            assistant = _prepare_draft(assistant, speculation)
        return TransformersSession(model.eval(), device, setup, assistant)


def _prepare_draft(draft: Any, speculation: Speculation) -> Any:
    """The draft model, set to draft always `look_ahead` tokens per round.

    By default transformers drafts up to 20 and stops where the draft is uncertain (`assistant_confidence_threshold` in
    its ``generation/configuration_utils.py``): the look-ahead would be arbitrary. The draft's own configuration of
    sampling and end-of-sequence tokens would fill in what the model's leaves open.
    """
    from transformers import GenerationConfig

    draft.generation_config = GenerationConfig(
        eos_token_id=None,
        pad_token_id=_no_token(draft),
        max_length=None,
        num_assistant_tokens=speculation.look_ahead,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    return draft.eval()


def _no_token(model: Any) -> int:
    """An id past a model's vocabulary, to pad with.

    While drafting, transformers takes tokens of a prompt that equal the padding for padding, and hides them from the
    draft, which then agrees less: a random prompt may hold any token. Nothing is ever padded here.
    """
    return int(model.config.get_text_config().vocab_size)


class TransformersSession:
    """A model on one device, with a `draft` model if its engine config has one.

    It serves static batches of at most `setup.max_sequences` requests, one after the other; None is all at once.
    """

    def __init__(self, model: Any, device: str, setup: EngineSetup, draft: Any = None) -> None:
        from transformers import GenerationConfig

        self._model = model
        self._draft = draft
        self._setup = setup
        self._device = device
        # No end-of-sequence id: every request yields exactly the tokens asked for. With a static cache on a GPU,
        # `generate` compiles the decode step by itself (transformers, "generation/utils.py", auto-compile).
        model.generation_config = GenerationConfig(
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0 if draft is None else _no_token(model),
            max_length=None,
            cache_implementation="static" if setup.compiled else None,
        )

    def run(self, work: Work) -> Completion:
        """Generate for the prompts in static batches, in the order given.

        Prompts of a batch are padded on the left to the longest of them, and all decode until its longest answer is
        done; neither is counted.
        """
        if work.is_timed:
            raise UsageError.engine_lacks("transformers", "arrivals", "timed", STATIC_BATCHES)
        size = min(self._setup.max_sequences or len(work.prompts), len(work.prompts))
        if self._setup.speculation is not None:
            check_assisted_batch(self._setup.speculation, size)
        parts: list[Completion] = []
        begun_s = time.monotonic()
        for start in range(0, len(work.prompts), size):
            waited_s = time.monotonic() - begun_s if parts else 0.0
            batch = slice(start, start + size)
            parts.append(self._serve(work, work.prompts[batch], work.output_tokens[batch], waited_s))
        return parts[0] if len(parts) == 1 else _join_batches(parts)

    def _serve(
        self, work: Work, prompts: tuple[tuple[int, ...], ...], outputs: tuple[int, ...], waited_s: float
    ) -> Completion:
        """One static batch, which waited for those before it."""
        import torch

        begun_s = time.monotonic()
        longest = max(map(len, prompts))
        first = FirstToken(self._device)
        experts = ExpertCounter(self._model, len(prompts) * work.decoding.beams)
        counting = experts if work.count_experts and not self._setup.compiled else nullcontext()
        drafts = None if self._draft is None else DraftCounter(self._model, self._draft)
        try:
            with torch.inference_mode(), counting, drafts or nullcontext():
                ids = torch.tensor([(0,) * (longest - len(p)) + p for p in prompts], device=self._device)
                mask = torch.ones_like(ids)
                for row, prompt in enumerate(prompts):
                    mask[row, : longest - len(prompt)] = 0
                tokens = self._model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=max(outputs),
                    stopping_criteria=[first],
                    assistant_model=self._draft,
                    **_generate_options(work.decoding),
                ).cpu()
        except torch.OutOfMemoryError as error:
            message = str(error).split("\n")[0]
            self._free()
            raise EngineOutOfMemoryError(message, is_usable=True) from error
        finished_s = time.monotonic() - begun_s
        rows, made = tokens.shape[0], tokens.shape[1] - longest
        first_s = first.seconds()
        return Completion(
            input_tokens=tuple(map(len, prompts[:rows])),
            output_tokens=tuple(min(asked, made) for asked in outputs[:rows]),
            first_token_s=None if first_s is None else (waited_s + min(first_s, finished_s),) * rows,
            finished_s=(waited_s + finished_s,) * rows,
            drafts=None if drafts is None else drafts.total(made),
            experts_touched=experts.share(),
        )

    def facts(self) -> Mapping[str, str | None]:
        """The options as transformers resolved them."""
        compiled = "no"
        if self._setup.compiled:
            on_gpu = self._device == "cuda"
            compiled = "decode step, by TorchInductor" if on_gpu else "no: generate compiles on GPUs only"
        facts = {
            "device": str(self._model.device),
            "dtype": str(self._model.dtype),
            "attention": f"{self._model.config._attn_implementation}, cuDNN kernels off",
            "cache": "static" if self._setup.compiled else "dynamic",
            "batching": "static",
            "compiled": compiled,
            "parameters": str(self._model.num_parameters()),
            GPU_UUIDS: gpu_uuid_of(self._model),
        }
        if self._draft is not None:
            options = self._draft.generation_config
            facts |= {
                "speculative_method": "assisted generation",
                "speculative_tokens": f"{options.num_assistant_tokens}, {options.num_assistant_tokens_schedule}",
                "draft_parameters": str(self._draft.num_parameters()),
            }
        return facts

    def close(self) -> None:
        """Release the memory."""
        self._model = self._draft = None
        self._free()

    def _free(self) -> None:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _join_batches(parts: Sequence[Completion]) -> Completion:
    """The completion of batches that were served one after the other; visited experts are unknown."""
    first = [part.first_token_s for part in parts if part.first_token_s is not None]
    return Completion(
        input_tokens=tuple(chain.from_iterable(part.input_tokens for part in parts)),
        output_tokens=tuple(chain.from_iterable(part.output_tokens for part in parts)),
        first_token_s=tuple(chain.from_iterable(first)) if len(first) == len(parts) else None,
        finished_s=tuple(chain.from_iterable(part.finished_s or () for part in parts)),
        drafts=sum_drafts(part.drafts for part in parts),
    )


def _generate_options(decoding: Decoding) -> dict[str, Any]:
    """`generate`'s options of a decoding; greedy ones are its configuration's own."""
    if decoding.beams > 1:
        return {"num_beams": decoding.beams}
    if decoding.temperature is None:
        return {}
    # 0 stands for all tokens; left out, `generate` would take 50.
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k or 0}
    return {"do_sample": True, **sampling}


class FirstToken:
    """A stopping criterion that never stops: called after each token, it stamps the first.

    On a GPU the stamp is an event in its stream, read when all is done, so that the host waits for nothing. A static
    batch has one first token, that of all its requests.

    Args:
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self._is_gpu = device == "cuda"
        self._begun = self._stamp()
        self._first: Any = None
        self._never: Any = None

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        """Whether each request is to stop: no."""
        if self._never is None:
            import torch

            self._first = self._stamp()
            self._never = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._never

    def seconds(self) -> float | None:
        """From construction to the first token, once the GPU is done; None if there was none."""
        if self._first is None:
            return None
        if self._is_gpu:
            return float(self._begun.elapsed_time(self._first)) * SECONDS_PER_MILLISECOND
        return float(self._first - self._begun)

    def _stamp(self) -> Any:
        if not self._is_gpu:
            return time.monotonic()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _Hooks(AbstractContextManager["_Hooks"]):
    """Forward hooks on torch modules while it is open."""

    def __init__(self, hooks: Sequence[tuple[Any, Any]]) -> None:
        self._hooks = hooks
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


class DraftCounter(_Hooks):
    """Counts rounds and drafted tokens while it is open, by the calls of both models.

    Each call of the draft yields a token, each call of the model verifies those drafted since the last and yields those
    accepted and one of its own. So n output tokens from m calls hold n − m accepted ones; what the model would have
    accepted past the last token asked for is not among them.
    """

    def __init__(self, model: Any, draft: Any) -> None:
        super().__init__([(draft, lambda *_: self._count_draft()), (model, lambda *_: self._count_model())])
        self._calls = self._rounds = self._drafted = self._since = 0

    def _count_draft(self) -> None:
        self._since += 1

    def _count_model(self) -> None:
        self._calls += 1
        # Nothing is drafted when only one token is left.
        self._rounds += self._since > 0
        self._drafted += self._since
        self._since = 0

    def total(self, output_tokens: int) -> Drafts:
        """What was drafted for a request of `output_tokens`."""
        return Drafts(rounds=self._rounds, drafted_tokens=self._drafted, accepted_tokens=output_tokens - self._calls)


class ExpertCounter(_Hooks):
    """Counts while it is open which experts of a mixture decode steps visit.

    A router takes all tokens of a forward pass and returns, among others, the numbers of the experts of each: whole
    numbers, a row per token. Passes of `tokens` tokens (requests, or beams of them) are decode steps; no others count.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        routers = [module for module in model.modules() if ROUTER_NAME in type(module).__name__.lower()]
        super().__init__([(router, self._count) for router in routers])
        self._tokens = tokens
        self._shares: list[Any] = []

    def share(self) -> float | None:
        """Mean share of a layer's experts that one decode step visited, 0 to 1; None if no router reported."""
        return float(sum(self._shares) / len(self._shares)) if self._shares else None

    def _count(self, router: Any, _inputs: Any, outputs: Any) -> None:
        import torch

        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        chosen = next((part for part in parts if torch.is_tensor(part) and not part.is_floating_point()), None)
        if chosen is None or chosen.dim() != 2 or len(chosen) != self._tokens:
            return
        # The matrix of a router has a row per expert.
        visited = torch.zeros(len(router.weight), device=chosen.device)
        visited[chosen.flatten()] = 1.0
        self._shares.append(visited.mean())
