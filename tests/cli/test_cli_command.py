"""`infergy run -- COMMAND` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from infergy.catalog import get_gpu
from infergy.cli import app, command
from infergy.cli.schemas import make_schema
from infergy.meters.simulated import SimulatedMeter, pretend_node

# Of a pretended GPU in real time: what is said where this machine was too busy to read it, as it may be.
LATE = ("ticks of the counter were stamped up to", "a block of")
NONE = "no energy: "


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infergy", "run", *arguments], capture_output=True, text=True, check=False
    )


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


def test_the_programs_output_is_its_own_and_the_figures_go_to_stderr() -> None:
    done = run("--simulate", "--idle", "0", *python("import time; time.sleep(0.3); print('hello')"))
    assert done.stdout == "hello\n"
    assert done.returncode == (3 if NONE in done.stderr else 0)
    assert "J (" in done.stderr or NONE in done.stderr
    assert "SIMULATED" in done.stderr


def test_as_json_stdout_holds_one_line_a_run_and_nothing_of_the_program(tmp_path: Path) -> None:
    rows = tmp_path / "runs.jsonl"
    done = run(
        "--simulate",
        "--idle",
        "0.1",
        "--runs",
        "2",
        "--warmup",
        "1",
        "--json",
        "-o",
        str(rows),
        *python("import time; time.sleep(0.3); print('x')"),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert done.stderr == "x\n" * 3
    assert rows.read_text().splitlines() == lines
    validator = Draft202012Validator(make_schema("window"))
    for line in lines:
        found = json.loads(line)
        validator.validate(found)
        assert found["simulated"]
        if found["reason"] is None:
            assert found["low_j"] <= found["energy_j"] <= found["high_j"]
            assert found["net_j"] < found["energy_j"]
        else:
            assert found["reason"].startswith(LATE)


def test_the_programs_exit_code_is_passed_on_and_ends_the_runs() -> None:
    done = run("--simulate", "--idle", "0", "--runs", "3", "--json", *python("raise SystemExit(7)"))
    assert done.returncode == 7
    assert len(done.stdout.splitlines()) == 1
    killed = run("--simulate", "--idle", "0", *python("import os; os.kill(os.getpid(), 9)"))
    assert killed.returncode == 128 + 9


def test_a_run_without_energy_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    node = pretend_node(get_gpu("h200"), 1)
    monkeypatch.setattr("infergy.meters.simulated.SteadyMeter", lambda count: SimulatedMeter(node))

    def serve(*_: object) -> int:
        node.advance(4.0, 500.0)
        # From here on the counter stands still.
        monkeypatch.setattr(SimulatedMeter, "read", lambda meter: {gpu.uuid: 1.0 for gpu in meter.gpus})
        return 0

    monkeypatch.setattr(command, "_run", serve)
    done = CliRunner().invoke(app, ["run", "--simulate", "--idle", "0", "--json", "serve"])
    assert json.loads(done.stdout)["energy_j"] is None
    assert done.exit_code == 3


def test_a_signal_that_ends_us_ends_the_program_first() -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(5)); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-m", "infergy", "run", "--simulate", "--idle", "0", *python(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 5
    process.stdout.close()


def test_a_signal_that_comes_while_the_program_starts_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def signalled(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", signalled)
    before = signal.getsignal(signal.SIGTERM)
    assert command._run(["sleep", "1000"], None) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--simulate", "--", "no-such-program"], "cannot run 'no-such-program'"),
        (["--simulate", "-o", "/proc/x", "--", "true"], "cannot be written"),
        (["--simulate", "--meter", "zeus-gpu", "--", "true"], "--simulate and --meter zeus-gpu: leave out --meter"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_of_several_gpus_each_has_a_line_and_the_total_is_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    node = pretend_node(get_gpu("h200"), 2)
    monkeypatch.setattr("infergy.meters.simulated.SteadyMeter", lambda count: SimulatedMeter(node))

    def serve(*_: object) -> int:
        node.advance(5.0, 840.0)
        return 0

    monkeypatch.setattr(command, "_run", serve)
    words = ["run", "--simulate", "--gpus", "2", "--idle", "1"]
    explained = CliRunner().invoke(app, [*words, "--explain", "--", "serve"]).stderr.splitlines()
    assert explained[1].startswith("  GPU 0 (GPU-simulated-0): ")
    done = CliRunner().invoke(app, [*words, "serve", "--port", "80"])
    assert done.exit_code == 0, done.output
    total, first, second, *_ = done.stderr.splitlines()
    assert first.startswith("  GPU 0: ")
    assert second.startswith("  GPU 1: ")
    assert "GPU-simulated" not in done.stderr
    watts = [float(line.partition(";")[0].rpartition(", ")[2].removesuffix(" W")) for line in (total, first, second)]
    assert watts[0] == pytest.approx(840.0, rel=0.01)
    assert watts[0] == pytest.approx(watts[1] + watts[2], rel=0.01)
    assert watts[1] != watts[2]
