"""What every engine offers, and how one is found by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from infergy.engines.weights import LAWS
from infergy.errors import EngineError, UsageError
from infergy.records import ENGINES, FP8, GREEDY, SERVER, Arrivals, Decoding, EngineSetup
from infergy.records.latency import EngineCounts, EngineTimes
from infergy.records.load import REPLAY
from infergy.records.window import Drafts

VLLM_OPTIONS = ("usage_context", "max_batched_tokens", "prefix_caching", "gpu_memory_utilization", "max_model_len")
"""Fields of an engine set-up that are options of vLLM alone."""

GPU_UUIDS = "gpu_uuids"
"""Among `Session.facts`: the UUIDs of the GPUs that the engine really uses, commas between; None if it cannot tell."""


class EngineOutOfMemoryError(EngineError):
    """The work does not fit; the session can go on with smaller work if `is_usable`."""

    default_code = "out-of-memory"

    def __init__(self, message: str, *, is_usable: bool, **fields: Any) -> None:
        super().__init__(message, is_usable=is_usable, **fields)
        self.is_usable = is_usable


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Requests to serve: three sequences of one length, a request each.

    Attributes:
        prompts: Token ids.
        output_tokens: How many tokens each must yield; forced, whatever the model would say.
        arrival_s: When each arrives, in seconds after `Session.run` begins; all zero offline.
        decoding: How tokens are chosen.
        count_experts: Whether to tell which share of a mixture's experts decode steps visit, if the engine can; it may
            take time.
    """

    prompts: tuple[tuple[int, ...], ...]
    output_tokens: tuple[int, ...]
    arrival_s: tuple[float, ...]
    decoding: Decoding = GREEDY
    count_experts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came back for a `Work`, counted from the engine's own answer, a value for each request in order.

    Attributes:
        input_tokens: Prompt tokens the engine says it took.
        output_tokens: Tokens it returned.
        first_token_s: Seconds from arrival to first token; None where the engine does not tell.
        finished_s: Seconds from arrival to last token; None where the engine does not tell.
        drafts: What a draft model proposed for all of them together; None without one, and where nobody tells.
        experts_touched: Mean share of a layer's routed experts that a decode step visits, 0 to 1; None of a dense
            model, where it was not asked for, and where the engine does not tell.
        prepared_s: Seconds of `Session.run` before the first request's arrival, in which nothing was served.
        engine_times: Stamps of the engine beside those of the client; None where there are none.
        counts: Steps, preemptions and the like; None where the engine does not tell.
    """

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    first_token_s: tuple[float, ...] | None = None
    finished_s: tuple[float, ...] | None = None
    drafts: Drafts | None = None
    experts_touched: float | None = None
    prepared_s: float = 0.0
    engine_times: EngineTimes | None = None
    counts: EngineCounts | None = None


class Session(Protocol):
    """A loaded model, ready to make tokens; `infergy.testing.check_engine` holds its rules."""

    def run(self, work: Work) -> Completion:
        """Serve `work` and return when its last token is on the host.

        Raises:
            UsageError: It cannot serve requests of mixed lengths, or such as arrive later; the session can go on.
            EngineOutOfMemoryError: The work does not fit.
            EngineError: The engine failed otherwise; the session is of no more use.
        """
        ...

    def facts(self) -> Mapping[str, str | None]:
        """The options as the engine resolved them, for the row; of them `GPU_UUIDS` is held against the meter."""
        ...

    def close(self) -> None:
        """Release the model; called again, do nothing."""
        ...


class Engine(Protocol):
    """A way to load models.

    Attributes:
        name: As in `EngineSetup.engine`.
        packages: Distributions whose versions shape the result.
    """

    name: str
    packages: tuple[str, ...]

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Refuse what this engine cannot do, before anything is loaded; `arrivals` None is offline.

        Raises:
            UsageError: An option it lacks; the message says which engine has it.
            MissingError: The engine is not installed.
        """
        ...

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> Session:
        """Load the model.

        Args:
            setup: What to load.
            config: The model's Hugging Face `config.json`.
            seed: Seed of random weights.
            draft: The `config.json` of the draft model; None if the set-up has none.

        Raises:
            EngineError: The engine could not load it.
        """
        ...


def tell_gpu(model: Any) -> str | None:
    """The UUID of the GPU on which a torch model lies; None on a CPU, or where torch does not tell.

    It runs in whatever process holds the model. `torch.cuda.get_device_properties` tells it without NVML's ``GPU-``.
    """
    try:
        import torch

        device = next(model.parameters()).device
        if device.type != "cuda" or torch.version.hip is not None:
            return None
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    except (AttributeError, ImportError, RuntimeError, StopIteration):
        return None
    return None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}"


def refuse_beams(decoding: Decoding) -> None:
    """Refuse beam search, for an engine that lacks it.

    Raises:
        UsageError: It was asked for.
    """
    if decoding.beams > 1:
        raise UsageError.engine_lacks(
            "vllm",
            "decoding",
            decoding.label,
            'beam search of vLLM needs a tokenizer, which models here lack; engine = "transformers" has beams',
        )


def refuse_arrivals(arrivals: Arrivals | None, *, compiled: bool = False) -> None:
    """Refuse requests that arrive one after the other, for an engine whose batches nothing can join.

    A replay, all of whose requests are there at once, it serves in static batches, one after the other.

    Raises:
        UsageError: They were asked for; or a replay, for whose batches a compiled model would be compiled anew.
    """
    if arrivals is not None and (arrivals.law != REPLAY or arrivals.timed):
        raise UsageError.engine_lacks(
            "transformers",
            "arrivals",
            arrivals.label,
            'this engine serves static batches, which no request can join; engine = "vllm" serves online',
        )
    if arrivals is not None and compiled:
        raise UsageError.conflict(
            {"arrivals": arrivals.label, "compiled": True},
            "each batch has lengths of its own, for which it would be compiled anew; leave out one of them",
        )


