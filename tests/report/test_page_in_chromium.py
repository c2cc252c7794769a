"""The report's page in a real browser: scripts on, network off."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.measure.sweep import sweep as run_sweep
from infergy.records import Measurement
from infergy.records.store import create_store, read_store
from infergy.report.html import draw
from infergy.report.page import PAGE, Report, build_report, write_report
from measure.test_measure import tiny_plan
from report.test_report import HOSTILE, sweep
from waiting import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("INFERGY_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

# Where INFERGY_CHROMIUM names one, its absence fails instead of skipping.
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set INFERGY_CHROMIUM"
)


def open_page(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts ran, and what they said on the console."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def drawn(dom: str) -> dict[str, int]:
    """Marks by figure: shapes and lines with a role of their own, axes and legends left out."""
    found = {}
    for name, chart in re.findall(r'<div class="chart[^>]*data-figure="([^"]+)"(.*?)</figure>', dom, re.DOTALL):
        groups = re.findall(r'<g class="mark-(?:symbol|rect|line)[^"]*"[^>]*graphics-object.*?</g>', chart, re.DOTALL)
        found[name] = sum(len(re.findall(r"<path", group)) for group in groups)
    return found


class Elements(HTMLParser):
    """Counts elements, and keeps those that would run something."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self.handlers: list[str] = []
        self.images: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        # Our own stand in the page itself, for readers without scripts.
        self.images += [value for name, value in attrs if tag == "img" and name == "src" and "data:" not in f"{value}"]
        self.handlers += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]


def test_a_pages_errors_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<figure><div class="chart" data-figure="none"></div></figure><script>missing()</script>', encoding="utf-8"
    )
    dom, console = open_page(page, tmp_path / "profile")
    assert any("missing is not defined" in line for line in console)
    assert drawn(dom) == {"none": 0}


@pytest.mark.slow
def test_each_figure_of_the_paper_draws_its_marks_and_the_console_is_clean(paper: Report, tmp_path: Path) -> None:
    check_page(paper, tmp_path)


def test_hostile_names_draw_their_marks_and_the_console_is_clean(tmp_path: Path) -> None:
    create_store(tmp_path / "rows.jsonl", sweep(model=HOSTILE))
    check_page(build_report([tmp_path / "rows.jsonl"]), tmp_path)


NASTY = (
    "</script><script>document.title='RAN'</script><img src=x onerror=document.title='RAN'><!--<svg onload=\"document."
    "title='RAN'\">{{ 7*7 }}';document.title='RAN';'&quot;\x00\x1b[31m\u202e\udc80"
)
"""Ends a script, an attribute and a comment, and holds what no drawer takes: a NUL, half a character."""


def nasty_row(row: Measurement) -> Measurement:
    """A row with that in each of its texts that no reader of rows checks."""
    gpus = tuple(replace(gpu, uuid=gpu.uuid, name=gpu.name + NASTY) for gpu in row.environment.gpus)
    texts: dict[str, Any] = dict.fromkeys(("infergy", "python", "platform", "cpu", "driver", "cuda", "weights"), NASTY)
    packages, engine = {NASTY: NASTY}, {NASTY: NASTY}
    environment = replace(row.environment, **texts, gpus=gpus, packages=packages, engine=engine)
    setup = replace(row.cell.setup, model=NASTY)
    cell = replace(row.cell, setup=setup)
    return replace(row, cell=cell, cell_id=cell.id, environment=environment, batch_choice=NASTY)


def check_nothing_ran(page: Path, profile: Path) -> str:
    dom, console = open_page(page, profile)
    assert console == []
    assert 'data-drawn="yes"' in dom
    assert "<title>RAN" not in dom
    reader = Elements()
    reader.feed(dom)
    assert reader.handlers == []
    assert reader.images == []
    return dom


def test_hostile_names_in_every_field_of_a_report_are_shown_and_run_nothing(tmp_path: Path) -> None:
    name = NASTY.replace("\x00", "").replace("/", "_")[:200] + ".jsonl"
    create_store(tmp_path / name, map(nasty_row, sweep()))
    write_report(build_report([tmp_path / name]), tmp_path / "out")
    dom = check_nothing_ran(tmp_path / "out" / PAGE, tmp_path / "profile")
    assert "\\x1b[31m" in dom
    for picture in (tmp_path / "out").glob("*.svg"):
        assert "<script" not in picture.read_text(encoding="utf-8")
        assert "<title>RAN" not in open_page(picture, tmp_path / "profile")[0]


def test_hostile_names_in_a_page_of_one_chart_run_nothing(tmp_path: Path) -> None:
    cells = [{"input_tokens": [64], "output_tokens": [8], "batch": [1]}]
    list(run_sweep(tiny_plan(cells=cells, engines=[{"engine": "vllm"}]), tmp_path / "measured.jsonl", simulate=True))
    create_store(tmp_path / "rows.jsonl", map(nasty_row, read_store(tmp_path / "measured.jsonl").rows))
    trace = tmp_path / (NASTY.replace("\x00", "").replace("\udc80", "").replace("/", "_") + ".csv")
    trace.write_text("arrival,input_tokens,output_tokens\n0,100,10\n1,100,10\n")
    for number, verb in enumerate((["show", "timeline", str(tmp_path / "rows.jsonl")], ["breakdown", str(trace)])):
        page = tmp_path / f"{number}.html"
        done = CliRunner().invoke(app, [*verb, "-o", str(page)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        check_nothing_ran(page, tmp_path / "profile")


def test_a_page_runs_no_script_but_its_own(tmp_path: Path) -> None:
    page = tmp_path / "chart.html"
    page.write_bytes(
        draw({"data": {"values": [{"a": 1}]}, "mark": "point", "encoding": {"x": {"field": "a"}}}, ".html")
    )
    check_nothing_ran(page, tmp_path / "profile")
    text = page.read_text(encoding="utf-8")
    for injected in (
        "<script>document.title='RAN'</script>",
        "<img src=x onerror=\"document.title='RAN'\">",
        "<script src=https://example.org/a.js></script>",
        "<iframe srcdoc=\"<script>parent.document.title='RAN'</script>\"></iframe>",
        "<a id=a href=\"javascript:document.title='RAN'\">x</a>",
    ):
        page.write_text(text.replace("<figure>", f"{injected}<figure>"), encoding="utf-8")
        dom, console = open_page(page, tmp_path / "profile")
        assert "<title>RAN" not in dom
        assert 'data-drawn="yes"' in dom
        assert console or "javascript:" in injected


def check_page(built: Report, tmp_path: Path) -> None:
    write_report(built, tmp_path / "out")
    dom, console = open_page(tmp_path / "out" / PAGE, tmp_path / "profile")
    assert console == []
    marks = drawn(dom)
    names = {figure.name for figure in built.figures}
    assert set(marks) == names
    assert names
    for figure in built.figures:
        # Offline serving is a dashed line across, with no mark of its own.
        rows = [row for row in figure.table if "all at once" not in row]
        assert marks[figure.name] >= len(rows), figure.name
    assert dom.count('data-drawn="yes"') == len(names)
    reader = Elements()
    reader.feed(dom)
    assert reader.seen.get("svg", 0) >= len(names)
    assert reader.handlers == []
