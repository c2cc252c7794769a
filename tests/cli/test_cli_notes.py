"""What a reader must know of a trace and its runs stands under every verb that serves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from known_tables import write_store
from raising import raises
from rows import build_row

runner = CliRunner()
ALL = ("estimate", "breakdown", "next", "recommend", "replay")
VERBS = ("estimate", "breakdown", "next", "recommend")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    rows = "a,0,100,10\n,0,100,10\na,1,900000,10\n"
    path.write_text("session_id,pre_gap,input_length,output_length\n" + rows, encoding="utf-8")
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_rejected_requests_and_those_without_a_session_are_counted(verb: str, log: Path) -> None:
    done = runner.invoke(app, [verb, str(log), "-g", "h200"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "1 of 3 requests is longer than the context" in text
    assert (
        "without a session, or no later than the one that they follow, each served as a session of its own: 1." in text
    )


@pytest.mark.parametrize("verb", VERBS)
def test_sessions_without_times_are_named(verb: str, tmp_path: Path) -> None:
    path, words = tmp_path / "log.csv", "sessions of the trace have no times: all begin at 0 s"
    head, rows = "session_id,pre_gap,input_length,output_length", ("a,0,100,10", "b,0,100,10", "a,1,200,10")
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    assert words in " ".join(runner.invoke(app, [verb, str(path)]).stdout.split())
    lines = [f"{head},timestamp", *(f"{row},{10 * k}" for k, row in enumerate(rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = runner.invoke(app, [verb, str(path)])
    assert done.exit_code == 0, done.output
    assert words not in " ".join(done.stdout.split())


@pytest.mark.parametrize("verb", VERBS)
def test_one_request_is_no_plural(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n100,10\n", encoding="utf-8")
    done = runner.invoke(app, [verb, str(path), "-g", "h200"])
    assert done.exit_code == 0, done.output
    assert "1 request" in done.stdout
    assert "1 requests" not in done.stdout


def test_next_speaks_of_cells_only_where_there_are_some(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n100,10\n", encoding="utf-8")
    done = runner.invoke(app, ["next", str(path), "-g", "h200", "--target", "50%"])
    assert done.exit_code == 0, done.output
    assert "the cells below" not in done.stdout
    assert "0 cells" not in done.stdout


@pytest.mark.parametrize("verb", ALL)
def test_a_table_of_simulated_rows_needs_the_option_and_is_named(verb: str, tmp_path: Path) -> None:
    rows, table = write_store(tmp_path / "rows.jsonl", [build_row(simulated=True)]), tmp_path / "table.jsonl"
    built = runner.invoke(app, ["table", "build", str(rows), "--allow-simulated", "-o", str(table)])
    assert built.exit_code == 0, built.output
    asked = [verb, "azure-code-2023", "--requests", "20", "-g", "h200", "--table", str(table)]
    with raises("simulated-rows", path=table):
        runner.invoke(app, asked, catch_exceptions=False)
    done = runner.invoke(app, [*asked, "--allow-simulated"])
    assert done.exit_code == 0, done.output
    assert "rows of a simulated GPU" in " ".join(done.stdout.split())


def test_an_absurd_row_is_named_with_its_file_and_cell(tmp_path: Path) -> None:
    def notes_of(name: str, energies_j: tuple[float, ...]) -> tuple[str, str]:
        rows = [build_row(batch=2**place, energy_j=energy_j) for place, energy_j in enumerate(energies_j)]
        path = write_store(tmp_path / name, rows)
        done = runner.invoke(app, ["estimate", "azure-code-2023", "--requests", "20", "--table", str(path)])
        return " ".join(done.stdout.split()), f"{name}, cell {rows[-1].cell_id} ("

    notes, cell = notes_of("bad.jsonl", (300.0, 300.0, 300.0, 3900.0))
    assert cell in notes
    notes, cell = notes_of("good.jsonl", (300.0, 300.0, 300.0, 300.0))
    assert cell not in notes


def test_a_run_outside_the_measured_range_is_named_as_that_and_next_advises_its_own_cells() -> None:
    asked = ["azure-code-2023", "--requests", "20", "-g", "a100-80gb-sxm"]
    estimate, following = (" ".join(runner.invoke(app, [verb, *asked]).stdout.split()) for verb in ("estimate", "next"))
    assert "was measured at these batch sizes and lengths" in estimate
    assert "infergy next." in estimate
    assert "infergy next." not in following
    assert "infergy measure next.json" in following


def test_a_breakdown_prints_each_note_once() -> None:
    done = runner.invoke(app, ["breakdown", "azure-conv-2023", "--requests", "50", "-g", "a100-80gb-sxm"])
    assert done.exit_code == 0, done.output
    assert " ".join(done.stdout.split()).count("idle power of NVIDIA A100 80GB SXM was not measured") == 1
