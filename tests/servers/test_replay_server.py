"""`infergy replay --server` on `transformers serve` with a tiny random model: real streams, real counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fastapi")

from typer.testing import CliRunner

from infergy.cli import app
from infergy.measure.replays import REPLAY_OPTIONS
from infergy.measure.sweep import sweep
from infergy.records import Plan
from infergy.records.flags import find_flags
from infergy.records.store import read_store

serving = pytest.importorskip("servers.test_transformers_serve")
model, server = serving.model, serving.server  # fixtures
pytestmark = pytest.mark.filterwarnings("default")
runner = CliRunner()


def log_of(folder: Path) -> Path:
    """Six requests of a second, of few tokens."""
    path = folder / "log.csv"
    lines = [f"{0.15 * number:.2f},{10 + 7 * number},{4 + number}" for number in range(6)]
    path.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines, ""]))
    return path


def test_a_log_is_replayed_by_its_counts(server: str, model: Path, tmp_path: Path) -> None:
    plan, store = tmp_path / "plan.json", tmp_path / "rows.jsonl"
    asked = ["replay", str(log_of(tmp_path)), "--server", server, "--served-model", str(model), "--gpu", "h200"]
    done = runner.invoke(app, [*asked, "--plan", str(plan)])
    assert done.exit_code == 0, done.output
    resolved = Plan.load(plan)
    assert resolved.endpoint is not None
    list(sweep(replace(resolved, options=replace(REPLAY_OPTIONS, idle_s=0.5)), store, simulate=True))
    (row,) = read_store(store).rows
    assert row.is_ok, row.failure
    for index, (input_tokens, output_tokens) in enumerate(row.lengths):
        assert abs(input_tokens - (10 + 7 * index)) <= 2
        assert 1 <= output_tokens <= 4 + index
    batch = row.windows[0].batches[0]
    assert batch.times is not None
    assert batch.served is not None
    assert (batch.served.uncounted, batch.served.inconsistent, batch.served.retries) == (0, 0, 0)
    assert not [flag.code for flag in find_flags(row, None) if flag.code == "token-counts"]
    compared = runner.invoke(app, ["replay", str(store), "--gpu", "h200", "--json"])
    assert compared.exit_code == 0, compared.output
    assert json.loads(compared.stdout)["simulated"] is True
