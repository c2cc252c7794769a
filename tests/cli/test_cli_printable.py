"""Names of files, models and GPUs are shown as they are: they control no terminal, are no markup, and hold no secret."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import DataError, UsageError
from infergy.records import Measurement
from infergy.records.store import create_store
from raising import raises
from rows import build_row

HOSTILE = "a\x1b[31m[red]x[/y]\x1b]0;owned\x07\u202e\x9b2J\r\x00"
SRC = str(Path(__file__).parents[2] / "src")


def hostile_row(row: Measurement) -> Measurement:
    """Named so wherever a row holds text."""
    texts: dict[str, Any] = dict.fromkeys(
        ("infergy", "python", "platform", "cpu", "driver", "cuda", "weights"), HOSTILE
    )
    packages, engine = {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}
    environment = replace(row.environment, **texts, packages=packages, engine=engine)
    cell = replace(row.cell, setup=replace(row.cell.setup, model=HOSTILE))
    return replace(row, cell=cell, cell_id=cell.id, environment=environment, batch_choice=HOSTILE)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A store and a trace."""
    rows = [hostile_row(build_row(batch=size)) for size in (1, 8, 32)]
    create_store(tmp_path / "rows.jsonl", [*rows, replace(rows[0], environment=build_row().environment)])
    trace = tmp_path / (HOSTILE.replace("/", "").replace("\x00", "") + ".csv")
    trace.write_text("arrival,input_tokens,output_tokens\n0,100,10\n1,100,10\n")
    return tmp_path / "rows.jsonl", trace


VERBS = (
    "check {rows} --rows",
    "show phases {rows}",
    "compare {rows}",
    "table merge {out} {rows}",
    "trace {trace}",
    "trace {trace} --bins powers-of-two",
    "estimate {trace} --explain",
    "breakdown {trace} --explain",
    "next {trace}",
    "recommend {trace} --gpus 1",
    "measure {rows}",
    "list models {trace}",
    "estimate {trace} -m {trace}",
)


@pytest.mark.parametrize("verb", VERBS)
def test_no_name_controls_the_terminal(files: tuple[Path, Path], tmp_path: Path, verb: str) -> None:
    places = {"rows": str(files[0]), "trace": str(files[1]), "out": str(tmp_path / "out.jsonl")}
    done = CliRunner().invoke(app, [places.get(word.strip("{}"), word) for word in verb.split()])
    text = done.output + (f"error: {done.exception}" if done.exception else "")
    assert isinstance(done.exception, (UsageError, DataError, SystemExit, type(None))), done.exception
    assert text.strip()
    assert not [letter for letter in text if letter in "\x1b\x07\x9b\r\x00\u202e"]
    assert "[red]x" in text or "rows.jsonl" in text or done.exception


def test_nor_on_a_terminal_itself(files: tuple[Path, Path]) -> None:
    ours, theirs = pty.openpty()
    verb = [sys.executable, "-m", "infergy", "trace", str(files[1])]
    environment = os.environ | {"PYTHONPATH": SRC, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(verb, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    assert b"\\x1b[31m[red]x" in shown
    for control in (b"\x1b[31m", b"\x1b]0;", b"\x07", "\u202e".encode(), b"\xc2\x9b"):
        assert control not in shown


def test_messages_of_errors_are_printable() -> None:
    assert str(UsageError.bad_value("--model", 1, f"none of {HOSTILE}")).isprintable()


SECRETS = ("s3://AKIA:hunter2@bucket/log.parquet?sig=hunter2", "https://store/log.parquet?X-Amz-Signature=hunter2&a=1")


@pytest.mark.parametrize("url", SECRETS)
def test_passwords_of_urls_are_neither_in_errors_nor_in_results(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.LazyFrame({"arrival": [0.0, 1.0], "input_tokens": [100, 100], "output_tokens": [10, 10]})
    monkeypatch.setattr("infergy.workload.remote.scan_url", lambda _: frame)
    for verb in (["trace", url], ["trace", url, "--json"], ["estimate", url, "--json"], ["breakdown", url, "--json"]):
        done = CliRunner().invoke(app, verb, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "hunter2" not in done.output
        assert "log.parquet" in done.output
    with raises("no-column") as caught:
        CliRunner().invoke(app, ["trace", url, "--input-column", "none"], catch_exceptions=False)
    assert "hunter2" not in json.dumps([str(caught.value), caught.value.fields], default=str)


def test_nor_are_those_of_a_source_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(url: str) -> pl.LazyFrame:
        raise pl.exceptions.ComputeError(f"cannot open {url}")

    monkeypatch.setattr(pl, "scan_parquet", scan)
    with raises("file-not-readable") as caught:
        CliRunner().invoke(app, ["trace", SECRETS[0]], catch_exceptions=False)
    assert "hunter2" not in json.dumps([str(caught.value), caught.value.fields])


def test_nor_is_that_of_a_measured_command(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "pass", "postgres://me:hunter2@host/db", "password=hunter2"]
    options = ["run", "--simulate", "--idle", "0", "-o", str(tmp_path / "runs.jsonl"), "--", *command]
    done = CliRunner().invoke(app, options)
    assert "hunter2" not in done.output + (tmp_path / "runs.jsonl").read_text()
    assert "postgres://me:***@host/db" in (tmp_path / "runs.jsonl").read_text()
