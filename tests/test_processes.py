"""Processes of infergy run no Python files of the working folder, and end by signals as by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infergy.measure.grid import make_plan, parse_grid
from infergy.records.store import read_store
from waiting import wait_until

SRC = Path(__file__).parents[1] / "src"
SHADOWED = (
    "json",
    "random",
    "typing",
    "select",
    "subprocess",
    "numpy",
    "pynvml",
    "polars",
    "tempfile",
    "pickle",
    "queue",
)
"""Modules that infergy imports, or Python for it; of those that every start of Python imports none."""
MEASURE = ["-m", "infergy.measure", "plan.json", "-o", "rows.jsonl", "--simulate"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a plan, and Python files that leave a mark when they are run."""
    save_plan(tmp_path, [64])
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'was-run')!r}, 'a').write({name!r})\nraise SystemExit\n"
        )
    return tmp_path


def save_plan(folder: Path, lengths: list[int], **options: Any) -> None:
    grid = {"name": "tiny", "gpu": "h200", "model": "llama-3.1-8b", "engines": [{"engine": "vllm"}]}
    cells = [{"input_tokens": lengths, "output_tokens": [8], "batch": [1]}]
    make_plan(parse_grid(grid | {"cells": cells, "options": {"shuffle": False} | options}, "test")).save(
        folder / "plan.json"
    )


