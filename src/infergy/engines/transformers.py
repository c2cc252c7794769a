"""Hugging Face transformers, not compiled: the unoptimised reference that the study calls PyTorch."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

from infergy.engines.assisted import DraftCounter, no_token, prepare_draft, refuse_batch
from infergy.engines.config_files import config_folder
from infergy.engines.experts import ExpertCounter
from infergy.engines.protocol import (
    GPU_UUIDS,
    Completion,
    EngineOutOfMemoryError,
    Work,
    check_speculation,
    refuse_arrivals,
    refuse_fp8,
    refuse_many,
    refuse_set_acceptance,
    refuse_vllm_options,
    tell_gpu,
)
from infergy.engines.weights import LAWS, draw_weights
from infergy.errors import MissingError, UsageError
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup
from infergy.records.cell import Speculation
from infergy.records.window import sum_drafts
from infergy.units import SECONDS_PER_MILLISECOND

ATTENTION = "sdpa"


class TransformersEngine:
    """`generate` on a whole batch at once: static batch, SDPA attention; dynamic KV cache, or static and compiled."""

    name = "transformers"
    packages: tuple[str, ...] = ("torch", "transformers", "accelerate", "triton")

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Refuse what transformers lacks."""
        refuse_arrivals(arrivals, compiled=setup.compiled)
        if setup.compiled and decoding.beams > 1:
            raise UsageError.conflict(
                {"compiled": True, "decoding": decoding.label}, "a static KV cache does not follow beams"
            )
        if setup.cuda_graphs:
            raise UsageError.engine_lacks(
                "transformers",
                "cuda_graphs",
                True,
                'transformers has none of its own; compiled = true, or engine = "vllm", has',
            )
        refuse_many(setup)
        refuse_vllm_options(setup)
        refuse_set_acceptance(setup)
        check_speculation(setup, decoding)
        refuse_fp8(setup)
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

        # cuDNN's attention builds a plan for every new length of the KV cache, some 40 ms a step on an H200 the first
        # time; PyTorch's flash attention builds none, so that no compilation lands in a window.
        torch.backends.cuda.enable_cudnn_sdp(False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = getattr(torch, setup.dtype)
        if setup.weights in LAWS:
            shape = AutoConfig.from_pretrained(config_folder(config))
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=ATTENTION)
            draw_weights(model, setup.weights, seed)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                setup.weights, dtype=dtype, attn_implementation=ATTENTION, device_map=device
            )
        assistant = None
        if setup.speculation is not None:
            assistant = AutoModelForCausalLM.from_pretrained(
                setup.speculation.weights, dtype=dtype, attn_implementation=ATTENTION, device_map=device
            )
            assistant = prepare_draft(assistant, setup.speculation)
        return TransformersSession(
            model.eval(),
            device,
            compiled=setup.compiled,
            draft=assistant,
            speculation=setup.speculation,
            most=setup.max_sequences,
        )


