"""Our value for each claim of the study, from measured cells and estimates, by one function for each kind of claim."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import resources
from itertools import product
from statistics import fmean

from infergy.estimates.paper import PaperServer
from infergy.quality.phases import SetupPhases
from infergy.records import Load
from infergy.records.agreement import ONE_CHANGE, key_of
from infergy.report.evidence import Evidence, gpu_title
from infergy.report.points import Interval, Point, as_interval, group_by
from infergy.units import count_of, format_number, format_percent

ENERGY, LATENCY = "energy", "latency"
REVERSED = "reversed"
MOST, MEAN = "most", "mean"
PREFILL_FLAT_TO, PREFILL_LONG_FROM = 128, 512
"""Input tokens up to which the study finds the energy of prefill constant, and from which it surely grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OurValue:
    """Our value for a claim.

    Attributes:
        method: What the value and its interval are of, or why there is none.
        value: As the claim's; None where there is none, or where `text` describes it.
        interval: None where unknown.
        text: The result where it is no single number.
        hardware: Where it was measured; None without a result.
        finding: How it contradicts the study's; None where it does not.
    """

    method: str
    value: float | None = None
    interval: Interval | None = None
    text: str | None = None
    hardware: str | None = None
    finding: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether there is a result."""
        return self.value is not None or self.text is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One cell compared with another under the same load: a ratio less 1, and its 95 % interval; None where unknown."""

    cell: str
    gpu: str
    value: float
    interval: Interval | None

    def __str__(self) -> str:
        value = format_percent(self.value, signed=True)
        return value if self.interval is None else f"{value} ({interval_text(self.interval)})"

    @property
    def method(self) -> str:
        """What its interval is of."""
        return self.cell if self.interval is None else f"95 % interval of {self.cell}"


def interval_text(interval: Interval, *, signed: bool = True) -> str:
    """An interval of fractions in percent."""
    return " .. ".join(format_percent(end, signed=signed) for end in interval)


def changes(before: Iterable[Point], after: Iterable[Point], quantity: str = ENERGY) -> list[Change]:
    """Cells compared with those of the same load, but for arrival times, and the same environment.

    Each cell of `after` counts once. Of several measurements of a cell, the pair of the same GPUs counts, else, and of
    several such, the two that were measured soonest after one another: most likely on one host.
    """
    loads = group_by(before, _load_key)
    cells = group_by(after, lambda point: (_load_key(point), point.row.cell_id))
    pairs = (min(product(loads[key], points), key=_distance) for (key, _), points in cells.items() if key in loads)
    return [_change(first, second, quantity) for first, second in pairs]


def _load_key(point: Point) -> tuple[object, Load]:
    return key_of(point.row, ONE_CHANGE), replace(point.load, arrivals=None)


def _distance(pair: tuple[Point, Point]) -> tuple[bool, timedelta]:
    first, second = (point.row for point in pair)
    uuids = [[gpu.uuid for gpu in row.environment.gpus] for row in (first, second)]
    apart = datetime.fromisoformat(first.measured_utc) - datetime.fromisoformat(second.measured_utc)
    return uuids[0] != uuids[1], abs(apart)


def _change(before: Point, after: Point, quantity: str) -> Change:
    arrivals = after.load.arrivals
    cell = f"{after.load.input_tokens}→{after.load.output_tokens} × {after.batch}"
    cell += "" if arrivals is None else f" {arrivals.label}"
    if quantity == LATENCY:
        return Change(cell=cell, gpu=after.gpu, value=after.duration_s / before.duration_s - 1, interval=None)
    ratio = after.energy_j / before.energy_j
    interval = None
    if before.interval_j and after.interval_j and before.interval_j[0] > 0 and after.interval_j[0] > 0:
        # Half-widths of both logarithms, independent of each other, add in quadrature: the ratio is lowest where
        # `after` is low and `before` is high.
        before_low, before_high = (math.log(end / before.energy_j) for end in before.interval_j)
        after_low, after_high = (math.log(end / after.energy_j) for end in after.interval_j)
        down, up = math.hypot(after_low, before_high), math.hypot(after_high, before_low)
        interval = (ratio * math.exp(-down) - 1, ratio * math.exp(up) - 1)
    return Change(cell=cell, gpu=after.gpu, value=ratio - 1, interval=interval)


