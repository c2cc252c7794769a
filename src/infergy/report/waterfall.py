"""A waterfall as bars: where a trace's joules go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infergy.energy.waterfall import Waterfall
from infergy.units import format_si

WIDTH, STEP_HEIGHT = 620, 34
COLOURS = {"adds": "#E69F00", "takes off": "#009E73", "in all": "#56B4E9", "online, on top": "#999999"}
"""Okabe and Ito's, which colour-blind readers tell apart."""

MEASURED, IDLE = "measured offline", "idle between arrivals"


def bars(found: Waterfall) -> Iterator[dict[str, object]]:
    """Each bar with its begin and end in joules, top to bottom."""
    for step in found.steps:
        kind = "adds" if step.energy_j >= 0 else "takes off"
        yield {"step": step.name, "from": step.total_j - step.energy_j, "to": step.total_j, "kind": kind}
    yield {"step": MEASURED, "from": 0.0, "to": found.energy_j, "kind": "in all"}
    if found.idle is not None:
        end_j = found.energy_j + found.idle.energy_j
        yield {"step": IDLE, "from": found.energy_j, "to": end_j, "kind": "online, on top"}


def draw_waterfall(found: Waterfall) -> Any:
    """The bars as an `altair.LayerChart`."""
    import altair

    inline: Any = altair.Data
    values = [one | {"joules": format_si(float(str(one["to"])) - float(str(one["from"])), "J")} for one in bars(found)]
    names = [str(one["step"]) for one in values]
    kinds = [kind for kind in COLOURS if any(one["kind"] == kind for one in values)]
    base = altair.Chart(inline(values=values)).encode(
        y=altair.Y("step:N", sort=names, title=None, axis=altair.Axis(labelLimit=300)),
        tooltip=[altair.Tooltip("step:N"), altair.Tooltip("joules:N")],
    )
    drawn = base.mark_bar().encode(
        x=altair.X("from:Q", title="energy, J", axis=altair.Axis(format="~s", tickCount=6)),
        x2="to:Q",
        color=altair.Color(
            "kind:N",
            scale=altair.Scale(domain=kinds, range=[COLOURS[kind] for kind in kinds]),
            legend=altair.Legend(title=None),
        ),
    )
    labels = base.transform_calculate(end="max(datum.from, datum.to)").mark_text(align="left", dx=4)
    labels = labels.encode(x="end:Q", text="joules:N")
    title = f"{found.trace.source}: {found.engine}, {found.model} on {found.gpu}"
    return altair.layer(drawn, labels).properties(
        width=WIDTH, height=STEP_HEIGHT * len(values), title=altair.TitleParams(title, anchor="start", fontSize=12)
    )
