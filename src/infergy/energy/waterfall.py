"""Where the joules of a trace go under one configuration: from an ideal to what was measured, step by step.

    ideal             FLOPs of the true lengths at the dense peak and TDP (`infergy.energy.ideal.flops_ideal`)
    memory            what the roofline adds: bytes that decode and small batches move (`roofline_ideal`, in the batches
                      that were measured)
    ceiling bins      the same roofline at the upper corners of the bins, at which an estimate prices
    launch overhead   measured joules less those of the same set-up with CUDA graphs, or compiled, where measured
    rest              kernels below their peaks, the host, scheduling: what is left to the measured joules

True lengths are the mean lengths of each bin. Each step is told as it comes out: the roofline takes TDP while it waits
for memory, where a GPU draws less, so a rest can be negative. They add up to the measured joules.

Offline there are no gaps between arrivals. What a server would draw in them stands beside: the GPUs that the busy time
needs in the time from the first arrival to the last, idle for the rest of it at the power of loaded, idle GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from infergy.energy.answer import TraceFacts
from infergy.energy.estimate import PriceOptions, Question, open_question, price_setup
from infergy.energy.ideal import flops_ideal, roofline_ideal
from infergy.energy.options import CEILING
from infergy.energy.price import NO_VALUE
from infergy.energy.reference import at_mean_lengths
from infergy.energy.summary import Priced
from infergy.errors import UsageError
from infergy.hardware import get_gpu, get_model
from infergy.records import EngineSetup
from infergy.workload.bins import Bin, Histogram

WATERFALL_SCHEMA = "infergy.waterfall/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallStep:
    """One step.

    Attributes:
        name: In words.
        energy_j: Joules that it adds; negative where it takes some off.
        total_j: Joules up to and with it.
        basis: How it was computed.
    """

    name: str
    energy_j: float
    total_j: float
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleGaps:
    """What a server would draw between arrivals.

    Attributes:
        gpus: GPUs that the busy time needs in the trace's time.
        idle_s: GPU-seconds without work.
        idle_w: Power of one instance, loaded and idle, as measured.
        energy_j: Joules of that.
    """

    gpus: int
    idle_s: float
    idle_w: float
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """A trace under one configuration, from the ideal to the measured joules.

    Attributes:
        energy_j: Measured joules of the priced requests: the sum of the steps.
        idle: What comes on top online; None with `idle_reason`.
        notes: Steps that could not be told apart, and why.
    """

    trace: TraceFacts
    model: str
    gpu: str
    engine: str
    priced_requests: int
    energy_j: float
    steps: tuple[WaterfallStep, ...]
    idle: IdleGaps | None
    idle_reason: str | None
    notes: tuple[str, ...]
    schema: str = WATERFALL_SCHEMA


def find_waterfall(source: object, engine: str, options: PriceOptions, duration_s: float | None = None) -> Waterfall:
    """Break down a trace's joules under one configuration.

    Args:
        source: A `Trace`, a `Histogram`, or whatever `infergy.open_trace` takes.
        engine: Label of the set-up.
        options: What to price with; the method is ``ceiling``.
        duration_s: From the first arrival to the last; None where the trace does not tell.

    Raises:
        UsageError: A name is unknown, nothing was measured for it, or the catalogue lacks the GPU or the model.
    """
    options = replace(options, method=CEILING)
    question = open_question(source, options)
    setup = question.table.find(question.gpu, question.model, engine)
    priced = price_setup(setup, question, options)
    known = [one for one in priced.bins if one.how != NO_VALUE]
    if not known:
        raise UsageError(f"{engine} has no value for any bin of this trace. Measure it: infergy measure paper-bins")
    energy_j = sum(one.energy_j or 0.0 for one in known)
    places = {(one.input_tokens, one.output_tokens) for one in known}
    counts = [c for c in question.histogram.counts if (c.bin.input_tokens, c.bin.output_tokens) in places]
    histogram = replace(question.histogram, counts=tuple(counts), left_out=None)
    graphs, graphs_reason = _with_graphs(setup.setup, question, options, places)
    parts = [*_references(histogram, priced, question)]
    if graphs is not None:
        parts.append(("launch overhead", energy_j - graphs[1], f"measured, less {graphs[0]} measured"))
    rest = energy_j - sum(joules for _, joules, _ in parts)
    parts.append(("rest: kernels below peak, host, scheduling", rest, "what is left to the measured joules"))
    idle, idle_reason = _idle(priced, sum(one.duration_s or 0.0 for one in known), duration_s)
    return Waterfall(
        trace=question.facts,
        model=question.model,
        gpu=question.gpu,
        engine=engine,
        priced_requests=sum(one.requests for one in known),
        energy_j=energy_j,
        steps=tuple(_steps(parts)),
        idle=idle,
        idle_reason=idle_reason,
        notes=() if graphs_reason is None else (graphs_reason,),
    )


def _steps(parts: list[tuple[str, float, str]]) -> Iterator[WaterfallStep]:
    total_j = 0.0
    for name, joules, basis in parts:
        total_j += joules
        yield WaterfallStep(name=name, energy_j=joules, total_j=total_j, basis=basis)


def _references(histogram: Histogram, priced: Priced, question: Question) -> Iterator[tuple[str, float, str]]:
    """The steps that are computed: ideal, memory, ceiling bins."""
    shape, gpu, dtype = get_model(question.model), get_gpu(question.gpu), priced.setup.setup.dtype
    true = at_mean_lengths(histogram)

    def batch_of(corner: Bin) -> int:
        value = priced.values.at(corner.input_tokens, corner.output_tokens)
        return 1 if value is None else value.batch

    ideal = flops_ideal(true, shape, gpu, dtype=dtype)
    moved = roofline_ideal(true, shape, gpu, batch_of, dtype=dtype)
    at_corners = roofline_ideal(histogram, shape, gpu, batch_of, dtype=dtype)
    yield "ideal", ideal.energy_j, f"{ideal.basis}, at the mean lengths of the bins"
    yield "memory", moved.energy_j - ideal.energy_j, "the roofline at the same lengths, in the measured batches"
    yield "ceiling bins", at_corners.energy_j - moved.energy_j, "the roofline at the upper corners of the bins"


def _with_graphs(
    setup: EngineSetup, question: Question, options: PriceOptions, places: set[tuple[int, int]]
) -> tuple[tuple[str, float] | None, str | None]:
    """The set-up that launches no kernels one by one and its joules of the same bins, or why there is none."""
    is_vllm = setup.engine == "vllm"
    better = replace(setup, cuda_graphs=None) if is_vllm else replace(setup, compiled=True)
    if better == setup:
        return None, None
    if better.label not in question.table.labels(question.gpu, question.model):
        return None, (
            f"launch overhead is in the rest: {better.label} was not measured. "
            f"infergy measure paper-bins --engine {better.label} -o mine.jsonl"
        )
    priced = price_setup(question.table.find(question.gpu, question.model, better.label), question, options)
    joules = {(one.input_tokens, one.output_tokens): one.energy_j for one in priced.bins}
    if any(joules.get(place) is None for place in places):
        return None, f"launch overhead is in the rest: {better.label} has no value for some bins"
    return (better.label, sum(joules[place] or 0.0 for place in places)), None


def _idle(priced: Priced, busy_s: float, duration_s: float | None) -> tuple[IdleGaps | None, str | None]:
    if duration_s is None or duration_s <= 0:
        return None, "the trace does not tell when requests arrive"
    known = [cell.loaded_idle_w for cell in priced.cells if cell.loaded_idle_w is not None]
    if not known:
        return None, "no row tells the power of the loaded, idle GPU"
    idle_w = sum(known) / len(known)
    instances = max(1, math.ceil(busy_s / duration_s))
    idle_s = instances * duration_s - busy_s
    gpus = priced.setup.setup.tensor_parallel
    return (
        IdleGaps(gpus=instances * gpus, idle_s=idle_s * gpus, idle_w=idle_w, energy_j=idle_s * idle_w),
        None,
    )
