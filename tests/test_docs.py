"""What docs say of estimates follows from committed files: tables, links, paths, options."""

from __future__ import annotations

import json
import math
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main

from infergy.cli import app
from infergy.estimates.latency import LATENCY_SD, Z90
from infergy.records.store import read_store

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [
    ROOT / "docs" / f"{name}.md" for name in ("cost", "estimates", "footprint", "online", "README", "replay", "serving")
]
PAGES += [ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "README")]
OF_BENCHMARKS = {"--exhaustive", "--again", "--million", "--write", "--ours", "--publish"}
OF_VLLM = {
    "--quantization",
    "--request-rate",
    "--burstiness",
    "--enforce-eager",
    "--data-parallel-size",
    "--mamba-ssm-cache-dtype",
    "--save-result",
    "--save-detailed",
    "--output-details",
}
OF_RAY = {"--head", "--address", "--resources"}
# Of the servers that watch reads.
OF_SERVERS = {"--enable-metrics", "--metrics", "--enable-mfu-metrics"}
# The scoreboard has a command line of its own.
PAGES_OF_OPTIONS = sorted({*PAGES, *(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "scoreboard.md"})


@pytest.fixture
def docs_tables() -> Mapping[str, Any]:
    return runpy.run_path(str(BENCHMARKS / "docs_tables.py"))


@pytest.mark.slow
def test_the_pages_have_the_tables_of_what_ships(docs_tables: Mapping[str, Any]) -> None:
    insert: Callable[[str, str, str], str] = docs_tables["insert"]
    for (name, place), table in docs_tables["make_tables"]().items():
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert insert(page, place, table) == page, f"docs/{name}, {place}: python benchmarks/docs_tables.py --write"


def test_a_table_without_a_place_in_its_page_is_an_error(docs_tables: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place"):
        docs_tables["insert"]("# A page", "constants of vllm", "| a |")


def test_each_measured_replay_was_predicted() -> None:
    replays = runpy.run_path(str(BENCHMARKS / "replays.py"))
    runs = replays["load"]()
    assert len(runs) == 18
    # What docs/replay.md says of energy: the target of the median is met, that of the worst is not; all inside.
    errors = sorted(abs(run.errors[0]) for run in runs)
    assert (errors[8] + errors[9]) / 2 <= 0.015
    assert 0.04 < errors[-1] < 0.048
    assert all(run.inside[0] for run in runs)


def test_each_measured_cell_of_other_models_was_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    models = runpy.run_path(str(BENCHMARKS / "models.py"))
    predicted = json.loads((BENCHMARKS / "models/h200-predictions.json").read_text(encoding="utf-8"))
    rows = [row for path in models["HERE"].glob("*.jsonl") for row in read_store(path).rows]
    assert {row.cell.id for row in rows} <= set(predicted)
    assert len(rows) == 28
    models["main"]([])
    assert capsys.readouterr().out in (ROOT / "docs/measurements.md").read_text(encoding="utf-8")


def test_intervals_of_latencies_contain_nine_of_ten_measured_ones() -> None:
    # What docs/cost.md says, with the uncertainty of the time of steps that the answer for both traces has.
    replays = runpy.run_path(str(BENCHMARKS / "replays.py"))
    runs = [run for number in (1, 2, 3) for run in replays["load"](number)]
    assert len(runs) == 34
    for column, figure in enumerate(replays["FIGURES"]):
        sd = LATENCY_SD.get(f"{figure.split()[0].lower()}_s")
        if sd is not None:
            assert sum(abs(math.log1p(run.errors[column])) <= Z90 * math.hypot(sd, 0.02) for run in runs) >= 30, figure


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link
    for path in re.findall(r"\b((?:src|tests|benchmarks|docs)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:cost|serving|measure|estimates|records)/\w+\.py)`", text):
        assert (ROOT / "src" / "infergy" / path).exists(), path


@pytest.mark.parametrize("page", PAGES_OF_OPTIONS, ids=lambda page: page.name)
def test_options_of_a_page_exist(page: Path) -> None:
    known = set(options_of(typer.main.get_command(app))) | OF_BENCHMARKS | OF_VLLM | OF_RAY | OF_SERVERS | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8"))) <= known


def options_of(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for inner in getattr(command, "commands", {}).values():
        yield from options_of(inner)
