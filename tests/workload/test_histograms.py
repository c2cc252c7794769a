"""Histograms as files: what `infergy trace --bins … --json` prints stands in for the trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import infergy
from infergy.cli import app
from infergy.workload import Histogram, Trace, find_histogram, open_requests, open_trace
from raising import raises


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    done = CliRunner().invoke(app, ["trace", "azure-code-2023", "--bins", "powers-of-two", "--json"])
    assert done.exit_code == 0
    path = tmp_path / "code.json"
    path.write_text(done.stdout)
    return path


def test_a_histogram_comes_back_as_it_was(saved: Path) -> None:
    assert find_histogram(saved) == open_trace("azure-code-2023").histogram()


def test_estimates_from_it_are_those_of_the_trace(saved: Path) -> None:
    """A histogram has no order: its requests come all at once, at the mean lengths of their bins."""
    (here,) = infergy.estimate(str(saved)).estimates
    (there,) = infergy.estimate("azure-code-2023").estimates
    assert here.served is None
    assert here.served_reason
    assert here.offline is not None
    assert there.offline is not None
    assert here.offline.requests == there.offline.requests
    assert here.offline.energy_j == pytest.approx(there.offline.energy_j, rel=0.02)
    for verb in (["estimate"], ["recommend"], ["breakdown", "--engine", "vllm"], ["trace", "--bins", "powers-of-two"]):
        told = CliRunner().invoke(app, [verb[0], str(saved), *verb[1:]])
        assert told.exit_code == 0, told.output
        assert "azure-code-2023" in told.stdout


def test_one_that_was_changed_by_hand_is_told(saved: Path) -> None:
    changed = json.loads(saved.read_text())
    changed["counts"][0]["requests"] += 1
    saved.write_text(json.dumps(changed))
    with raises("bad-field", key="requests", value=8819):
        find_histogram(saved)


@pytest.mark.parametrize(
    ("path", "value", "code", "key"),
    [
        (("counts", 0, "requests"), 0, "bad-field", "counts[0].requests"),
        (("counts", 0, "requests"), -10, "bad-row", "counts[0].requests"),
        (("counts", 0, "input_tokens"), -1, "bad-row", "counts[0].input_tokens"),
        (("counts", 0, "output_tokens"), 10**12, "bad-field", "counts[0].output_tokens"),
        (("counts", 0, "bin", "input_tokens"), 33, "bad-field", "counts[0].bin"),
        (("failed_requests",), -1, "bad-row", "failed_requests"),
        (("counts", 0, "requests"), 10**30, "bad-field", "counts[0].requests"),
    ],
)
def test_counts_that_cannot_be_are_rejected_by_their_key(
    saved: Path, path: tuple[Any, ...], value: int, code: str, key: str
) -> None:
    changed = json.loads(saved.read_text())
    parent = changed
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    saved.write_text(json.dumps(changed))
    with raises(code, key=key):
        find_histogram(saved)


def test_anything_else_is_opened_as_a_trace(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"source": "me", "input_tokens": 5, "output_tokens": 6}\n' * 3)
    assert find_histogram(log) is None
    assert isinstance(open_requests(str(log)), Trace)
    assert isinstance(open_requests("azure-code-2023"), Trace)
    assert find_histogram(tmp_path / "none.json") is None
    assert find_histogram("") is None


def test_its_type_is_told_apart(saved: Path) -> None:
    assert isinstance(open_requests(saved), Histogram)
