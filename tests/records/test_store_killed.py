"""A store whose writer is killed at any of its calls: no finished row is lost, and the next writer goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infergy.records.store import StoreWriter, read_store
from rows import build_row

SRC = str(Path(__file__).parents[2] / "src")

WRITER = """
import json, os, sys
from pathlib import Path
from infergy.records import Measurement
from infergy.records import store as room

fatal, path, rows = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
calls = 0

def step(act, half=None):
    # The fatal call is done by half, or not at all, and is the last one.
    global calls
    calls += 1
    if calls == fatal:
        if half is not None:
            half()
        os._exit(9)
    return act()

class Dying:
    # A file whose calls are counted; what is written goes to the kernel at once.
    def __init__(self, file):
        self._file = file
    def write(self, data):
        whole = lambda: (self._file.write(data), self._file.flush())
        return step(whole, lambda: (self._file.write(data[: len(data) // 2]), self._file.flush()))
    def truncate(self, size):
        return step(lambda: self._file.truncate(size))
    def __getattr__(self, name):
        return getattr(self._file, name)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self._file.close()

real_open, real_fsync = Path.open, os.fsync
Path.open = lambda self, mode="r", *rest, **named: (
    Dying(real_open(self, mode, *rest, **named)) if "a" in mode else real_open(self, mode, *rest, **named)
)
room.os.fsync = lambda fd: step(lambda: real_fsync(fd))
with room.StoreWriter(path) as store:
    done = {row.cell_id for row in store.rows}
    for line in rows.read_text().splitlines():
        row = Measurement.from_json(json.loads(line))
        if row.cell_id not in done:
            store.append(row)
            print(row.cell_id, flush=True)
"""


def write(fatal: int, store: Path, rows: Path) -> tuple[int, list[str]]:
    """Write the rows that the store lacks, dying in the call numbered `fatal`; the exit code and the rows finished."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(fatal), str(store), str(rows)],
        env={"PYTHONPATH": SRC},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 9), done.stderr
    return done.returncode, done.stdout.split()


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
        assert code == 9
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
