"""What a page ends in: configurations ranked for each trace, and what to type for the one to choose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from infergy.report.dots import draw_dots
from infergy.report.figures import Figure, interval_of
from infergy.report.ours import Evidence, gpu_title
from infergy.units import format_latency, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.recommend import Configuration, Recommendation

X_TITLE = "energy of the trace, J"
HEAD = ("Configuration", "Energy", "90 % interval", "Saves", "90 % of the saving", "TTFT p50", "Remarks", "To type")


def draw_advice(evidence: Evidence) -> Iterator[Figure]:
    """A figure for each trace that configurations were ranked for."""
    for number, (trace, ranking) in enumerate(evidence.rankings.items(), 1):
        yield _draw(f"advice-{number}", trace, ranking, evidence)


def _draw(name: str, trace: str, ranking: Recommendation, evidence: Evidence) -> Figure:
    server = ranking.configurations[0].estimate
    engines = {configuration.estimate.engine for configuration in ranking.configurations}
    return draw_dots(
        name,
        f"{trace}: energy of {server.model} on {gpu_title(server.gpu)} by configuration",
        _note(ranking),
        [_value(configuration, ranking) for configuration in ranking.configurations],
        x_title=X_TITLE,
        head=HEAD,
        table=[_row(configuration, ranking) for configuration in ranking.configurations],
        points=[point for point in evidence.points if point.label in engines and point.model == server.model],
    )


def _note(ranking: Recommendation) -> str:
    if ranking.recommended is None:
        words = "No configuration can be recommended."
    else:
        chosen = ranking.of(ranking.recommended)
        words = f"To choose: {chosen.label}. To type: {' '.join(chosen.command)}."
        if chosen.label == ranking.present:
            words += " No other saves energy significantly."
    return (
        f"{words} Savings are over {ranking.present}; thin lines are 90 % intervals of each configuration alone, most "
        "of which is common to all. With a limit on latency and for your own log: infergy recommend."
    )


def _value(configuration: Configuration, ranking: Recommendation) -> dict[str, object]:
    run = configuration.estimate.run
    return {
        "place": configuration.label,
        "series": configuration.estimate.engine,
        "joules": configuration.energy_j,
        **interval_of(configuration.low_j, configuration.high_j),
        "cell": configuration.label,
        "value": format_si(configuration.energy_j, "J"),
        "interval": _interval(configuration),
        "batch takes": format_latency(run.duration_s),
        "power": f"{run.load.power_w:.0f} W",
        "flags": _remarks(configuration, ranking) or "none",
    }


def _interval(configuration: Configuration) -> str:
    return f"{format_si(configuration.low_j, 'J')} .. {format_si(configuration.high_j, 'J')}"


def _remarks(configuration: Configuration, ranking: Recommendation) -> str:
    remarks = [limit.replace("_", " ") for limit in configuration.breaks]
    if configuration.label == ranking.present:
        remarks.append("present")
    elif not configuration.is_significant:
        remarks.append("no significant difference from the present one")
    if configuration.changes_outputs:
        remarks.append(f"changes outputs: {configuration.changes_outputs}")
    return "; ".join(remarks)


def _row(configuration: Configuration, ranking: Recommendation) -> tuple[str, ...]:
    ttft_s = configuration.estimate.run.latency.ttft_s
    is_present = configuration.label == ranking.present
    ends = f"{format_percent(configuration.saving_low)} .. {format_percent(configuration.saving_high)}"
    return (
        configuration.label,
        format_si(configuration.energy_j, "J"),
        _interval(configuration),
        "-" if is_present else format_percent(configuration.saving),
        "-" if is_present else ends,
        "unknown" if ttft_s is None else format_latency(ttft_s.p50),
        _remarks(configuration, ranking) or "-",
        " ".join(configuration.command),
    )
