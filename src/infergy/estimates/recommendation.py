"""What to serve a trace with: the result of a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from infergy.errors import UsageError
from infergy.estimates.capacity import Capacity
from infergy.estimates.estimate import Z90, ServerEstimate, TraceFacts
from infergy.estimates.latency import Limits
from infergy.estimates.search import pareto_front
from infergy.workload.requests import Sample

RECOMMEND_SCHEMA = "infergy.recommend/3"
"""History: 1 measured batches, their bins summed; 2 runs, served as requests arrive; 3 a search, what each change
saves, the Pareto set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What one configuration saves of another's energy.

    Attributes:
        share: 1 − its energy over that of the other; `low` and `high` bound it by the 90 % interval of what is not
            common to both.
        is_significant: Whether that interval leaves out 0.
    """

    share: float
    low: float
    high: float
    is_significant: bool

    @classmethod
    def of(cls, ratio: float, log_sd: float) -> Saving:
        """By the ratio of two energies and the standard deviation of its logarithm."""
        half = Z90 * log_sd
        return cls(
            share=1.0 - ratio,
            low=1.0 - ratio * math.exp(half),
            high=1.0 - ratio * math.exp(-half),
            is_significant=abs(math.log(ratio)) > half,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to serve the trace.

    Attributes:
        label: Engine and what is not at the engine's default.
        command: What to type for it; `engine` its label, as `infergy replay --engine` takes it.
        estimate: What it draws: the same as `infergy.estimate` reports.
        saving: Of the energy of the present configuration.
        breaks: Limits that it breaks, and ``rejected_requests`` where it rejects more than another, or ``overload``
            where it cannot keep up.
        changes_outputs: Why its answers differ from those of the present one; None if they do not.
    """

    label: str
    command: tuple[str, ...]
    engine: str
    estimate: ServerEstimate
    saving: Saving
    breaks: tuple[str, ...]
    changes_outputs: str | None

    @property
    def energy_j(self) -> float:
        """Of the run."""
        return self.estimate.run.energy_j


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change on the way from the present configuration to the recommended one.

    Attributes:
        change: Option of vLLM, ``gpu``, ``precision``, ``engine``, ``usage_context``, ``version``, or ``GPUs and
            replicas``.
        label: Of the configuration after it.
        energy_j: Of that configuration.
        share: What the change saves, of the energy of the present configuration; the shares add up to the saving.
    """

    change: str
    label: str
    energy_j: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """How many configurations were looked at.

    Attributes:
        configurations: All; `pruned` of them without simulation, `windows` in windows of the trace only, `whole` whole.
        equal: Of `configurations` those whose limits on a step are above all that the trace asks for.
        reasons: Why those that cannot serve were left out, by label.
    """

    configurations: int
    pruned: int
    equal: int
    windows: int
    whole: int
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to serve a trace with.

    Attributes:
        present: Label of the present configuration, which savings are over.
        recommended: Label of the one to choose; None where no configuration keeps the limits.
        reason: ``saves``, ``present_is_best``, ``present_breaks_limits`` or ``nothing_keeps_limits``.
        configurations: Those that keep the limits first, by energy; then the rest, the nearest to its limits first.
        steps: What each change from the present to the recommended configuration saves.
        pareto: Labels of those within limits that no other betters in energy, E2E p99 and number of GPUs at once.
        static_batches: What the recommended one saves of the energy of padded static batches of transformers; None
            where those cannot serve.
        capacity: Of the present configuration, and of the recommended one with its replicas by hour; empty where not
            asked for.
    """

    trace: TraceFacts
    limits: Limits
    present: str
    recommended: str | None
    reason: str
    configurations: tuple[Configuration, ...]
    steps: tuple[Step, ...]
    pareto: tuple[str, ...]
    static_batches: Saving | None
    searched: Searched
    notes: tuple[str, ...]
    capacity: tuple[Capacity, ...] = ()
    schema: str = RECOMMEND_SCHEMA

    def of(self, label: str) -> Configuration:
        """The configuration of a label.

        Raises:
            UsageError: There is none.
        """
        known = {configuration.label: configuration for configuration in self.configurations}
        if label not in known:
            raise UsageError.unknown("configuration", label, [*known], code="unknown-name")
        return known[label]


def notes_of(
    ranked: Sequence[Configuration], present: Configuration, chosen: str | None, limits: Limits, sample: Sample
) -> Iterator[str]:
    """What a reader must know beside the figures."""
    lengths_from = sample.windows[0].requests.lengths_from
    if lengths_from is not None:
        yield lengths_from
    if present.estimate.served is None:
        yield f"all at once: {present.estimate.served_reason}; TTFT and E2E are waiting in the queue"
    elif not limits.given():
        yield "no limit on latency was given: the least energy may keep requests waiting. Type --tpot-p99 50ms"
    unknown = present.estimate.run.latency.reason
    if limits.given() and unknown is not None:
        yield f"limits on latency are not checked: {unknown}"
    for one in ranked:
        if one.label == chosen:
            yield from _near_limits(one, limits)
    yield from dict.fromkeys(note for one in ranked for note in one.estimate.notes)


def _near_limits(one: Configuration, limits: Limits) -> Iterator[str]:
    """Limits that the 90 % intervals of latencies reach beyond."""
    latency = one.estimate.run.latency
    for name, limit_s in limits.given():
        kind, percentile = name.removesuffix("_s").split("_")
        known = getattr(latency, f"{kind}_s")
        if known is not None and getattr(known.high, percentile) > limit_s:
            yield (
                f"{kind.upper()} {percentile} of {one.label} may be over the limit: its 90 % interval reaches beyond "
                "it. Measure it before you change: infergy replay"
            )


def no_arrivals(sample: Sample, limits: Limits) -> UsageError:
    """Limits on latency without arrivals mean nothing."""
    name = limits.given()[0][0].removesuffix("_s").replace("_", "-")
    message = (
        f"{sample.source}: --{name} needs arrivals, and {sample.windows[0].requests.order_reason}. Give the mean rate "
        "in requests per second, as --rate 5, or --all-at-once for a batch job"
    )
    return UsageError(message, code="no-arrivals", trace=sample.source, option=f"--{name}")


def pareto_of(ranked: Sequence[Configuration]) -> tuple[str, ...]:
    """Labels of those within limits that no other betters in energy, E2E p99 and number of GPUs at once."""
    points = []
    for one in (own for own in ranked if not own.breaks):
        e2e_s = one.estimate.run.latency.e2e_s
        points.append((one.energy_j, None if e2e_s is None else e2e_s.p99, one.estimate.gpus, one.label))
    return tuple(pareto_front(points))
