"""`infergy next` from the command line: what it chooses can be measured, and makes the estimate more certain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import UsageError

runner = CliRunner()


def run(*arguments: str) -> str:
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_its_plan_is_measured_and_the_estimate_is_as_certain_as_foretold(tmp_path: Path) -> None:
    plan, store = tmp_path / "next.json", tmp_path / "mine.jsonl"
    arguments = ("azure-code-2023", "-e", "vllm", "--own", "--budget", "4m", "--target", "3%", "-o", str(plan))
    chosen = json.loads(run("next", *arguments, "--json"))
    assert 0 < len(chosen["cells"]) <= 6
    assert chosen["cost_s"] <= 240
    assert chosen["engines"][0]["measured"] == 0
    run("measure", str(plan), "--simulate", "-o", str(store))
    known = ("--table", str(store), "--allow-simulated", "--own")
    after = json.loads(run("next", "azure-code-2023", "-e", "vllm", *known, "--json"))
    assert after["engines"][0]["measured"] == len(chosen["cells"])
    assert after["engines"][0]["half_width"] < chosen["engines"][0]["half_width"] / 4


def test_where_enough_is_known_nothing_is_chosen(tmp_path: Path) -> None:
    plan = tmp_path / "next.json"
    told = run("next", "azure-code-2023", "--gpu", "h200", "-o", str(plan))
    assert "0 cells" in told
    assert "every interval is within ± 1.00%" in told
    assert not plan.exists()


def test_a_model_that_nobody_measured_begins_at_the_datasheet() -> None:
    told = run("next", "azure-code-2023", "-g", "a100-80gb-sxm", "-m", "qwen3-32b", "-e", "vllm-tp2", "--budget", "3m")
    assert "by 0 measured cells" in told
    assert "qwen3-32b on a100-80gb-sxm" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "soon"], "--budget soon: expected a time"),
        (["--budget", "0s"], "both must be above 0"),
        (["--target", "150%"], "a share like 1%"),
        (["--engine", "vllm-spec4:llama-3.2-1b:0.8"], "no speculation"),
        (["--engine", "vlm"], "vllm"),
        (["--model", "deepseek-r1", "--gpu", "a100-80gb-sxm"], "can serve no bin"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_words(arguments: list[str], words: str) -> None:
    done = runner.invoke(app, ["next", "azure-code-2023", *arguments])
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
