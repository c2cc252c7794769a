"""What an estimate says: the nouns of `infergy.estimate/1`.

History of the schema:
    1   first release
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infergy.estimates.ideal import Ideal
from infergy.energy.price import BinEnergy
from infergy.energy.surface import SurfaceErrors
from infergy.errors import UsageError
from infergy.records import Rescaled
from infergy.workload.bins import Bins

ESTIMATE_SCHEMA = "infergy.estimate/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFacts:
    """What was asked.

    Attributes:
        requests: Requests with output, whether or not a bin holds them.
        input_tokens: Their real input tokens, those from a prefix cache included.
        output_tokens: Their real output tokens.
        cached_input_tokens: Input tokens that a prefix cache served: they are not priced.
        failed_requests: Requests set aside because they have no output; not in `requests`.
        left_out_requests: Requests past the last bin, in `requests` but not priced.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
    """

    source: str
    requests: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    failed_requests: int
    left_out_requests: int
    lengths_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUse:
    """One file behind an estimate.

    Attributes:
        file: Its path; ``shipped NAME`` for a file inside the package.
        lengths: How many of the cells that count it gives.
        rescaled: By what its joules were multiplied to stand for another GPU; None if they were not.
    """

    file: str
    lengths: int
    driver: str | None
    power_limits_w: tuple[float | None, ...]
    packages: Mapping[str, str]
    gpu_uuids: tuple[str, ...]
    measured_from: str
    measured_to: str
    rescaled: Rescaled | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChoices:
    """How batch sizes were chosen, in words, and at how many measured lengths."""

    text: str
    lengths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an estimate comes from.

    Attributes:
        sources: The files whose rows are used, the better ranked first.
        rows: Ids of the cells that count, one at each length.
        weights: The law of the random weights, or where real ones came from.
        batch_choices: How batch sizes were chosen.
        rare_rule: How bins with fewer requests than a batch are charged.
        errors: What the model, interpolation and extrapolation get wrong, from cells left out.
        simulated: Whether the joules come from a model instead of a GPU.
    """

    sources: tuple[SourceUse, ...]
    rows: tuple[str, ...]
    weights: str
    batch_choices: tuple[BatchChoices, ...]
    rare_rule: str
    errors: SurfaceErrors
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A trace under one engine; figures are of the requests that could be priced (`priced_requests`).

    Attributes:
        gpu: Name of the GPU in the catalogue.
        engine: Label of the engine set-up: ``transformers``, ``vllm``.
        gpus: GPUs that one instance of the engine works on.
        method: ``ceiling``, ``mean``, ``table`` or ``physics`` (`infergy.estimate`).
        energy_j: Joules of GPU boards.
        interval_low_j: Lower end of the 90 % interval of `energy_j`, for the lengths at which it is priced and a chip
            of this kind: what measuring, the physical model and chips leave open. `interval_high_j` its upper end;
            None with `interval_reason` where that is not known.
        low_j: Lower bound: each request at the floor of its bin.
        high_j: Upper bound: each bin at its ceiling in whole batches, with the errors of measuring and interpolating.
        duration_s: GPU-seconds: busy time, summed over the GPUs of the set-up.
        power_w: Mean power of one GPU while busy.
        output_tokens_per_s: Real output tokens a second of one engine instance; `tokens_per_s` with input tokens.
        energy_per_request_j: Joules a request.
        energy_per_output_token_j: Joules a real output token.
        priced_requests: Requests that could be priced; `priced_output_tokens` likewise.
        coverage: Share of all requests that lie in measured bins.
        coverage_output_tokens: Share of all output tokens that lie in measured bins.
        modelled: Share of all requests in bins priced by the physical model; `interpolated` and `extrapolated` by
            curves.
        ideal_energy_j: The ideal of the priced requests.
        gap_to_ideal: (energy − ideal) / ideal, as a fraction.
        saving_vs_baseline: 1 − energy / energy of the baseline, over the requests that both could price.
        bins: Each bin, priced.
    """

    model: str
    gpu: str
    engine: str
    gpus: int
    method: str
    energy_j: float | None
    interval_low_j: float | None
    interval_high_j: float | None
    low_j: float | None
    high_j: float | None
    duration_s: float | None
    gpu_hours: float | None
    energy_wh: float | None
    power_w: float | None
    output_tokens_per_s: float | None
    tokens_per_s: float | None
    energy_per_request_j: float | None
    energy_per_output_token_j: float | None
    priced_requests: int
    priced_output_tokens: int
    coverage: float
    coverage_output_tokens: float
    modelled: float
    interpolated: float
    extrapolated: float
    ideal_energy_j: float | None
    gap_to_ideal: float | None
    saving_vs_baseline: float | None
    provenance: Provenance
    bins: tuple[BinEnergy, ...]
    energy_reason: str | None = None
    interval_reason: str | None = None
    low_reason: str | None = None
    high_reason: str | None = None
    gap_reason: str | None = None
    saving_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEstimate:
    """A trace under several engines, beside the ideal.

    Attributes:
        ideal: The reference for all requests in bins; None with `ideal_reason` where it cannot be known.
        bins: The bins' edges.
        notes: What a reader must know to read the figures, in words.
    """

    trace: TraceFacts
    ideal: Ideal | None
    estimates: tuple[Estimate, ...]
    baseline: str
    bins: Bins
    notes: tuple[str, ...] = ()
    ideal_reason: str | None = None
    schema: str = ESTIMATE_SCHEMA

    def of(self, engine: str) -> Estimate:
        """The estimate of one engine.

        Raises:
            UsageError: That engine was not estimated.
        """
        for estimate in self.estimates:
            if estimate.engine == engine:
                return estimate
        raise UsageError.unknown("estimated engine", engine, [e.engine for e in self.estimates])