def gap(evidence: Evidence, *, trace: str, engine: str) -> OurValue:
    """(energy of a trace − ideal) / ideal, by the study's method."""
    server = _paper_server(evidence, trace, engine)
    if server is None:
        return OurValue(method=f"no estimate of {trace} with {engine}")
    ideal_j = server.compared.ideal_energy_j
    if ideal_j is None:
        return OurValue(method="no bin of the trace fits the server")
    ends_j = as_interval(server.low_j, server.high_j)
    return OurValue(
        value=server.compared.gap_to_ideal,
        interval=None if ends_j is None else (ends_j[0] / ideal_j - 1, ends_j[1] / ideal_j - 1),
        hardware=gpu_title(server.gpu),
        method="all requests at the floor of their bins .. whole batches at the ceiling",
    )


def saving(evidence: Evidence, *, trace: str, engine: str, baseline: str) -> OurValue:
    """1 − energy of a trace over that with the baseline, by the study's method."""
    server = _paper_server(evidence, trace, engine)
    if server is None:
        return OurValue(method=f"no estimate of {trace} with {engine}")
    compared = server.compared
    if compared.saving_vs_baseline is None or evidence.papers[trace].baseline != baseline:
        return OurValue(method=compared.saving_reason or f"no estimate of {baseline}")
    return OurValue(
        value=compared.saving_vs_baseline,
        interval=as_interval(compared.saving_low, compared.saving_high),
        hardware=gpu_title(server.gpu),
        method="90 % interval of both engines' cost models",
    )


def _paper_server(evidence: Evidence, trace: str, engine: str) -> PaperServer | None:
    servers = evidence.papers[trace].servers if trace in evidence.papers else ()
    return next((server for server in servers if server.engine == engine), None)


def regression(evidence: Evidence, *, label: str) -> OurValue:
    """How well a regression linear in output tokens fits all cells of an engine config."""
    setup = _most_fitted(evidence, label)
    if setup is None or setup.fit is None:
        return OurValue(method=f"no regression was fitted to rows of {label}")
    fit = setup.fit
    worst = format_percent(fit.worst_residual, signed=True)
    return OurValue(
        text=f"linear but for attention: median residual {format_percent(fit.median_residual)}",
        hardware=setup.gpu,
        method=f"worst of {count_of(fit.rows, 'cell')} {worst} (docs/phases.md)",
    )


def decode_share(evidence: Evidence, *, label: str) -> OurValue:
    """Decode's share of the energy at the smallest and the largest batch, at the length with most batches."""
    setup = _most_fitted(evidence, label)
    lengths: dict[str, dict[int, float]] = {}
    for cell in () if setup is None else setup.cells:
        energy = cell.pair or cell.fit
        if energy is not None and cell.output_tokens > 1:
            name = f"{cell.input_tokens}→{cell.output_tokens}"
            lengths.setdefault(name, {})[cell.batch] = energy.decode_share
    length, shares = max(lengths.items(), key=lambda item: len(item[1]), default=("", {}))
    if setup is None or len(shares) < 2:
        return OurValue(method=f"too few batches of one length with {label}")
    ends = ", ".join(f"{format_percent(shares[batch])} at batch {batch}" for batch in (min(shares), max(shares)))
    is_reversed = shares[max(shares)] < 0.5
    return OurValue(
        text=f"{length}: {ends}",
        hardware=setup.gpu,
        method="decode's share (docs/phases.md)",
        finding=f"{REVERSED} at batch {max(shares)}: prefill takes most" if is_reversed else None,
    )


def _most_fitted(evidence: Evidence, label: str) -> SetupPhases | None:
    """Of an engine config's regressions that of most cells."""
    fitted = [(setup.fit.rows, setup) for setup in evidence.phases if setup.label == label and setup.fit is not None]
    return max(fitted, key=lambda pair: pair[0])[1] if fitted else None


def prefill(evidence: Evidence, *, label: str, model: str) -> OurValue:
    """Energy of a single request over its input length, at the fewest output tokens with short and long inputs."""
    single = [point for point in evidence.points if (point.label, point.model, point.batch) == (label, model, 1)]
    for output, gpu in sorted({(point.lengths[1], point.gpu) for point in single}):
        energy_j = {
            point.lengths[0]: point.energy_j for point in single if (point.lengths[1], point.gpu) == (output, gpu)
        }
        long = sorted(tokens for tokens in energy_j if tokens >= PREFILL_LONG_FROM)
        first = min(energy_j)
        if PREFILL_FLAT_TO not in energy_j or first == PREFILL_FLAT_TO or len(long) < 2:
            continue
        change = energy_j[PREFILL_FLAT_TO] / energy_j[first] - 1
        growth, tokens = energy_j[long[-1]] / energy_j[long[0]], long[-1] / long[0]
        return OurValue(
            text=f"{format_percent(change, signed=True)} from {first} to {PREFILL_FLAT_TO} tokens, then × "
            f"{format_number(growth)} from {long[0]:,} to {long[-1]:,} (× {format_number(tokens)} tokens)",
            hardware=gpu,
            method=f"batch 1, with the decode of {output} output tokens",
        )
    return OurValue(method=f"inputs below {PREFILL_FLAT_TO} tokens were measured at large batches only, with {label}")


