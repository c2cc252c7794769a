"""What measured rows say to each claim of the study: our figure, its interval, its hardware, or why there is none."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from statistics import fmean
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.report.changes import ENERGY, changes
from infergy.report.points import Point
from infergy.units import count_of, format_number, format_percent

if TYPE_CHECKING:
    from infergy.estimates.paper import PaperEstimate
    from infergy.estimates.recommend import Recommendation
    from infergy.estimates.results import TraceEstimate

NOT_MEASURED = "not measured yet"
REVERSED = "reversed"
HALF = 0.5
FLAT_TO, SHORTEST_LONG = 128, 512
"""Input tokens up to which the study finds prefill flat, and from which it surely is not."""

FEWEST_LONG = 2
LEAST, MOST, MEAN = "least", "most", "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How ours is found: the table at the top of ``data/claims.toml`` tells the kinds; None and empty where unused.

    Attributes:
        batch: Only cells of that batch; None for all. `most_batch` likewise, of at most that batch.
    """

    kind: str
    reason: str = ""
    trace: str = ""
    engine: str = ""
    baseline: str = ""
    label: str = ""
    against: str = ""
    model: str | None = None
    against_model: str | None = None
    quantity: str = ENERGY
    batch: int | None = None
    most_batch: int | None = None
    pick: str = MEAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One number of the study.

    Attributes:
        study: Name of the study it belongs to (`infergy.report.studies`).
        claim: In words.
        paper: The paper's value, a fraction; None where it tells a shape, not a number.
        hardware: Where the paper measured it.
        ours: How ours is found.
        signed: Whether its number is shown with its sign: a change is, a saving is not.
        caveat: What a reader of ours must know, where it was measured; empty if nothing.
    """

    study: str
    claim: str
    hardware: str
    ours: Recipe
    paper: float | None = None
    signed: bool = True
    caveat: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What our rows say to a claim.

    Attributes:
        value: As the claim's; None where there is none, or where `text` says it.
        low: Lower end of the interval; None where unknown. `high` likewise.
        text: In words, where a number does not say it.
        hardware: Where we measured it; None if we did not.
        basis: What the value and its interval are of, or why there is none.
        finding: How ours contradicts the paper's; None where it does not.
    """

    basis: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    text: str | None = None
    hardware: str | None = None
    finding: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether there is anything of ours."""
        return self.value is not None or self.text is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What claims are compared with.

    Attributes:
        points: Cells measured offline.
        online: Cells whose requests arrived one after the other.
        replays: Cells whose requests had lengths of their own, all there at once.
        estimates: Of traces served, by name; `papers` by the study's method; `rankings` of configurations.
        laws: Of prefill and decode by set-up label: rows, median and worst residual.
        failed: Why, in a word, cells have no number, by name of the GPU and id.
    """

    points: Sequence[Point]
    estimates: Mapping[str, TraceEstimate] = field(default_factory=dict)
    papers: Mapping[str, PaperEstimate] = field(default_factory=dict)
    rankings: Mapping[str, Recommendation] = field(default_factory=dict)
    laws: Mapping[str, Law] = field(default_factory=dict)
    online: Sequence[Point] = ()
    replays: Sequence[Point] = ()
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """How well a law linear in output tokens fits, residuals as fractions, and what it makes of one length.

    Attributes:
        shares: Decode's share of the joules by batch, at the length of which most batches were measured.
        length: That length, in words.
    """

    rows: int
    median_residual: float
    worst_residual: float
    gpu: str
    length: str = ""
    shares: Mapping[int, float] = field(default_factory=dict)


