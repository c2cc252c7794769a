"""The report's page in a real browser: scripts on, network off."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from infergy.records.store import create_store
from infergy.report.page import PAGE, Report, build_report, write_report
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

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
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
