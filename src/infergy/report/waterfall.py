"""A breakdown as bars: where the energy of serving a trace goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infergy.estimates.breakdown import IDLE, Breakdown
from infergy.units import format_si

WIDTH, STEP_HEIGHT = 620, 34
COLOURS = {"work": "#56B4E9", "beside the work": "#E69F00", "idle": "#999999", "in all": "#009E73"}
"""Okabe and Ito's, which colour-blind readers can tell apart."""

WORK = ("arithmetic", "memory")
TOTAL = "energy of the run"


def bars(found: Breakdown) -> Iterator[dict[str, object]]:
    """Each bar with its begin and end in joules, top to bottom."""
    begin_j = 0.0
    for part in found.by_time:
        kind = "idle" if part.name == IDLE else "work" if part.name in WORK else "beside the work"
        yield {"step": part.name, "from": begin_j, "to": begin_j + part.energy_j, "kind": kind, "what": part.meaning}
        begin_j += part.energy_j
    yield {"step": TOTAL, "from": 0.0, "to": found.energy_j, "kind": "in all", "what": "the sum"}


def draw_waterfall(found: Breakdown) -> Any:
    """The bars as an `altair.LayerChart`."""
    import altair

    inline: Any = altair.Data
    values = [one | {"energy": format_si(float(str(one["to"])) - float(str(one["from"])), "J")} for one in bars(found)]
    names = [str(one["step"]) for one in values]
    kinds = [kind for kind in COLOURS if any(one["kind"] == kind for one in values)]
    base = altair.Chart(inline(values=values)).encode(
        y=altair.Y("step:N", sort=names, title=None, axis=altair.Axis(labelLimit=300)),
        tooltip=[altair.Tooltip("step:N"), altair.Tooltip("energy:N"), altair.Tooltip("what:N")],
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
    labels = base.mark_text(align="left", dx=4).encode(x="to:Q", text="energy:N")
    one = found.estimate
    title = f"{found.trace.source}: {one.engine}, {one.model} on {one.gpu}"
    return altair.layer(drawn, labels).properties(
        width=WIDTH, height=STEP_HEIGHT * len(values), title=altair.TitleParams(title, anchor="start", fontSize=12)
    )