def refuse_compiled(setup: EngineSetup) -> None:
    """Refuse what only transformers has.

    Raises:
        UsageError: It was asked for.
    """
    if setup.compiled:
        raise UsageError.engine_lacks(
            "vllm",
            "compiled",
            True,
            'vLLM compiles by itself unless cuda_graphs = false; this is for engine = "transformers"',
        )


def refuse_vllm_options(setup: EngineSetup) -> None:
    """Reject options of vLLM, for an engine that lacks them.

    Raises:
        UsageError: One is set.
    """
    plain = EngineSetup(engine=setup.engine, model=setup.model)
    for name in VLLM_OPTIONS:
        if getattr(setup, name) != getattr(plain, name):
            raise UsageError.engine_lacks(
                "transformers", name, getattr(setup, name), 'this engine has no such option; engine = "vllm" has'
            )


def refuse_drafting_server(setup: EngineSetup) -> None:
    """Reject a draft model beside vLLM's server engine, whose drafted tokens are not counted.

    Raises:
        UsageError: It was asked for.
    """
    if setup.usage_context == SERVER and setup.speculation is not None:
        raise UsageError.conflict(
            {"speculation": setup.speculation.label, "usage_context": SERVER},
            "drafted tokens are counted in vLLM's LLM class only; leave out one of them",
        )


def refuse_fp8(setup: EngineSetup) -> None:
    """Refuse arithmetic in 8 bits, for engines that lack it.

    Raises:
        UsageError: It was asked for.
    """
    if setup.dtype == FP8:
        raise UsageError.engine_lacks(
            "transformers",
            "dtype",
            "fp8",
            'transformers mostly dequantises fp8 before it multiplies; engine = "vllm" multiplies in fp8',
        )


def refuse_set_acceptance(setup: EngineSetup) -> None:
    """Refuse a draft model beside random weights, for transformers, which cannot be told what to accept.

    Raises:
        UsageError: It was asked for.
    """
    if setup.speculation is not None and setup.weights in LAWS:
        raise UsageError.engine_lacks(
            "transformers",
            "speculation",
            setup.speculation.label,
            'random models agree on nothing; give real weights to both, or set the acceptance, as engine = "vllm" can',
        )


def check_speculation(setup: EngineSetup, decoding: Decoding) -> None:
    """Refuse a draft model where its acceptance would be neither set nor measured, and what no engine drafts for.

    Whether drafted tokens are accepted depends on what both models say. Random weights hardly ever agree, so there the
    acceptance is set; real ones tell it.

    Raises:
        UsageError: Random weights and no acceptance, real ones and an acceptance, one model of either kind; or beams,
            or compiled.
    """
    one = setup.speculation
    if one is None:
        return
    if decoding.beams > 1:
        raise UsageError.conflict(
            {"decoding": decoding.label, "speculation": one.label},
            "no engine drafts for beams; leave out one of the two",
        )
    if setup.compiled:
        raise UsageError.conflict(
            {"compiled": True, "speculation": one.label}, "what is compiled has no draft model; leave out one of them"
        )
    is_random = setup.weights in LAWS
    if setup.dtype == FP8:
        raise UsageError.conflict(
            {"dtype": "fp8", "speculation": one.label}, "a draft beside a quantised model was not built; leave out one"
        )
    if is_random and one.weights is not None:
        raise UsageError.conflict(
            {"weights": setup.weights, "speculation.weights": one.weights},
            "one of the two is random, and they would agree on nothing; give weights for both, or for neither",
        )
    if is_random and one.acceptance is None:
        message = (
            f"{one.label}: random weights accept next to nothing that another model drafts, and say nothing of real "
            f"ones; set it: acceptance = 0.8, or --engine {setup.engine}-spec{one.look_ahead}:{one.draft}:0.8"
        )
        raise UsageError(message, code="option-missing", option="acceptance", speculation=one.label)
    if not is_random and one.acceptance is not None:
        raise UsageError.conflict(
            {"speculation": one.label, "weights": setup.weights},
            f"the acceptance of real weights is measured, not set; write spec{one.look_ahead}:{one.draft}:measured",
        )
    if not is_random and one.weights is None:
        message = (
            f"{one.label}: the model's weights are {setup.weights}, those of its draft are missing; add to the grid's "
            'speculation: weights = "FOLDER or hub name"'
        )
        raise UsageError(message, code="option-missing", option="speculation.weights", speculation=one.label)


def refuse_many(setup: EngineSetup) -> None:
    """Refuse to share a model among GPUs, for engines that run on one.

    Raises:
        UsageError: `tensor_parallel` is not 1.
    """
    if setup.tensor_parallel != 1:
        raise UsageError.engine_lacks(
            "transformers", "tensor_parallel", setup.tensor_parallel, "this engine runs on one GPU; vllm on many"
        )


def find_engine(name: str) -> Engine:
    """The engine called `name`; nothing heavy is imported.

    Raises:
        UsageError: There is none.
    """
    if name == "transformers":
        from infergy.engines.transformers import TransformersEngine

        return TransformersEngine()
    if name == "vllm":
        from infergy.engines.vllm import VllmEngine

        return VllmEngine()
    raise UsageError.unknown("engine", name, ENGINES, code="unknown-engine")
