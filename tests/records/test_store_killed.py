"""A store whose writer is killed at any of its calls: no finished row is lost, and the next writer goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infergy.records.store import StoreWriter, create_store, read_store
from raising import raises
from rows import build_row

SRC, TESTS = str(Path(__file__).parents[2] / "src"), str(Path(__file__).parents[1])
KILLED = -signal.SIGKILL

WRITER = """
import json, sys
from pathlib import Path
import dying
from infergy.records import Measurement
from infergy.records.store import StoreWriter, create_store

fatal, path, rows = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
wanted = [Measurement.from_json(json.loads(line)) for line in rows.read_text().splitlines()]
dying.die_in_call(fatal)
"""

APPEND = """
with StoreWriter(path) as store:
    done = {row.cell_id for row in store.rows}
    for row in wanted:
        if row.cell_id not in done:
            store.append(row)
            print(row.cell_id, flush=True)
print(dying.calls, file=sys.stderr)
"""

CREATE = """
create_store(path, wanted)
"""


def write(fatal: int, store: Path, rows: Path) -> tuple[int, list[str]]:
    """Write the rows that the store lacks, dying in the call numbered `fatal`; the exit code and the rows finished."""
    done = run(APPEND, fatal, store, rows)
    return done.returncode, done.stdout.split()


def run(code: str, fatal: int, store: Path, rows: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", WRITER + code, str(fatal), str(store), str(rows)],
        env={"PYTHONPATH": f"{SRC}:{TESTS}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, KILLED), done.stderr
    return done


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "wanted.jsonl"
    made = [build_row(input_tokens=i) for i in (8, 16, 32)]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in made))
    return path


def test_killed_at_each_of_its_calls_it_keeps_what_was_finished(tmp_path: Path, rows: Path) -> None:
    wanted = [row.cell_id for row in read_store(rows).rows]
    # Three rows, each a write and a sync.
    for fatal in range(1, 7):
        store = tmp_path / f"{fatal}.jsonl"
        code, said = write(fatal, store, rows)
        assert code == KILLED
        kept = [row.cell_id for row in read_store(store).rows]
        assert said == wanted[: len(said)]
        assert kept[: len(said)] == said
        # The next writers are killed too, while they mend and go on.
        for second in (1, 2, 3):
            write(second, store, rows)
            assert [row.cell_id for row in read_store(store).rows][: len(kept)] == kept
        assert write(0, store, rows)[0] == 0
        assert [row.cell_id for row in read_store(store).rows] == wanted


def test_the_writer_makes_six_calls_for_three_rows(tmp_path: Path, rows: Path) -> None:
    assert write(7, tmp_path / "rows.jsonl", rows)[0] == 0


def test_a_torn_line_is_kept_aside_whole(tmp_path: Path, rows: Path) -> None:
    store = tmp_path / "rows.jsonl"
    write(3, store, rows)
    torn = read_store(store).torn
    assert torn
    with StoreWriter(store) as writer:
        assert writer.torn is not None
        assert writer.torn.read_bytes() == torn + b"\n"


TORN, UNENDED = "a half-written last line", "a whole last line without its end"


@pytest.mark.parametrize(("damage", "calls"), [(TORN, 4), (UNENDED, 2)])
def test_killed_at_each_call_of_mending_it_loses_nothing(tmp_path: Path, rows: Path, damage: str, calls: int) -> None:
    """Torn: write aside, sync, truncate, sync. Unended: write the end, sync. Then one row: write, sync."""
    lines = [json.dumps(row.to_json(), separators=(",", ":")).encode() + b"\n" for row in read_store(rows).rows]
    wanted = [row.cell_id for row in read_store(rows).rows]
    begun = b"".join(lines[:2]) + lines[2][:500] if damage == TORN else b"".join(lines[:2])[:-1]
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(begun)
    assert run(APPEND, 0, whole, rows).stderr.split()[-1] == str(calls + 2)
    for fatal in range(1, calls + 3):
        store = tmp_path / f"{fatal}.jsonl"
        store.write_bytes(begun)
        assert write(fatal, store, rows)[0] == KILLED
        assert [row.cell_id for row in read_store(store).rows][:2] == wanted[:2]
        assert write(0, store, rows)[0] == 0
        assert store.read_bytes() == b"".join(lines)
        if damage == TORN:
            aside = store.with_name(f"{store.name}.torn").read_bytes()
            assert lines[2][:500] + b"\n" in aside


def test_a_store_made_at_once_is_there_whole_or_not_at_all_wherever_its_maker_is_killed(
    tmp_path: Path, rows: Path
) -> None:
    """Write, sync, link, unlink."""
    wanted = read_store(rows).rows
    for fatal in range(1, 5):
        store = tmp_path / f"{fatal}.jsonl"
        assert run(CREATE, fatal, store, rows).returncode == KILLED
        assert store.exists() == (fatal == 4)
        if store.exists():
            assert read_store(store).rows == wanted
        else:
            assert run(CREATE, 0, store, rows).returncode == 0
            assert read_store(store).rows == wanted
    assert run(CREATE, 5, tmp_path / "5.jsonl", rows).returncode == 0


def test_a_store_made_at_once_replaces_none_and_leaves_no_draft(tmp_path: Path, rows: Path) -> None:
    made = read_store(rows).rows
    create_store(tmp_path / "new.jsonl", made[:1])
    before = (tmp_path / "new.jsonl").read_bytes()
    with raises("file-exists", path=tmp_path / "new.jsonl"):
        create_store(tmp_path / "new.jsonl", made)
    with raises("file-not-writable", path=tmp_path / "none" / "new.jsonl"):
        create_store(tmp_path / "none" / "new.jsonl", made)
    assert (tmp_path / "new.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "wanted.jsonl"]
