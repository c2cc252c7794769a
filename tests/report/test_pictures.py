"""Pictures are the same whoever draws them."""

from __future__ import annotations

import altair
import pytest

from infergy.report import pictures

CHARTS = {
    f"chart {number}": {
        "data": {"values": [{"x": number}]},
        "mark": "point",
        "encoding": {"x": {"field": "x", "type": "quantitative"}},
    }
    for number in range(pictures.WORTH_A_PROCESS)
}
VERSION = ".".join(altair.SCHEMA_VERSION.split(".")[:2])


def test_a_second_process_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    both = pictures.draw_pictures(CHARTS, VERSION)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone = pictures.draw_pictures(CHARTS, VERSION)
    assert list(both) == list(alone) == list(CHARTS)
    assert both == alone
    assert all(svg.startswith("<svg") and png.startswith(b"\x89PNG") for svg, png in both.values())


def test_what_a_second_process_says_when_it_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    broken = {**CHARTS, "chart 1": {"mark": "no such mark"}}
    with pytest.raises(RuntimeError, match=r"drawing failed with 1: [\s\S]*Traceback"):
        pictures.draw_pictures(broken, VERSION)
