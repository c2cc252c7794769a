"""`infergy next` from the command line: what it chooses can be measured, and narrows the estimate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import UsageError

runner = CliRunner()
TRACE = ("azure-code-2023", "--requests", "60")
UNSEEN = ("-g", "a100-80gb-sxm", "-m", "olmo-2-7b", "-e", "vllm")


def run(*arguments: str) -> str:
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_its_plan_is_measured_in_its_order_and_narrows_the_estimate(tmp_path: Path) -> None:
    plan, store = tmp_path / "next.json", tmp_path / "mine.jsonl"
    arguments = (*TRACE, *UNSEEN, "--budget", "150s", "-o", str(plan), "--json")
    chosen = json.loads(run("next", *arguments))
    assert chosen["schema"] == "infergy.next/2"
    assert chosen["cells"]
    assert chosen["cost_s"] <= 150
    planned = [cell["cell"]["load"] for cell in json.loads(plan.read_text(encoding="utf-8"))["cells"]]
    assert [[load[name] for name in ("input_tokens", "output_tokens", "batch")] for load in planned] == [
        [cell[name] for name in ("input_tokens", "output_tokens", "batch")] for cell in chosen["cells"]
    ]
    run("measure", str(plan), "--simulate", "-o", str(store))
    known = ("--table", str(store), "--allow-simulated")
    after = json.loads(run("next", *TRACE, *UNSEEN, *known, "--json"))
    assert after["servers"][0]["measured"] == len(chosen["cells"])
    assert after["servers"][0]["half_width"] < chosen["servers"][0]["half_width"] / 2


def test_where_enough_is_known_nothing_is_chosen(tmp_path: Path) -> None:
    plan = tmp_path / "next.json"
    text = run("next", *TRACE, "-g", "h200", "--target", "20%", "-o", str(plan))
    assert "No cell to measure" in text
    assert not plan.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "soon"], "--budget is 'soon'"),
        (["--budget", "0s"], "--budget"),
        (["--target", "150%"], "--target"),
        (["--engine", "vllm-spec4:llama-3.2-1b:0.8"], "speculative"),
        (["--engine", "vlm"], "vllm"),
        (["--gpu", "h200", "--gpu", "h100-sxm"], "--gpu"),
        (["--model", "deepseek-v3", "--gpu", "a100-80gb-sxm"], "--tensor-parallel-size"),
    ],
)
def test_what_cannot_be_chosen_is_rejected_with_what_to_type(arguments: list[str], words: str) -> None:
    done = runner.invoke(app, ["next", *TRACE, *arguments])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
