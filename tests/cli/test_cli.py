"""The command line as a user meets it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from infergy.cli import app, main
from infergy.cli.verbs import ALL, GROUPS, RETIRED
from raising import raises


def infergy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in this process: to start one for each line of words would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", ["infergy", *arguments]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out.getvalue(), err.getvalue())


def start(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infergy", *arguments],
        env=os.environ | ({"PYTHONPATH": str(path)} if path else {}),
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_estimate_is_printed_by_a_process_of_its_own() -> None:
    done = start("estimate", "azure-conv-2023")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("azure-conv-2023: 19,366 requests")
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_traces_and_bins_speak_json(tmp_path: Path) -> None:
    summary = json.loads(infergy("trace", "azure-code-2023", "--json").stdout)
    assert summary["requests"] == 8819
    histogram = json.loads(infergy("trace", "azure-code-2023", "--bins", "paper", "--json").stdout)
    assert histogram["left_out"]["requests"] == 27


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["estimate", "azure-conv"], 2, "did you mean azure-conv-2023"),
        (["estimate", "azure-conv-2023", "--gpu", "h2000"], 2, "did you mean h200"),
        (["measure", "paper-bin", "-o", "x.jsonl"], 2, "did you mean paper-bins"),
        (["measure"], 2, "nothing to measure"),
        (["measure", "paper-bins"], 2, "-o FILE.jsonl"),
        (["measure", "missing.toml"], 2, "no such file"),
        (["measure", "--engine", "vllm", "--input", "a", "--output", "8"], 2, "--input is 'a'; expected whole numbers"),
        (["trace", "nowhere.csv"], 2, "unknown trace"),
        (["measure", "--engine", "vllm-egaer", "--input", "8", "--output", "8"], 2, "did you mean eager"),
        (["measure", "paper-bins", "--min-window", "inf", "--dry-run"], 2, "--min-window"),
        (["measure", "paper-bins", "--simulate", "-o", "/proc/x.jsonl"], 2, "cannot be written"),
        (["measure", "paper-bins", "--simulate", "-o", "x.jsonl.gz"], 2, "Write to a .jsonl file"),
        (["measure", "paper-bins", "--plan", "/nonexistent/x.json"], 2, "cannot be written"),
        (["measure", "."], 2, "unknown study"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_its_code(arguments: list[str], code: int, words: str) -> None:
    done = infergy(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_grid_that_lacks_a_part_or_is_no_text_is_told_though_options_would_add_to_it(tmp_path: Path) -> None:
    (tmp_path / "no_engines.toml").write_text('name = "x"\ngpu = "h200"\nmodel = "llama-3.1-8b"\n')
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "folder.json").mkdir()
    for name, words in (
        ("no_engines.toml", "engines: Field required"),
        ("binary.toml", "cannot be read ('utf-8'"),
        ("folder.toml", "cannot be read"),
        ("folder.json", "cannot be read"),
    ):
        options = [] if name.endswith(".json") else ["--seed", "3", "--input", "8"]
        done = infergy("measure", str(tmp_path / name), *options)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_measuring_without_a_gpu_says_how_to_go_on(tmp_path: Path) -> None:
    store = tmp_path / "x.jsonl"
    (tmp_path / "pynvml.py").write_text("raise ImportError('blocked')\n")
    done = start(
        "measure",
        *("--engine", "transformers", "--input", "8", "--output", "8", "--batch", "1", "-o", str(store)),
        path=tmp_path,
    )
    assert done.returncode == 3
    assert "error:" in done.stderr
    assert not store.exists()


def test_a_simulated_sweep_runs_from_the_command_line_and_its_rows_are_refused(tmp_path: Path) -> None:
    store = str(tmp_path / "x.jsonl")
    grid = ["--engine", "vllm", "--input", "512", "--output", "64", "--batch", "1,8"]
    done = start("measure", *grid, "-o", store, "--simulate")
    assert done.returncode == 0, done.stderr
    assert "(simulated)" in done.stderr
    refused = infergy("estimate", "azure-code-2023", "--table", store)
    assert refused.returncode == 2
    assert "--allow-simulated" in refused.stderr
    taken = infergy("estimate", "azure-code-2023", "--requests", "50", "--table", store, "--allow-simulated")
    assert taken.returncode == 0, taken.stderr


def test_a_dry_run_prints_the_plan_and_measures_nothing() -> None:
    done = infergy("measure", "paper-bins", "--dry-run")
    assert done.returncode == 0
    assert "134 cells in 140 visits, about" in done.stdout


@pytest.mark.parametrize("verb", RETIRED)
def test_a_verb_that_left_is_an_error_that_names_what_to_type_instead(verb: str) -> None:
    for words in ([verb], [verb, "--rows", "mine.csv"], [verb, "--help"]):
        with raises("retired-command", command=verb, instead=RETIRED[verb]):
            CliRunner().invoke(app, words, catch_exceptions=False)
    assert verb not in ALL


@pytest.mark.parametrize("words", [["waterfall", "azure-code-2023"], ["measure", "--runs", "2", "--", "sleep", "1"]])
def test_in_a_process_of_its_own_it_ends_as_other_usage_errors(words: list[str]) -> None:
    done = infergy(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is no longer a command. Type: infergy " in done.stderr


def test_what_replaces_a_verb_is_a_verb() -> None:
    for instead in RETIRED.values():
        assert instead.startswith("python ") or instead.split()[1] in ALL


def test_help_lists_the_verbs_by_group_without_loading_them() -> None:
    text = infergy("--help").stdout
    places = [text.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    lines = [line.split() for line in text.splitlines()]
    for verb in ALL:
        assert any(words[:1] == [verb] for words in lines)
    assert len(ALL) <= 16
    code = "import sys; sys.argv = ['infergy', '--help']; from infergy.cli import main\n"
    code += "try: main()\nfinally: print([m for m in sys.modules if m in ('infergy.cli.estimate', 'infergy.workload')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


def commands() -> dict[str, Any]:
    """Each command by what is typed for it."""
    found: dict[str, Any] = {}
    for verb, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{verb} {name}": one for name, one in inner.items()} if inner else {verb: command}
    return found


@pytest.mark.parametrize("typed", commands())
def test_each_verb_has_help_with_an_example_and_each_option_a_meaning(typed: str) -> None:
    done = CliRunner().invoke(app, [*typed.split(), "--help"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"Example: infergy {typed} " in " ".join(done.stdout.split()) or typed == "doctor"
    for parameter in commands()[typed].params:
        assert parameter.help, f"{typed}: {parameter.name}"


@pytest.mark.parametrize("typed", ["trace", "estimate", "recommend", "breakdown", "next", "replay", "report"])
def test_each_verb_that_takes_a_trace_takes_the_same_options_of_it(typed: str) -> None:
    known = {option for parameter in commands()[typed].params for option in parameter.opts}
    columns = {f"--{name}-column" for name in ("input", "output", "time", "cached")}
    assert columns | {"--time-unit", "--format", "--seed", "--tokenizer"} <= known


@pytest.mark.parametrize("typed", ["estimate", "recommend", "breakdown", "next"])
def test_each_verb_that_estimates_takes_the_same_servers(typed: str) -> None:
    known = {option for parameter in commands()[typed].params for option in parameter.opts}
    assert {"--from", "--for", "--speed", "--requests", "--all-at-once"} <= known
    assert {"--gpu", "--model", "--max-num-seqs", "--num-gpu-blocks", "--table"} <= known