class TransformersSession:
    """A model on one device, with `draft` beside it where `speculation` asks for one.

    It serves static batches of at most `most` requests, one after the other; None is all that it is given.
    """

    def __init__(
        self,
        model: Any,
        device: str,
        *,
        compiled: bool = False,
        draft: Any = None,
        speculation: Speculation | None = None,
        most: int | None = None,
    ) -> None:
        from transformers import GenerationConfig

        self._model = model
        self._draft = draft
        self._speculation = speculation
        self._most = most
        self._device = device
        self._compiled = compiled
        # No end-of-sequence id: every request yields exactly the tokens asked for. With a static cache on a GPU,
        # `generate` compiles the decode step by itself (transformers, "generation/utils.py", auto-compile).
        model.generation_config = GenerationConfig(
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0 if draft is None else no_token(model),
            max_length=None,
            cache_implementation="static" if compiled else None,
        )

    def run(self, work: Work) -> Completion:
        """Generate for the prompts in static batches, in the order given.

        Prompts of a batch are padded on the left to the longest of them, and all decode until its longest answer is
        done; neither is counted.
        """
        if any(work.arrival_s):
            raise UsageError.engine_lacks(
                "transformers",
                "arrivals",
                "timed",
                "transformers serves static batches, which nothing can join; vllm serves later requests",
            )
        size = min(self._most or len(work.prompts), len(work.prompts))
        if self._speculation is not None:
            refuse_batch(self._speculation, size)
        parts: list[Completion] = []
        begun_s = time.monotonic()
        for start in range(0, len(work.prompts), size):
            waited_s = time.monotonic() - begun_s if parts else 0.0
            one = slice(start, start + size)
            parts.append(self._serve(work, work.prompts[one], work.output_tokens[one], waited_s))
        return parts[0] if len(parts) == 1 else join_batches(parts)

    def _serve(
        self, work: Work, prompts: tuple[tuple[int, ...], ...], outputs: tuple[int, ...], waited_s: float
    ) -> Completion:
        """One static batch, which waited for those before it."""
        import torch

        begun_s = time.monotonic()
        longest = max(map(len, prompts))
        first = FirstToken(self._device)
        counter = ExpertCounter(self._model, len(prompts) * work.decoding.beams)
        is_counting = work.count_experts and not self._compiled
        drafts = None if self._draft is None else DraftCounter(self._model, self._draft)
        try:
            with torch.inference_mode(), counter if is_counting else nullcontext(), drafts or nullcontext():
                ids = torch.tensor([(0,) * (longest - len(one)) + one for one in prompts], device=self._device)
                mask = torch.ones_like(ids)
                for row, one in enumerate(prompts):
                    mask[row, : longest - len(one)] = 0
                tokens = self._model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=max(outputs),
                    stopping_criteria=[first],
                    assistant_model=self._draft,
                    **choose_by(work.decoding),
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
            experts_touched=counter.share(),
        )

    def facts(self) -> Mapping[str, str | None]:
        """The options as transformers resolved them."""
        config = self._model.config
        return {
            "device": str(self._model.device),
            "dtype": str(self._model.dtype),
            "attention": f"{config._attn_implementation}, cuDNN kernels off",
            "cache": "static" if self._compiled else "dynamic",
            "batching": "static",
            "compiled": self._tell_compiled(),
            "parameters": str(self._model.num_parameters()),
            **self._tell_speculation(),
            GPU_UUIDS: tell_gpu(self._model),
        }

    def _tell_speculation(self) -> dict[str, str | None]:
        if self._draft is None:
            return {}
        told = self._draft.generation_config
        return {
            "speculative_method": "assisted generation",
            "speculative_tokens": f"{told.num_assistant_tokens}, {told.num_assistant_tokens_schedule}",
            "draft_parameters": str(self._draft.num_parameters()),
        }

    def _tell_compiled(self) -> str:
        if not self._compiled:
            return "no"
        return "decode step, by TorchInductor" if self._device == "cuda" else "no: generate compiles on GPUs only"

    def close(self) -> None:
        """Give the memory back."""
        self._model = self._draft = None
        self._free()

    def _free(self) -> None:
        import gc

        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def join_batches(parts: Sequence[Completion]) -> Completion:
    """What batches, one after the other, answered together; the share of experts is that of equal batches only."""
    told = [part.first_token_s for part in parts if part.first_token_s is not None]
    return Completion(
        input_tokens=tuple(chain.from_iterable(part.input_tokens for part in parts)),
        output_tokens=tuple(chain.from_iterable(part.output_tokens for part in parts)),
        first_token_s=tuple(chain.from_iterable(told)) if len(told) == len(parts) else None,
        finished_s=tuple(chain.from_iterable(part.finished_s or () for part in parts)),
        drafts=sum_drafts(part.drafts for part in parts),
    )


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
        """For each request, whether it is to stop: no."""
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


def choose_by(decoding: Decoding) -> dict[str, Any]:
    """`generate`'s options of a decoding; greedy ones are its configuration's own."""
    if decoding.beams > 1:
        return {"num_beams": decoding.beams}
    if decoding.temperature is None:
        return {}
    # 0 stands for all tokens; left out, `generate` would take 50.
    return {
        "do_sample": True,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k or 0,
    }
