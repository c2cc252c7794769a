"""What a reader must know of a trace and its runs stands under every verb that serves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app

runner = CliRunner()
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
    assert "without the id of a session, each served as a session of its own: 1." in text


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
