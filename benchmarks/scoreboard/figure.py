"""The scoreboard as a figure: each estimator's median error with its interval, and its 90th percentile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infergy.errors import MissingError
from infergy.units import count_of, format_percent
from scoreboard.board import Score

WIDTH, STEP_HEIGHT, PADDING = 520, 22, 40
MEDIAN, TAIL = "median, and its 90 % interval", "90th percentile"
COLOURS = {MEDIAN: "#0072B2", TAIL: "#E69F00"}
"""Okabe and Ito's palette, which colour-blind readers distinguish."""


def points(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Two points per estimator, the smallest median first, errors in percent; none of those without predictions."""
    drawn = []
    for score in sorted(scores, key=lambda score: score.median_ape or 0.0):
        for kind, value in ((MEDIAN, score.median_ape), (TAIL, score.p90_ape)):
            if value is None:
                continue
            point: dict[str, Any] = {"estimator": score.title, "kind": kind, "error": value * 100}
            point["label"] = format_percent(value)
            if kind == MEDIAN and score.median_low is not None and score.median_high is not None:
                point |= {"low": score.median_low * 100, "high": score.median_high * 100}
            drawn.append(point)
    return drawn


def draw_scoreboard(scores: Sequence[Score], titles: Mapping[str, str]) -> Any:
    """One panel for each split, one below the other on one logarithmic axis, as an `altair.VConcatChart`.

    Raises:
        MissingError: altair is not installed.
    """
    try:
        import altair
    except ImportError as error:
        raise MissingError(f"drawing needs altair: pip install 'infergy[report]' ({error})") from error
    panels = []
    for split in dict.fromkeys(score.split for score in scores):
        own = [score for score in scores if score.split == split]
        panels.append(_panel(own, f"{titles[split]}; {count_of(own[0].of_rows, 'row')}, {own[0].tasks} tasks"))
    # A browser's letters may be wider than those by which the figure was laid out.
    return altair.vconcat(*panels, padding=PADDING).resolve_scale(x="shared")


def _panel(scores: Sequence[Score], title: str) -> Any:
    import altair

    inline: Any = altair.Data
    values = points(scores)
    names = list(dict.fromkeys(point["estimator"] for point in values))
    base = altair.Chart(inline(values=values)).encode(
        y=altair.Y("estimator:N", sort=names, title=None, axis=altair.Axis(labelLimit=300)),
        tooltip=[altair.Tooltip("estimator:N"), altair.Tooltip("kind:N"), altair.Tooltip("label:N")],
    )
    scale = altair.Scale(type="log")
    axis = altair.Axis(format="~g", title="error of the energy per output token, % (logarithmic)")
    whiskers = base.transform_filter("isValid(datum.low)").mark_rule(color=COLOURS[MEDIAN], strokeWidth=2)
    whiskers = whiskers.encode(x=altair.X("low:Q", scale=scale, axis=axis), x2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=altair.X("error:Q", scale=scale, axis=axis),
        color=altair.Color(
            "kind:N",
            scale=altair.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
            legend=altair.Legend(title=None, orient="top", labelLimit=300, columnPadding=40),
        ),
        shape=altair.Shape("kind:N", scale=altair.Scale(domain=list(COLOURS), range=["circle", "diamond"])),
    )
    height, head = STEP_HEIGHT * max(1, len(names)), altair.TitleParams(title, anchor="start", fontSize=12)
    return altair.layer(whiskers, dots).properties(width=WIDTH, height=height, title=head)
