"""`infergy compare` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import DataError
from infergy.records.store import shipped_rows
from known_tables import rows_of, write_store
from raising import raises
from rows import build_row


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def stores(tmp_path: Path) -> tuple[str, str]:
    a = write_store(tmp_path / "a.jsonl", rows_of())
    b = write_store(tmp_path / "b.jsonl", rows_of(scale=1.05))
    return str(a), str(b)


def test_the_answer_comes_first_then_each_cell_and_their_mean(stores: tuple[str, str]) -> None:
    code, text, _ = run(*stores)
    assert code == 0
    assert text.startswith("B takes 5.0 % more energy than A, over 12 cells.")
    assert "mean of 12 cells" in text
    assert text.count("B takes more") == 13
    assert text.count("+5.0 %") >= 13
    assert "…" not in text


def test_the_gate_opens_within_the_limit_and_shuts_beyond_it(stores: tuple[str, str]) -> None:
    a, b = stores
    assert run(a, b, "--fail-if-worse", "6%")[0] == 0
    code, _, told = run(a, b, "--fail-if-worse", "3%")
    assert code == 5
    assert "+5.0 % energy, over 3.0 %" in told
    assert run(b, a, "--fail-if-worse", "3%")[0] == 0
    assert run(a, b, "--fail-if-worse", "0.03")[0] == 5
    assert run(b, a, "--fail-if-worse", "0%")[0] == 0
    with raises("bad-value", option="--fail-if-worse"):
        run(a, b, "--fail-if-worse", "3")


def test_a_gate_that_cannot_judge_says_so(tmp_path: Path) -> None:
    a, b = (
        write_store(tmp_path / f"{energy_j}.jsonl", [build_row(batches=1, duration_s=10.0, energy_j=energy_j)])
        for energy_j in (1000.0, 1500.0)
    )
    found = json.loads(run(str(a), str(b), "--json")[1])["cells"][0]["ratio"]
    assert found["value"] > 1.03
    assert found["low"] is None
    code, _, told = run(str(a), str(b), "--fail-if-worse", "3%")
    assert code == 0
    assert "not judged: +50.0 %, over 3.0 %, but the interval is unknown; measure with more windows" in told


def test_as_json_it_is_one_object(stores: tuple[str, str]) -> None:
    found = json.loads(run(*stores, "--json")[1])
    assert found["schema"] == "infergy.compare/1"
    assert found["overall"]["value"] == pytest.approx(1.05)
    assert len(found["cells"]) == 12


def test_cells_of_which_both_files_hold_the_same_row_are_left_out_and_told(stores: tuple[str, str]) -> None:
    a, b = stores
    both = Path(b).parent / "both.jsonl"
    mine, theirs = (Path(path).read_text(encoding="utf-8").splitlines(keepends=True) for path in stores)
    both.write_text("".join([*mine[:4], *theirs[4:]]), encoding="utf-8")
    _, text, _ = run(a, str(both))
    assert "mean of 8 cells" in text
    assert "Left out: 4 cells, such as vllm" in text
    assert "both files hold the very same row" in text
    found = json.loads(run(a, str(both), "--json")[1])
    assert (len(found["cells"]), len(found["same"])) == (8, 4)
    assert found["overall"]["value"] == pytest.approx(1.05)
    assert json.loads(run(a, b, "--json")[1])["same"] == []
    refused = CliRunner().invoke(app, ["compare", a, a])
    assert isinstance(refused.exception, DataError)


def test_of_h100s_four_cells_of_a_process_are_those_of_the_table() -> None:
    process = str(Path(__file__).parents[2] / "benchmarks" / "rows" / "h100-vllm-process-1.jsonl")
    table = next(str(path) for path in shipped_rows() if path.stem == "h100-sxm-llama-3.1-8b")
    code, text, _ = run(table, process)
    assert code == 0
    assert "mean of 6 cells" in text
    assert "Left out: 4 cells" in text
    shipped = CliRunner().invoke(app, ["compare", process, "--json"])
    assert len(json.loads(shipped.stdout)["same"]) == 4


def test_two_real_chips_differ_by_less_than_the_intervals_of_most_cells() -> None:
    mine, theirs = (
        next(str(path) for path in shipped_rows() if path.stem == name)
        for name in ("h200-llama-3.1-8b", "h200-llama-3.1-8b-2")
    )
    code, text, _ = run(mine, theirs)
    assert code == 0
    assert "mean of 69 cells" in text
    assert "no significant difference" in text
    assert "…" not in text
    assert "Different: GPU UUID: GPU-7777fe63" in text
