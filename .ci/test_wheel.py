"""The installed wheel by itself: `.ci/run` copies this file to an empty folder and runs it with the wheel's Python."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import infergy


def run(*words: str) -> str:
    """What the installed command prints."""
    command = [str(Path(sys.executable).with_name("infergy")), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_what_is_imported() -> None:
    assert Path(infergy.__file__).is_relative_to(sys.prefix)
    assert (Path(infergy.__file__).parent / "py.typed").is_file()


def test_every_module_imports_with_the_declared_dependencies_alone() -> None:
    names = [one.name for one in pkgutil.walk_packages(infergy.__path__, "infergy.")]
    assert len(names) > 100
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_the_command_prints_the_version_of_its_distribution() -> None:
    assert version("infergy") in run("--version")


def test_a_shipped_trace_is_estimated() -> None:
    answer = json.loads(run("estimate", "azure-conv-2023", "--json"))
    served = answer["estimates"][0]["served"]
    assert served["requests"] == answer["trace"]["requests"] == 19366
    assert 0 < served["low_j"] < served["energy_j"] < served["high_j"]


def test_a_plan_is_measured_on_the_simulated_gpu_and_its_rows_are_checked(tmp_path: Path) -> None:
    plan, rows = (str(tmp_path / name) for name in ("plan.json", "rows.jsonl"))
    grid = ["--engine", "vllm", "--model", "llama-3.1-8b", "--gpu", "h200", "--input", "512", "--output", "8"]
    run("measure", *grid, "--batch", "1,8", "--plan", plan)
    run("measure", plan, "--simulate", "-o", rows)
    assert [json.loads(line)["result"]["energy_j"] > 0 for line in Path(rows).read_text().splitlines()] == [True, True]
    assert "2 rows" in run("check", rows)


def test_the_catalogue_is_shipped() -> None:
    assert "h200" in run("list", "gpus")
    assert "llama-3.1-8b" in run("list", "models")
    assert "$schema" in json.loads(run("list", "schemas", "measurement"))
