"""`infergy table build` on a user's rows, and estimates by what it wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cost.table import read_table, shipped_table
from infergy.errors import DataError
from infergy.records.store import read_store, shipped_store
from known_tables import write_store
from rows import build_row


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def printed(*arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few shipped cells of vLLM, as if measured a year later."""
    rows = [row for row in read_store(shipped_store()).rows if row.cell.label == "vllm"]
    later = [replace(row, measured_utc=row.measured_utc.replace("2026-", "2027-")) for row in rows[::4]]
    return write_store(tmp_path_factory.mktemp("mine") / "mine.jsonl", later)


def test_rows_become_a_table_that_estimates_take(tmp_path: Path, store: Path) -> None:
    table = tmp_path / "table.jsonl"
    built = printed("table", "build", str(store), "-o", str(table))
    found = read_table(table, entries=True)
    assert built["output"] == str(table)
    assert built["entries"] == len(found.entries) == len(read_store(store).rows)
    assert built["fits"] == {name: dict(fit.rows) for name, fit in found.fits.items()}
    assert found.sources == ("mine.jsonl",)
    asked = ("estimate", "azure-code-2023", "--requests", "50", "--max-num-seqs", "16")
    by_table, by_rows = (printed(*asked, "--table", str(path)) for path in (table, store))
    for run in ("served", "offline"):
        ours, theirs = (each["estimates"][0][run] for each in (by_table, by_rows))
        assert 0 < ours["low_j"] < ours["energy_j"] < ours["high_j"]
        assert ours["energy_j"] == pytest.approx(theirs["energy_j"], rel=0.02)


def test_alone_a_table_keeps_nothing_of_the_shipped_one(tmp_path: Path, store: Path) -> None:
    table = tmp_path / "table.jsonl"
    done = invoke("table", "build", str(store), "-o", str(table), "--alone")
    assert done.exit_code == 0, done.output
    found = read_table(table)
    assert set(found.fits) == {"vllm"}
    assert len(found.measured) == 1
    assert f"{table}: " in done.stdout
    assert len(shipped_table().measured) > 1


def test_simulated_rows_need_the_option_that_allows_them(tmp_path: Path) -> None:
    rows, table = write_store(tmp_path / "rows.jsonl", [build_row(simulated=True)]), tmp_path / "table.jsonl"
    done = invoke("table", "build", str(rows), "-o", str(table))
    assert isinstance(done.exception, DataError)
    assert str(rows) in str(done.exception)
    assert not table.exists()
    assert invoke("table", "build", str(rows), "-o", str(table), "--allow-simulated").exit_code == 0
    assert table.exists()


@pytest.mark.parametrize("content", [None, "", "input,output\n"])
def test_what_are_no_rows_is_an_error_that_names_the_file(tmp_path: Path, content: str | None) -> None:
    rows, table = tmp_path / "rows.jsonl", tmp_path / "table.jsonl"
    if content is not None:
        rows.write_text(content)
    done = invoke("table", "build", str(rows), "-o", str(table))
    assert isinstance(done.exception, DataError)
    assert str(rows) in str(done.exception)
    assert not table.exists()


def test_a_table_is_no_store_of_rows(tmp_path: Path, store: Path) -> None:
    table = tmp_path / "table.jsonl"
    assert invoke("table", "build", str(store), "-o", str(table)).exit_code == 0
    done = invoke("table", "build", str(table), "-o", str(tmp_path / "again.jsonl"))
    assert isinstance(done.exception, DataError)
    assert str(table) in str(done.exception)