def change(
    evidence: Evidence,
    *,
    label: str,
    against: str,
    model: str | None = None,
    against_model: str | None = None,
    quantity: str = ENERGY,
    least_batch: int = 1,
    most_batch: float = math.inf,
    pick: str = MEAN,
) -> OurValue:
    """Energy (or latency) of cells of one engine config over those of another under the same load, less 1.

    Without a model, each is compared with itself. Of several loads, `pick` takes the ``least``, the ``most`` or the
    geometric ``mean`` of the ratios.
    """
    other = against_model or model
    points = [point for point in evidence.points if least_batch <= point.batch <= most_batch]
    groups = group_by(points, lambda point: (point.label, point.model, point.setup.weights))
    found: list[Change] = []
    for (engine, name, weights), cells in sorted(groups.items()):
        if engine == label and model in (None, name):
            found += changes(groups.get((against, other or name, weights), ()), cells, quantity)
    if not found:
        names = map(" ".join, (filter(None, (label, model)), filter(None, (against, other))))
        return OurValue(method=f"no load was measured with both {' and '.join(names)}")
    if pick == MEAN and len(found) > 1:
        return _mean(found)
    return _extreme(found, max if pick == MOST else min, "cell")


def _mean(found: Sequence[Change]) -> OurValue:
    values = [each.value for each in found]
    return OurValue(
        value=math.exp(fmean(math.log1p(value) for value in values)) - 1,
        interval=(min(values), max(values)),
        hardware=", ".join(dict.fromkeys(each.gpu for each in found)),
        method=f"geometric mean of {len(found)} cells; the lowest .. the highest of them",
    )


def _extreme(found: Sequence[Change], choose: Callable[..., Change], noun: str) -> OurValue:
    """The least or largest change, and that of each other kind of GPU."""
    of_gpu = {
        gpu: choose((each for each in found if each.gpu == gpu), key=lambda each: each.value)
        for gpu in dict.fromkeys(each.gpu for each in found)
    }
    chosen = choose(of_gpu.values(), key=lambda each: each.value)
    others = "".join(f"; {each} on {gpu}" for gpu, each in of_gpu.items() if each is not chosen)
    count = f", of {count_of(len(found), noun)}" if len(found) > 1 else ""
    method = f"{chosen.method}{count}{others}"
    return OurValue(value=chosen.value, interval=chosen.interval, hardware=chosen.gpu, method=method)


def online(evidence: Evidence, *, label: str) -> OurValue:
    """The least energy at any arrival rate over that of the same requests all at once, less 1."""
    offline = group_by(evidence.points, lambda point: point.setup)
    cells = group_by((point for point in evidence.online if point.setup.label == label), lambda point: point.setup)
    found = [each for setup, points in cells.items() for each in changes(offline.get(setup, ()), points)]
    if not found:
        return OurValue(method=f"no requests were measured both online and offline with {label}")
    return _extreme(found, min, "online cell")


def kernels(_evidence: Evidence, *, tokens: int) -> OurValue:
    """Time of the fused expert kernels over that of a dense layer, less 1: of data/expert_kernels.json."""
    profile = json.loads((resources.files("infergy") / "data/expert_kernels.json").read_text(encoding="utf-8"))
    row = next(row for row in profile["rows"] if row["tokens"] == tokens)
    return OurValue(
        value=row["experts_s"] / row["dense_s"] - 1,
        hardware=profile["gpu"],
        method=f"kernels of one layer by torch's profiler, vLLM {profile['packages']['vllm']}, {profile['weights']}: "
        f"{1e6 * row['experts_s']:.0f} µs against {1e6 * row['dense_s']:.0f} µs",
    )


KINDS: dict[str, Callable[..., OurValue]] = {
    function.__name__: function
    for function in (gap, saving, regression, decode_share, prefill, change, online, kernels)
}
"""By the ``kind`` of a claim in ``data/claims.toml``, whose other keys are the arguments."""