def start(arguments: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(SRC)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        MEASURE,
        ["-m", "infergy", *MEASURE[1:]],
        ["-m", "infergy", "list", "gpus"],
        ["-c", "import sys; del sys.path[0]; from infergy.cli import main; main()", "estimate", "azure-conv-2023"],
    ],
)
def test_python_files_of_the_working_folder_are_not_run(folder: Path, arguments: list[str]) -> None:
    if "infergy.measure" in arguments[2:]:
        arguments = ["-m", "infergy", "measure", *arguments[3:]]
    process = start(arguments, folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not (folder / "was-run").exists(), (folder / "was-run").read_text()


def test_processes_of_a_search_run_no_python_files_of_the_working_folder(folder: Path) -> None:
    code = (
        "from infergy.estimates import search\n"
        "search.FEW = 0\n"
        "from infergy.cli import main\n"
        "if __name__ == '__main__': main()\n"
    )
    (folder / "bin").mkdir()
    (folder / "bin" / "search").write_text(code)
    process = start(["-P", "bin/search", "recommend", "azure-code-2023", "--for", "60s", "--gpus", "1"], folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not (folder / "was-run").exists(), (folder / "was-run").read_text()


def test_infergy_in_the_working_folder_itself_is_found_by_its_processes(tmp_path: Path) -> None:
    (tmp_path / "infergy").symlink_to(SRC / "infergy")
    save_plan(tmp_path, [64])
    process = start(MEASURE, tmp_path, PYTHONPATH="")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(read_store(tmp_path / "rows.jsonl").rows) == 1


def slow_cells(folder: Path, *, after: int, act: str = "time.sleep(1000)") -> dict[str, str]:
    """An environment in which the worker measures so many cells, and then acts."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'infergy.measure.worker' in sys.orig_argv:\n"
        "    import os, time\n"
        "    import infergy.measure.cell as c\n"
        "    real, done = c.measure_cell, []\n"
        "    def measure_cell(*rest, **named):\n"
        f"        if len(done) == {after}:\n"
        f"            open({str(folder / 'reached')!r}, 'w').close()\n"
        f"            {act}\n"
        "        done.append(1)\n"
        "        return real(*rest, **named)\n"
        "    c.measure_cell = measure_cell\n"
    )
    return {"PYTHONPATH": f"{folder / 'site'}:{SRC}", "TMPDIR": str(folder / "tmp")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("module", ["infergy.measure", "infergy"])
def test_a_sweep_that_is_asked_to_end_says_what_was_kept_and_leaves_no_folder(
    tmp_path: Path, number: signal.Signals, module: str
) -> None:
    save_plan(tmp_path, [64, 128, 256])
    (tmp_path / "tmp").mkdir()
    environment = slow_cells(tmp_path, after=2)
    arguments = ["-m", module, *(["measure"] if module == "infergy" else []), *MEASURE[2:]]
    process = start(arguments, tmp_path, **environment)
    wait_until(lambda: (tmp_path / "reached").exists() or process.poll() is not None)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert "rows.jsonl keeps 2 rows; the same command goes on" in errors
    assert "Traceback" not in errors
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(read_store(tmp_path / "rows.jsonl").rows) == 2


def test_nohup_is_respected(tmp_path: Path) -> None:
    save_plan(tmp_path, [64])
    (tmp_path / "tmp").mkdir()
    environment = slow_cells(tmp_path, after=0, act="time.sleep(1)")
    code = (
        "import runpy, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.argv = sys.argv[1:]; "
        "runpy.run_module('infergy.measure', run_name='__main__')"
    )
    process = start(["-c", code, *MEASURE[1:]], tmp_path, **environment)
    wait_until(lambda: (tmp_path / "reached").exists() or process.poll() is not None)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.parametrize("act", ["os.unlink('rows.jsonl')", "os.rename('other', 'rows.jsonl')"])
def test_a_store_that_is_removed_or_replaced_in_mid_sweep_ends_it_with_its_rows_safe(tmp_path: Path, act: str) -> None:
    save_plan(tmp_path, [64, 128, 256, 512])
    (tmp_path / "tmp").mkdir()
    (tmp_path / "other").write_text("another's")
    process = start(MEASURE, tmp_path, **slow_cells(tmp_path, after=2, act=act))
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert "was removed or replaced" in errors
    assert "Traceback" not in errors
    # The cell in progress is finished before it is noticed, at the latest.
    assert len(read_store(tmp_path / "rows.kept-1.jsonl").rows) in (2, 3)
    assert (tmp_path / "rows.jsonl").exists() == ("rename" in act)


def test_a_disk_that_is_full_in_mid_sweep_ends_it_in_a_sentence(tmp_path: Path) -> None:
    save_plan(tmp_path, [64, 128, 256, 512])
    (tmp_path / "tmp").mkdir()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat('rows.jsonl').st_size + 9,) * 2)"
    process = start(MEASURE, tmp_path, **slow_cells(tmp_path, after=2, act=limit))
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert "rows.jsonl: cannot be written (File too large)" in errors
    assert "Traceback" not in errors
    assert [row.is_ok for row in read_store(tmp_path / "rows.jsonl").rows] == [True, True]
    again = start(MEASURE, tmp_path)
    again.communicate()
    assert again.returncode == 0
    assert len(read_store(tmp_path / "rows.jsonl").rows) == 4


def test_a_row_that_was_written_but_not_reported_is_not_failed_too(tmp_path: Path) -> None:
    save_plan(tmp_path, [64, 128, 256])
    (tmp_path / "tmp").mkdir()
    act = (
        "import infergy.records.store as s; write = s.StoreWriter.append; "
        "s.StoreWriter.append = lambda self, row: (write(self, row), os.kill(os.getpid(), 9))"
    )
    process = start(MEASURE, tmp_path, **slow_cells(tmp_path, after=1, act=act))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "FAILED" not in errors
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.is_ok for row in rows] == [True] * 3
    assert sum(" per batch" in line for line in errors.splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_measured_command_is_asked_to_end_too_and_its_energy_is_kept(tmp_path: Path, number: signal.Signals) -> None:
    command = f"import time; open({str(tmp_path / 'reached')!r}, 'w').close(); time.sleep(1000)"
    options = [
        "-m",
        "infergy",
        "run",
        "--simulate",
        "--idle",
        "0",
        "-o",
        "runs.jsonl",
        "--",
        sys.executable,
        "-c",
        command,
    ]
    process = start(options, tmp_path)
    wait_until(lambda: (tmp_path / "reached").exists() or process.poll() is not None)
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert json.loads((tmp_path / "runs.jsonl").read_text())["energy_j"] is not None
