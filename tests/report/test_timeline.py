"""A cell's power over time, drawn: what is in the picture, as a file and as text."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.measure.sweep import sweep
from infergy.records import Measurement
from infergy.records.store import read_store
from infergy.report.power_chart import draw_chart, draw_text, picture
from measure.test_measure import SRC, tiny_plan
from raising import raises
from rows import build_row

CELLS = [{"input_tokens": [512], "output_tokens": [64], "batch": [32, 1]}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timeline") / "rows.jsonl"
    list(sweep(tiny_plan(cells=CELLS, engines=[{"engine": "vllm"}]), path, simulate=True))
    return path


@pytest.fixture
def row(store: Path) -> Measurement:
    return next(row for row in read_store(store).rows if row.cell.load.batch == 32)


def test_the_picture_holds_what_ran_what_was_drawn_and_the_edges(row: Measurement) -> None:
    shown = picture(row, 1)
    window = row.watched
    assert window is not None
    assert [span.phase for span in shown.spans] == ["prefill", "decode"] * len(window.batches)
    assert all(
        a.end_s == pytest.approx(b.start_s, abs=1e-6) for a, b in zip(shown.spans, shown.spans[1:], strict=False)
    )
    assert 0 < shown.edges["settled"] < shown.edges["close"] == shown.seconds
    (steps,) = shown.power_w.values()
    assert steps[0][0] == 0.0
    assert steps[-1][0] == shown.seconds
    # The simulated prefill takes more than its decode; each shows at the looks that fall into it.
    middle = {
        phase: next((s.start_s + s.end_s) / 2 for s in shown.spans if s.phase == phase)
        for phase in ("prefill", "decode")
    }
    seen = {phase: [watts for time_s, watts in steps if time_s <= at_s][-1] for phase, at_s in middle.items()}
    assert seen["prefill"] > seen["decode"] + 50


def test_of_an_older_row_each_window_was_seen(row: Measurement) -> None:
    assert row.watched is not None
    first, *others = row.watched.batches
    later = replace(row.watched, batches=tuple(others))
    older = replace(row, watched=None, windows=(row.watched, later))
    assert [len(picture(older, number).spans) for number in (1, 2)] == [2 * len(others) + 2, 2 * len(others)]
    assert "window 2 of 2" in draw_text(older, 2)
    assert first.start_s < others[0].start_s


def test_an_engine_that_tells_no_first_token_has_batches_only(row: Measurement) -> None:
    data = row.to_json()
    for batch in data["watched"]["batches"]:
        batch["first_token_s"] = batch["last_first_token_s"] = None
    shown = picture(Measurement.from_json(data), 1)
    assert {span.phase for span in shown.spans} == {"batch"}
    assert "b" in draw_text(Measurement.from_json(data), 1).splitlines()[-1]


def test_text_shows_power_over_what_ran(row: Measurement) -> None:
    title, bars, marks = draw_text(row, 1, columns=60).splitlines()
    assert "512→64 × 32, the watched window: " in title
    assert "counter against timeline" in title
    pairs = list(zip(bars[:60], marks[:60], strict=True))
    levels = {mark: [ord(bar) for bar, one in pairs if one == mark] for mark in "Pd."}
    assert min(map(len, levels.values())) > 3
    means = {mark: sum(found) / len(found) for mark, found in levels.items()}
    assert means["P"] > means["d"] > means["."]


def test_the_chart_has_units_and_every_series(row: Measurement) -> None:
    chart = draw_chart(row, 1).to_dict()
    text = json.dumps(chart)
    for words in ("power, W", "seconds since the window opened", "prefill", "decode", "settled", "close"):
        assert words in text


@pytest.mark.parametrize(("suffix", "begin"), [(".svg", b"<svg"), (".png", b"\x89PNG"), (".html", b"<!doctype html>")])
def test_a_file_is_drawn(store: Path, tmp_path: Path, suffix: str, begin: bytes) -> None:
    path = tmp_path / f"cell{suffix}"
    done = CliRunner().invoke(app, ["show", "timeline", str(store), "--cell", "× 1", "-o", str(path)])
    assert done.exit_code == 0, done.output
    content = path.read_bytes()
    assert content.lstrip().startswith(begin)
    assert len(content) > 5000
    if suffix == ".html":
        # No script comes from elsewhere.
        assert b"<script src=" not in content
    if suffix == ".svg":
        assert b"prefill" in content
        assert "512→64 × 1,".encode() in content


def test_json_is_the_picture(store: Path, row: Measurement) -> None:
    done = CliRunner().invoke(app, ["show", "timeline", str(store), "--cell", row.cell_id, "--window", "1", "--json"])
    found = json.loads(done.output)
    assert found["schema"] == "infergy.timeline/1"
    assert found["seconds"] == pytest.approx(picture(row, 1).seconds)


@pytest.mark.parametrize(
    ("arguments", "code", "fields"),
    [
        (["--window", "99"], "bad-value", {"option": "--window", "value": 99}),
        (["--cell", "nowhere"], "no-rows", {"cell": "nowhere"}),
        (["-o", "cell.gif"], "bad-value", {"option": "-o", "value": "cell.gif"}),
    ],
)
def test_what_cannot_be_drawn_is_told(store: Path, arguments: list[str], code: str, fields: dict[str, object]) -> None:
    with raises(code, **fields):
        CliRunner().invoke(app, ["show", "timeline", str(store), *arguments], catch_exceptions=False)


def test_a_row_without_a_timeline_says_how_to_get_one() -> None:
    with raises("no-timeline"):
        picture(build_row(), 1)


def test_without_altair_it_says_what_to_install_and_text_still_works(store: Path, tmp_path: Path) -> None:
    (tmp_path / "altair.py").write_text("raise ImportError('blocked')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infergy", "show", "timeline", str(store), *arguments],
            env={"PYTHONPATH": f"{tmp_path}:{SRC}", "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("-o", str(tmp_path / "cell.svg"))
    assert done.returncode == 3
    assert "pip install 'infergy[report]'" in done.stderr
    assert not (tmp_path / "cell.svg").exists()
    assert run().returncode == 0
