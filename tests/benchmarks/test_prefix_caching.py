"""Energy per cached token: conversations of a trace, replayed with and without the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import prefix_caching
from infergy.cli import app


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = [
        {"timestamp": 60_000 * turn + talk, "input_length": 512 * (2 + turn), "output_length": 20, "hash_ids": hashes}
        for turn in range(4)
        for talk in range(6)
        for hashes in [[0, *range(100 * talk + 1, 100 * talk + 2 + turn)]]
        if turn < 3 or talk != 2
    ]
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_conversations_are_kept_whole_and_pairs_of_rows_give_the_energy_of_a_cached_token(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rows = tmp_path / "sessions.jsonl", tmp_path / "rows.jsonl"
    prefix_caching.main(["sessions", str(trace), str(out), "--turns", "4", "--every", "2"])
    kept = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["timestamp"] for row in kept] == sorted(row["timestamp"] for row in kept)
    assert {row["hash_ids"][1] for row in kept} == {1, 301, 501}, (
        "the second of five is passed over, that of three turns too"
    )
    assert len(kept) == 3 * 4
    for option in ("--enable-prefix-caching", "--no-enable-prefix-caching"):
        asked = ["replay", str(out), "--speed", "40", "-g", "h200", option, "--simulate", "-o", str(rows)]
        assert CliRunner().invoke(app, asked).exit_code == 0
    prefix_caching.main(["table", str(rows)])
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("| sessions.jsonl@40x")
    assert line.count("|") == len(prefix_caching.HEADS) + 1
    assert "predicted" in line
