"""`infergy show phases` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.schemas import make_schema
from known_tables import write_store
from rows import build_row


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", "phases", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_shipped_table_is_told_by_fit_with_its_residuals_and_what_pairs_are_missing() -> None:
    text = run("--engine", "vllm")
    assert text.startswith("vllm llama-3.1-8b on NVIDIA H200; random weights")
    assert "transformers" not in text
    assert "Regression: J per batch = a0 + a1·B·I" in text
    assert "residuals: median 0.9 %, worst -5.9 %" in text
    assert "By pair: 0 of 45 cells; no cell 32→1 × 256 in the file: set paired = true" in text
    assert "No fit: 4 cells" in text
    assert "…" not in text


PAIRS = str(Path(__file__).parents[2] / "benchmarks" / "rows" / "h200-pairs.jsonl")


def test_the_page_shows_real_output() -> None:
    page = (Path(__file__).parents[2] / "docs" / "phases.md").read_text(encoding="utf-8")
    pairs, shipped = [block for block in page.split("```") if "Residual" in block]
    for block, arguments in ((pairs, [PAIRS]), (shipped, ["--engine", "vllm"])):
        printed = {line.strip() for line in run(*arguments).splitlines()}
        shown = [line for line in block.strip().splitlines() if not line.startswith("$")]
        assert len(shown) > 7
        for line in shown:
            assert line.strip() in printed


def test_a_pair_is_told_beside_its_cell_and_a_negative_one_marked(tmp_path: Path) -> None:
    rows = [build_row(output_tokens=64, energy_j=1000.0), build_row(output_tokens=1, energy_j=1200.0)]
    text = run(str(write_store(tmp_path / "rows.jsonl", rows)))
    (line,) = [line for line in text.splitlines() if line.strip().startswith("512→64 × 8")]
    assert "pair!" in line
    assert "1.20 kJ" in line
    assert "-200 J" in line
    assert "negative-phase: decode is -200 J" in text


def test_as_json_it_follows_its_schema() -> None:
    printed = json.loads(run("--json"))
    Draft202012Validator(make_schema("phases")).validate(printed)
    assert printed["file"] == "h200-llama-3.1-8b.jsonl"
    assert {setup["label"] for setup in printed["setups"]} == {"transformers", "vllm"}
