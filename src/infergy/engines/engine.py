"""What every engine offers, and what each lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from infergy.engines.weights import LAWS
from infergy.errors import EngineError, UsageError
from infergy.records import FP8, GREEDY, SERVER, Arrivals, Decoding, EngineSetup
from infergy.records.cell import REPLAY
from infergy.records.endpoint import Served
from infergy.records.engine_setup import Speculation
from infergy.records.latency import EngineCounts, EngineTimes
from infergy.records.window import Drafts

VLLM_ONLY = 'this engine has no such option; engine = "vllm" has'
TRANSFORMERS_LACKS: Mapping[str, str] = {
    "cuda_graphs": 'it has none of its own; compiled = true, or engine = "vllm", has',
    "tensor_parallel": "this engine runs on one GPU; vllm on many",
    "usage_context": VLLM_ONLY,
    "max_batched_tokens": VLLM_ONLY,
    "prefix_caching": VLLM_ONLY,
    "gpu_memory_utilization": VLLM_ONLY,
    "max_model_len": VLLM_ONLY,
}
"""Fields of an engine config that transformers cannot change from their defaults, and what to do instead."""

STATIC_BATCHES = 'transformers serves static batches, which no request can join; engine = "vllm" serves online'

GPU_UUIDS = "gpu_uuids"
"""Among `Session.facts`: the UUIDs of the GPUs that the engine really uses, commas between; None if unknown."""


class EngineOutOfMemoryError(EngineError):
    """The work does not fit; the session can go on with smaller work if `is_usable`."""

    default_code = "out-of-memory"

    def __init__(self, message: str, *, is_usable: bool, **fields: Any) -> None:
        super().__init__(message, is_usable=is_usable, **fields)
        self.is_usable = is_usable


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Requests to serve: sequences of one length, an entry per request.

    Attributes:
        prompts: Token ids.
        output_tokens: How many tokens each must yield, whatever the model generates.
        arrival_s: When each arrives, in seconds after `Session.run` begins; all zero offline.
        decoding: How tokens are chosen.
        after: Index of the earlier request whose answer each follows, then whatever `arrival_s` says; -1 without. Empty
            where none does; `arrival_s` ascends where some do.
        gap_s: Seconds from that answer's last token until it arrives.
        count_experts: Whether to count which share of a mixture's experts decode steps visit, if the engine can; it
            may take time.
    """

    prompts: tuple[tuple[int, ...], ...]
    output_tokens: tuple[int, ...]
    arrival_s: tuple[float, ...]
    decoding: Decoding = GREEDY
    count_experts: bool = False
    after: tuple[int, ...] = ()
    gap_s: tuple[float, ...] = ()

    @property
    def is_timed(self) -> bool:
        """Whether requests arrive one after the other, at their times or after answers."""
        return any(self.arrival_s) or bool(self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The result of a `Work`, counted from the engine's own answer, an entry per request in order.

    Attributes:
        input_tokens: Prompt tokens that the engine reports.
        output_tokens: Tokens it returned.
        first_token_s: Seconds from arrival to first token; None where unknown.
        finished_s: Seconds from arrival to last token; None where unknown.
        drafts: Drafted tokens of all of them together; None without a draft model, and where unknown.
        experts_touched: Mean share of a layer's routed experts that a decode step visits, 0 to 1; None of a dense
            model, where it was not requested, and where unknown.
        prepared_s: Seconds of `Session.run` before the first request's arrival, in which nothing was served.
        engine_times: Stamps of the engine besides those of the client; None where there are none.
        counts: Steps, preemptions and the like; None where unknown.
        served: Of a server that runs already: it may have served other lengths than were asked. None of all others.
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
    served: Served | None = None


class Session(Protocol):
    """A loaded model, ready to make tokens; `infergy.testing.check_engine` checks its rules."""

    def run(self, work: Work) -> Completion:
        """Serve `work` and return when its last token is on the host.

        Raises:
            UsageError: It cannot serve requests of mixed lengths, or such as arrive later; the session can go on.
            EngineOutOfMemoryError: The work does not fit.
            EngineError: The engine failed otherwise; the session is unusable.
        """
        ...

    def facts(self) -> Mapping[str, str | None]:
        """The options as the engine resolved them, for the row; `GPU_UUIDS` is compared with the meter."""
        ...

    def close(self) -> None:
        """Release the model; called again, do nothing."""
        ...


class Engine(Protocol):
    """A way to load models.

    Attributes:
        name: As in `EngineSetup.engine`.
        packages: Distributions whose versions affect the result.
    """

    name: str
    packages: tuple[str, ...]

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Reject what this engine cannot do, before anything is loaded; `arrivals` None is offline.

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
            draft: The `config.json` of the draft model; None if there is none.

        Raises:
            EngineError: The engine could not load it.
        """
        ...


def gpu_uuid_of(model: Any) -> str | None:
    """The UUID of the GPU that holds a torch model; None on a CPU, or where torch does not report it.

    It runs in whatever process holds the model. `torch.cuda.get_device_properties` lacks NVML's prefix ``GPU-``.
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


def check_transformers(setup: EngineSetup, decoding: Decoding, arrivals: Arrivals | None) -> None:
    """Reject what transformers lacks, for itself and for its simulation.

    Raises:
        UsageError: An option that it lacks.
    """
    plain = EngineSetup(engine=setup.engine, model=setup.model)
    for option, why in TRANSFORMERS_LACKS.items():
        if getattr(setup, option) not in (getattr(plain, option), None):
            raise UsageError.engine_lacks("transformers", option, getattr(setup, option), why)
    if setup.dtype == FP8:
        why = 'it mostly dequantises fp8 before it multiplies; engine = "vllm" multiplies in fp8'
        raise UsageError.engine_lacks("transformers", "dtype", FP8, why)
    if arrivals is not None and (arrivals.law != REPLAY or arrivals.timed):
        raise UsageError.engine_lacks("transformers", "arrivals", arrivals.label, STATIC_BATCHES)
    if setup.speculation is not None and setup.weights in LAWS:
        why = 'random models agree on nothing; give real weights to both, or set the acceptance, as engine = "vllm" can'
        raise UsageError.engine_lacks("transformers", "speculation", setup.speculation.label, why)
    if setup.compiled:
        _check_compiled(decoding, arrivals)
    _check_speculation(setup, decoding)


def _check_compiled(decoding: Decoding, arrivals: Arrivals | None) -> None:
    if decoding.beams > 1:
        options = {"compiled": True, "decoding": decoding.label}
        raise UsageError.conflict(options, "a static KV cache does not follow beams")
    if arrivals is not None:
        options = {"arrivals": arrivals.label, "compiled": True}
        raise UsageError.conflict(options, "each batch has its own lengths and would be compiled again; leave out one")


def check_vllm(setup: EngineSetup, decoding: Decoding) -> None:
    """Reject what vLLM lacks, for itself and for its simulation.

    Raises:
        UsageError: An option that it lacks, or a draft model with its server, whose drafted tokens are not counted.
    """
    _check_speculation(setup, decoding)
    check_no_beams(decoding)
    if setup.compiled:
        why = 'vLLM compiles by itself unless cuda_graphs = false; this is for engine = "transformers"'
        raise UsageError.engine_lacks("vllm", "compiled", True, why)
    if setup.usage_context == SERVER and setup.speculation is not None:
        raise UsageError.conflict(
            {"speculation": setup.speculation.label, "usage_context": SERVER},
            "drafted tokens are counted in vLLM's LLM class only; leave out one of them",
        )


def check_no_beams(decoding: Decoding) -> None:
    """Reject beam search, for an engine that lacks it.

    Raises:
        UsageError: There are beams.
    """
    if decoding.beams > 1:
        why = 'beam search of vLLM needs a tokenizer, which models here lack; engine = "transformers" has beams'
        raise UsageError.engine_lacks("vllm", "decoding", decoding.label, why)


def check_assisted_batch(speculation: Speculation, requests: int) -> None:
    """Reject more than one request at a time for a draft model under transformers.

    Raises:
        UsageError: There are more.
    """
    if requests > 1:
        why = f'with {speculation.label} it assists one request at a time; batch = 1, or engine = "vllm"'
        raise UsageError.engine_lacks("transformers", "batch", requests, why)


def _check_speculation(setup: EngineSetup, decoding: Decoding) -> None:
    """Reject a draft model whose acceptance would be neither set nor measured, and what no engine drafts for.

    Whether drafted tokens are accepted depends on both models' output. Random weights hardly ever agree, so there the
    acceptance is set; with real ones it is measured.
    """
    draft = setup.speculation
    if draft is None:
        return
    is_random = setup.weights in LAWS
    one_is_random = "one of the two is random, and they would agree on nothing; give weights for both, or for neither"
    measured = f"acceptance is measured with real weights, not set; write spec{draft.look_ahead}:{draft.draft}:measured"
    conflicts: list[tuple[bool, str, object, str]] = [
        (decoding.beams > 1, "decoding", decoding.label, "no engine drafts for beams; leave out one of the two"),
        (setup.compiled, "compiled", True, "a compiled model has no draft model; leave out one of them"),
        (setup.dtype == FP8, "dtype", FP8, "a draft for a quantised model is not supported; leave out one"),
        (is_random and draft.weights is not None, "weights", setup.weights, one_is_random),
        (not is_random and draft.acceptance is not None, "weights", setup.weights, measured),
    ]
    for is_asked, option, value, why in conflicts:
        if is_asked:
            raise UsageError.conflict({option: value, "speculation": draft.label}, why)
    if is_random and draft.acceptance is None:
        message = (
            f"{draft.label}: random weights accept next to nothing that another model drafts, which says nothing of "
            f"real ones; set it: acceptance = 0.8, or --engine {setup.engine}-spec{draft.look_ahead}:{draft.draft}:0.8"
        )
        raise UsageError(message, code="option-missing", option="acceptance", speculation=draft.label)
    if not is_random and draft.weights is None:
        message = (
            f"{draft.label}: the model's weights are {setup.weights}, those of its draft are missing; add to "
            "the grid's speculation: "
            'weights = "FOLDER or hub name"'
        )
        raise UsageError(message, code="option-missing", option="speculation.weights", speculation=draft.label)
