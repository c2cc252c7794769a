"""What a page ends in: every measured configuration ranked for each trace, and what to type for the first."""

from __future__ import annotations

from collections.abc import Iterator

from infergy.energy.recommend import Configuration, Recommendation
from infergy.report.dots import draw_dots
from infergy.report.figures import Figure, interval_of
from infergy.report.ours import Evidence, gpu_title
from infergy.units import format_percent, format_si

X_TITLE = "energy of the trace, J"
HEAD = ("Configuration", "J in all", "± own", "Saves", "Largest batch", "Remarks", "To type")
OWN = "± by what is not common to them"


def draw_advice(evidence: Evidence) -> Iterator[Figure]:
    """A figure for each trace that was ranked."""
    for number, (trace, ranking) in enumerate(evidence.rankings.items(), 1):
        if ranking.trace.requests:
            yield _draw(f"advice-{number}", trace, ranking, evidence)


def _draw(name: str, trace: str, ranking: Recommendation, evidence: Evidence) -> Figure:
    labels = {one.engine for one in ranking.configurations}
    return draw_dots(
        name,
        f"{trace}: energy of {ranking.model} on {gpu_title(ranking.gpu)} by configuration",
        _note(ranking),
        [_value(one, ranking) for one in ranking.configurations],
        x_title=X_TITLE,
        head=HEAD,
        table=[_row(one, ranking) for one in ranking.configurations],
        points=[
            point
            for point in evidence.points
            if point.label in labels and point.model == ranking.model and point.row.cell.load.is_online is False
        ],
    )


def _note(ranking: Recommendation) -> str:
    best = ranking.best
    steps = "; ".join(
        f"{step.change}: {format_si(step.energy_j, 'J')}"
        + ("" if step.is_significant else " (no significant difference)")
        for step in ranking.steps
    )
    told = [f"Fewest joules: {_name(best)}. To type: {' '.join(best.options)}."]
    told += [f"From {ranking.baseline}, step by step: {steps}."] if steps else []
    told += [
        "Thin lines: what is not common to the configurations; where they overlap as docs/recommend.md tells, there is "
        "no significant difference. With a bound on latency and for your own log: infergy recommend."
    ]
    return " ".join(told)


def _name(one: Configuration) -> str:
    batches = "batches of any duration" if one.max_batch_s is None else f"batches within {one.max_batch_s:g} s"
    return f"{one.engine}, {batches}"


def _value(one: Configuration, ranking: Recommendation) -> dict[str, object]:
    own = one.own_error
    return {
        "place": _name(one),
        "series": one.engine,
        "joules": one.energy_j,
        **interval_of(one.energy_j * (1 - own), one.energy_j * (1 + own)),
        "cell": _name(one),
        "value": format_si(one.energy_j, "J"),
        "interval": f"± {format_percent(own)} {OWN}",
        "batch takes": f"up to {format_si(one.longest_batch_s, 's')}",
        "power": "see the table of its cells",
        "flags": _remarks(one, ranking) or "none",
    }


def _remarks(one: Configuration, ranking: Recommendation) -> str:
    remarks = []
    if one.like_best and one is not ranking.best:
        remarks.append("no significant difference from the first")
    if one.changes_outputs:
        remarks.append(f"changes outputs: {one.changes_outputs}")
    return "; ".join(remarks)


def _row(one: Configuration, ranking: Recommendation) -> tuple[str, ...]:
    return (
        _name(one),
        format_si(one.energy_j, "J"),
        format_percent(one.own_error),
        "unknown" if one.saving is None else format_percent(one.saving),
        f"{one.largest_batch}",
        _remarks(one, ranking) or "-",
        " ".join(one.options),
    )