def load_claims() -> tuple[str, tuple[Claim, ...]]:
    """The claims that ship, after their source in words."""
    text = (resources.files("infergy") / "data" / "claims.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    claims = tuple(_claim(one) for one in content["claims"])
    return str(content["source"]), claims


def _claim(data: Mapping[str, Any]) -> Claim:
    try:
        return Claim(**{**data, "ours": Recipe(**data["ours"])})
    except (KeyError, TypeError) as error:
        message = f"claims.toml: {data.get('claim', 'a claim')}: {error}"
        raise DataError(message, code="bad-claim", claim=data.get("claim"), reason=str(error)) from error


def find_ours(claim: Claim, evidence: Evidence) -> Ours:
    """What the evidence says to a claim; `Ours.basis` says why where it says nothing."""
    return judge(claim, _find(claim.ours, evidence))


def judge(claim: Claim, ours: Ours) -> Ours:
    """Ours with the claim's caveat, and with what it contradicts."""
    if not ours.is_measured:
        return ours
    basis = f"{ours.basis}; {claim.caveat}" if claim.caveat else ours.basis
    return replace(ours, basis=basis, finding=ours.finding or _reversal(claim, ours))


def _reversal(claim: Claim, ours: Ours) -> str | None:
    """Where ours goes the other way than the paper's, how surely."""
    if claim.paper is None or ours.value is None or claim.paper * ours.value >= 0:
        return None
    if ours.low is None or ours.high is None:
        return f"{REVERSED}, interval unknown"
    return REVERSED if ours.low * ours.high > 0 else f"{REVERSED}, but its interval holds 0"


def _find(recipe: Recipe, evidence: Evidence) -> Ours:
    if recipe.kind == "missing":
        return Ours(basis=recipe.reason)
    if recipe.kind in ("gap", "saving"):
        return _of_trace(recipe, evidence)
    if recipe.kind in ("law", "share"):
        return _of_law(recipe, evidence)
    if recipe.kind == "prefill":
        return _of_prefill(recipe, evidence)
    if recipe.kind == "online":
        return _of_online(recipe, evidence)
    return _of_change(recipe, evidence)


def _of_trace(recipe: Recipe, evidence: Evidence) -> Ours:
    paper = evidence.papers.get(recipe.trace)
    if paper is None:
        return Ours(basis=f"no estimate of {recipe.trace} here")
    server = next((server for server in paper.servers if server.engine == recipe.engine), None)
    if server is None:
        return Ours(basis=f"no estimate of {recipe.engine}")
    compared, hardware = server.compared, gpu_title(server.gpu)
    if recipe.kind == "gap":
        ideal_j = compared.ideal_energy_j
        if ideal_j is None:
            return Ours(basis="no bin of the trace fits the server")
        low, high = (None if end_j is None else end_j / ideal_j - 1 for end_j in (server.low_j, server.high_j))
        basis = "all requests at the floor of their bins .. whole batches at the ceiling"
        return Ours(value=compared.gap_to_ideal, low=low, high=high, hardware=hardware, basis=basis)
    if compared.saving_vs_baseline is None or paper.baseline != recipe.baseline:
        return Ours(basis=compared.saving_reason or f"no estimate of {recipe.baseline}")
    return Ours(
        value=compared.saving_vs_baseline,
        low=compared.saving_low,
        high=compared.saving_high,
        hardware=hardware,
        basis="90 % interval of both engines' cost models",
    )


def gpu_title(name: str) -> str:
    """The vendor's name of a GPU that the catalogue knows; others as they are."""
    from infergy.hardware import find_gpu_by_driver_name

    known = find_gpu_by_driver_name(name)
    return name if known is None else known.title


def _of_law(recipe: Recipe, evidence: Evidence) -> Ours:
    law = evidence.laws.get(recipe.label)
    if law is None:
        return Ours(basis=f"no law was fitted to rows of {recipe.label}")
    if recipe.kind == "share":
        if len(law.shares) < 2:
            return Ours(basis=f"too few batches of one length by {recipe.label}")
        ends = [f"{format_percent(law.shares[batch])} at batch {batch}" for batch in (min(law.shares), max(law.shares))]
        largest = max(law.shares)
        return Ours(
            text=f"{law.length}: {', '.join(ends)}",
            hardware=law.gpu,
            basis="decode's share (docs/phases.md)",
            finding=f"{REVERSED} at batch {largest}: prefill takes most" if law.shares[largest] < HALF else None,
        )
    text = f"linear but for attention: median residual {format_percent(law.median_residual)}"
    basis = f"worst of {count_of(law.rows, 'cell')} {format_percent(law.worst_residual, signed=True)} (docs/phases.md)"
    return Ours(text=text, hardware=law.gpu, basis=basis)


def _of_prefill(recipe: Recipe, evidence: Evidence) -> Ours:
    """Joules of one request alone over its input, at the fewest output tokens of which short and long were measured."""
    alone = [
        one for one in evidence.points if one.label == recipe.label and one.batch == 1 and one.model == recipe.model
    ]
    for gpu, output in sorted({(one.gpu, one.lengths[1]) for one in alone}, key=lambda pair: pair[::-1]):
        line = {one.lengths[0]: one for one in alone if (one.gpu, one.lengths[1]) == (gpu, output)}
        short = [tokens for tokens in line if tokens < FLAT_TO]
        long = sorted(tokens for tokens in line if tokens >= SHORTEST_LONG)
        if FLAT_TO not in line or not short or len(long) < FEWEST_LONG:
            continue
        first, (least, most) = min(short), (long[0], long[-1])
        change = line[FLAT_TO].energy_j / line[first].energy_j - 1
        growth = line[most].energy_j / line[least].energy_j
        return Ours(
            text=f"{format_percent(change, signed=True)} from {first} to {FLAT_TO} tokens, then × "
            f"{format_number(growth)} from {least:,} to {most:,} (× {format_number(most / least)} tokens)",
            hardware=gpu,
            basis=f"batch 1, {output} output tokens, whose decode is in it",
        )
    return Ours(basis=f"inputs below {FLAT_TO} were measured at large batches only, by {recipe.label}")


def _of_change(recipe: Recipe, evidence: Evidence) -> Ours:
    chosen = [
        one
        for one in evidence.points
        if recipe.batch in (None, one.batch) and (recipe.most_batch is None or one.batch <= recipe.most_batch)
    ]
    other = recipe.against_model or recipe.model
    a = [one for one in chosen if one.label == recipe.against and other in (None, one.model)]
    b = [one for one in chosen if one.label == recipe.label and recipe.model in (None, one.model)]
    # Without a model named, each is held against itself.
    names = sorted({one.model for one in b}) if recipe.model is None else [None]
    found = [
        change
        for name in names
        for weights in sorted({_weights(one) for one in b})
        for change in changes(
            [one for one in a if name in (None, one.model) and _weights(one) == weights],
            [one for one in b if name in (None, one.model) and _weights(one) == weights],
            recipe.quantity,
        )
    ]
    if not found:
        return Ours(
            basis=f"no load was measured with both {_name(recipe.label, recipe.model)} and "
            f"{_name(recipe.against, other)}"
        )
    if recipe.pick != MEAN or len(found) == 1:
        key = min if recipe.pick == LEAST else max
        of_gpu = {
            gpu: key((one for one in found if one.gpu == gpu), key=lambda change: change.value)
            for gpu in dict.fromkeys(one.gpu for one in found)
        }
        one = key(of_gpu.values(), key=lambda change: change.value)
        basis = one.basis + (f", of {count_of(len(found), 'cell')}" if len(found) > 1 else "")
        others = "".join(f"; {other.in_words} on {gpu}" for gpu, other in of_gpu.items() if other is not one)
        return Ours(value=one.value, low=one.low, high=one.high, hardware=one.gpu, basis=basis + others)
    mean = math.exp(fmean(math.log1p(change.value) for change in found)) - 1
    values = [change.value for change in found]
    basis = f"geometric mean of {count_of(len(found), 'cell')}; the lowest .. the highest of them"
    hardware = ", ".join(dict.fromkeys(change.gpu for change in found))
    return Ours(value=mean, low=min(values), high=max(values), hardware=hardware, basis=basis)


def _of_online(recipe: Recipe, evidence: Evidence) -> Ours:
    """The least of all rates and batches, against the same requests at once by the same set-up."""
    b = [one for one in evidence.online if one.row.cell.setup.label == recipe.label]
    found = [
        change
        for setup in {one.row.cell.setup for one in b}
        for change in changes(
            [one for one in evidence.points if one.row.cell.setup == setup],
            [one for one in b if one.row.cell.setup == setup],
        )
    ]
    if not found:
        return Ours(basis=f"no requests were measured both online and offline with {recipe.label}")
    one = min(found, key=lambda change: change.value)
    basis = f"{one.basis}, of {len(found)} online cells"
    return Ours(value=one.value, low=one.low, high=one.high, hardware=one.gpu, basis=basis)


def _weights(point: Point) -> str:
    return point.row.cell.setup.weights


def _name(label: str, model: str | None) -> str:
    return label if model is None else f"{label} {model}"


def ratio_text(claim: Claim, ours: Ours) -> str:
    """Ours over the paper's, where both are numbers of one sign; else how it contradicts the paper's, if it does."""
    if ours.finding is not None:
        return ours.finding
    if claim.paper is None or ours.value is None:
        return "-"
    # The ends of a trace's gap are brackets, no interval.
    if claim.ours.kind == "change" and ours.low is not None and ours.high is not None and ours.low < 0 < ours.high:
        return "interval holds 0"
    return f"{format_number(ours.value / claim.paper)}"
