"""Figures that are not sweeps of rows: shares of decode, weight initialisations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from infergy.errors import DataError
from infergy.quality.phases import CellPhases, PhaseEnergy, SetupPhases, find_phases
from infergy.records import RANDOM_WEIGHTS, Measurement
from infergy.records.agreement import IDENTITY, MUST, key_of
from infergy.report.changes import Change, changes
from infergy.report.figures import Figure, draw_shares, interval_of, told
from infergy.report.ours import Evidence
from infergy.report.points import Point
from infergy.units import format_percent, format_si

UNKNOWN = "unknown"
FEWEST_OUTPUTS = 5
"""Outputs at one input from which on the share of decode is drawn as a line."""

PHASE_HEAD = ("Cell", "Engine", "Prefill, J a batch", "Decode, J a batch", "Decode's share", "By")
WEIGHTS_HEAD = ("Cell", "Weights", "Change", "95 % interval")


def phases_of(points: Sequence[Point]) -> tuple[SetupPhases, ...]:
    """Prefill and decode, set-up by set-up, each environment by itself; nothing where they cannot be told."""
    groups: dict[object, list[Measurement]] = {}
    for point in points:
        groups.setdefault(key_of(point.row, (*IDENTITY, *MUST)), []).append(point.row)
    found: list[SetupPhases] = []
    for rows in groups.values():
        # Of rescaled tables no phases are told.
        with suppress(DataError):
            found += find_phases(rows).setups
    return tuple(found)


def draw_phases(evidence: Evidence) -> Iterator[Figure]:
    """Decode's share of the joules over output lengths; nothing where phases cannot be told apart."""
    by_id = {point.row.cell_id: point for point in evidence.points}
    drawn: list[tuple[SetupPhases, CellPhases, PhaseEnergy, Point]] = []
    for setup in phases_of(evidence.points):
        for cell in _largest(setup):
            energy = cell.pair or cell.fit
            if energy is not None and cell.cell_id in by_id:
                drawn.append((setup, cell, energy, by_id[cell.cell_id]))
    models = {setup.model for setup, *_ in drawn}
    if (
        not drawn
        or len(models) > 1
        or len({(setup.label, setup.gpu, setup.weights) for setup, *_ in drawn})
        != len({setup.label for setup, *_ in drawn})
    ):
        return
    yield draw_shares(
        "phases",
        f"{drawn[0][0].model}: decode's share of the joules by output length",
        "By paired cells of one output token where these were measured, else by a law fitted to all cells of the "
        "engine (docs/phases.md). Batches are the largest measured, which differ along a line. Upright lines: at most "
        "that far off, from the intervals of both phases; hollow marks: unknown.",
        [_share(setup, cell, energy, point) for setup, cell, energy, point in drawn],
        x="output",
        y_title="decode over prefill and decode, joules",
        lines="input",
        head=PHASE_HEAD,
        table=[_phase_row(setup, cell, energy) for setup, cell, energy, _ in drawn],
        points=[point for *_, point in drawn],
    )


def _largest(setup: SetupPhases) -> Iterator[CellPhases]:
    """The largest batch of each length, at inputs of which many outputs were measured."""
    best: dict[tuple[int, int], CellPhases] = {}
    for cell in setup.cells:
        place = (cell.input_tokens, cell.output_tokens)
        if cell.output_tokens > 1 and (place not in best or best[place].batch < cell.batch):
            best[place] = cell
    for (tokens_in, _), cell in sorted(best.items()):
        if sum(one == tokens_in for one, _ in best) >= FEWEST_OUTPUTS:
            yield cell


def _share(setup: SetupPhases, cell: CellPhases, energy: PhaseEnergy, point: Point) -> dict[str, object]:
    prefill, decode = energy.prefill, energy.decode
    ends: tuple[float | None, float | None] = (None, None)
    if None not in (prefill.low_j, prefill.high_j, decode.low_j, decode.high_j):
        assert prefill.low_j is not None and prefill.high_j is not None  # noqa: PT018 - for the type checker
        assert decode.low_j is not None and decode.high_j is not None  # noqa: PT018
        least, most = max(0.0, decode.low_j), max(0.0, decode.high_j)
        ends = (least / (least + prefill.high_j), most / (most + max(0.0, prefill.low_j)))
    return {
        "series": setup.label,
        "x": cell.output_tokens,
        "line": f"{cell.input_tokens:,}",
        "joules": energy.decode_share,
        **interval_of(*ends),
        **told(
            point,
            value=f"{format_percent(energy.decode_share)}: {format_si(decode.value_j, 'J')} of decode a batch",
            interval=UNKNOWN if ends[0] is None or ends[1] is None else f"{ends[0]:.1%} .. {ends[1]:.1%}",
        ),
    }


def _phase_row(setup: SetupPhases, cell: CellPhases, energy: PhaseEnergy) -> tuple[str, ...]:
    return (
        cell.cell,
        setup.label,
        format_si(energy.prefill.value_j, "J"),
        format_si(energy.decode.value_j, "J"),
        format_percent(energy.decode_share),
        "pair" if cell.pair is not None else "fit",
    )


def draw_weights(points: Sequence[Point]) -> Iterator[Figure]:
    """Joules under other weights against infergy's own random ones, by batch."""
    usual = [point for point in points if point.row.cell.setup.weights == RANDOM_WEIGHTS]
    others = [point for point in points if point.row.cell.setup.weights != RANDOM_WEIGHTS]
    for label, model in dict.fromkeys((point.label, point.model) for point in others):
        own = [one for one in usual if (one.label, one.model) == (label, model)]
        found = [
            (point.row.cell.setup.weights, point, change)
            for point in others
            if (point.label, point.model) == (label, model)
            for change in changes(own, [point])
        ]
        if found:
            yield _draw_weights(label, model, found)


def _draw_weights(label: str, model: str, found: Sequence[tuple[str, Point, Change]]) -> Figure:
    """A figure an engine: how certain their cells are differs too much for one axis."""
    return draw_shares(
        f"weights-{label}",
        f"{label} {model}: energy a request under other weights against N(0, 0.02)",
        "Upright lines: 95 % intervals of both cells together; where one crosses 0 no difference is shown. "
        "Hollow marks: interval unknown.",
        [_changed(series, point, one) for series, point, one in found],
        x="batch",
        y_title="change of joules a request",
        lines=None,
        head=WEIGHTS_HEAD,
        table=[
            (str(point.row.cell), series, format_percent(one.value, signed=True), _ends(one))
            for series, point, one in found
        ],
        points=[point for _, point, _ in found],
    )


def _changed(series: str, point: Point, one: Change) -> dict[str, object]:
    return {
        "series": series,
        "x": point.batch,
        "line": "",
        "joules": one.value,
        "low": one.low,
        "high": one.high,
        **told(point, value=format_percent(one.value, signed=True), interval=_ends(one)),
    }


def _ends(one: Change) -> str:
    if one.low is None or one.high is None:
        return UNKNOWN
    return f"{format_percent(one.low, signed=True)} .. {format_percent(one.high, signed=True)}"
