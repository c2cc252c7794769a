"""`infergy estimate`: what it prints, its JSON contract, and what it says of input that cannot be served."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from infergy.cli import app
from infergy.cli.estimate import FIGURES
from infergy.cli.output import WIDTH
from infergy.errors import InfergyError, UsageError
from infergy.estimates.latency import Z90, LatencyParts, LikelyPercentiles
from infergy.serving.run import Percentiles
from raising import raises

ROWS = next(Path(str(resources.files("infergy"))).glob("data/tables/h200-llama-3.1-8b.jsonl"))
SHORT = ("azure-conv-2023", "--from", "10m", "--for", "20s")
RUN_KEYS = {"energy_j", "low_j", "high_j", "duration_s", "requests", "rejected_requests", "preemptions", "energy"}
RUN_KEYS |= {"latency", "measured_share"}


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["estimate", *arguments])


def answer(*arguments: str) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def log(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_json_has_each_server_as_requests_arrive_and_all_at_once() -> None:
    found = answer(*SHORT)
    (one,) = found["estimates"]
    assert {"engine", "model", "gpu", "gpus", "precision", "config", "served", "offline"} <= set(one)
    assert (one["engine"], one["model"], one["gpu"], one["gpus"]) == ("vllm", "llama-3.1-8b", "h200", 1)
    assert one["precision"] == "bfloat16"
    assert (one["config"]["max_num_seqs"], one["config"]["max_num_batched_tokens"]) == (1024, 8192)
    for run in (one["served"], one["offline"]):
        assert set(run) >= RUN_KEYS
        assert run["low_j"] < run["energy_j"] < run["high_j"]
        parts = [run["energy"][name] for name in ("prefill_j", "decode_j", "mixed_j", "idle_j")]
        assert sum(parts) == pytest.approx(run["energy_j"])
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            times = run["latency"][name]
            assert 0 < times["p50"] <= times["p90"] <= times["p99"]
            for p in ("p50", "p90", "p99"):
                assert 0 < times["low"][p] < times[p] < times["high"][p]
    assert one["served"]["energy_j"] > 2 * one["offline"]["energy_j"]
    assert one["served"]["latency"]["ttft_s"]["p50"] < one["offline"]["latency"]["ttft_s"]["p50"]
    assert found["paper"]["ideal_energy_j"] < found["paper"]["energy_j"]


def test_a_trace_without_arrivals_is_served_all_at_once_and_the_answer_says_so(tmp_path: Path) -> None:
    source = log(tmp_path, "prompt,answer", "100,10", "200,20")
    columns = ("--input-column", "prompt", "--output-column", "answer")
    (one,) = answer(source, *columns)["estimates"]
    assert one["served"] is None
    assert "no column of arrivals" in one["served_reason"]
    assert one["offline"]["requests"] == 2
    assert one["served_reason"] in " ".join(invoke(source, *columns).stdout.split())


def test_requests_longer_than_the_context_are_rejected_and_counted(tmp_path: Path) -> None:
    source = log(tmp_path, "prompt,answer", "100,10", "140000,20")
    (one,) = answer(source, "--input-column", "prompt", "--output-column", "answer")["estimates"]
    assert one["offline"]["rejected_requests"] == 1
    assert "1 of 2 requests" in invoke(source, "--input-column", "prompt", "--output-column", "answer").stdout


def test_a_load_that_a_server_cannot_keep_up_with_is_told_with_what_would() -> None:
    done = invoke("azure-conv-2023", "--for", "60s", "--speed", "20")
    assert done.exit_code == 0
    assert "replicas" in done.stdout


def test_servers_of_repeated_options_stand_side_by_side() -> None:
    found = answer(*SHORT, "-e", "vllm", "-e", "vllm-fp8", "-e", "transformers")
    names = [(one["engine"], one["precision"]) for one in found["estimates"]]
    assert ("vllm", "bfloat16") in names
    assert ("vllm-fp8", "fp8") in names
    by = {name: one["offline"]["energy_j"] for name, one in zip(names, found["estimates"], strict=True)}
    assert by["vllm-fp8", "fp8"] < by["vllm", "bfloat16"] < by["transformers", "bfloat16"]


def test_servers_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text('[[server]]\ngpu = "h200"\n\n[[server]]\ngpu = "h200"\nmax-num-seqs = 16\n')
    found = answer(*SHORT, "--compare", str(path))
    assert [one["config"]["max_num_seqs"] for one in found["estimates"]] == [1024, 16]


def test_a_model_that_does_not_fit_is_told_what_would() -> None:
    done = invoke(*SHORT, "--model", "llama-3.1-70b")
    assert isinstance(done.exception, UsageError)
    assert "--tensor-parallel-size 2 or --precision fp8 would" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-num-seqs", "64", "--max-num-batched-tokens", "32"), "expected at least --max-num-seqs, 64"),
        (("--gpu-memory-utilization", "1.5"), "expected a share above 0, up to 1"),
        (("--from", "2h"), "Choose another part: --from TIME --for TIME"),
        (("--speed", "0"), "expected a factor above 0"),
    ],
)
def test_options_that_cannot_be_meant_are_told(options: tuple[str, ...], words: str) -> None:
    done = invoke("azure-conv-2023", "--requests", "10", *options)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vllm-version = 0.25", "server 1: vllm-version is 0.25; expected text in quotes"),
        ('max-num-seqs = "many"', "expected a whole number"),
        ('enable-prefix-caching = "no"', "expected true or false"),
        ("gpu = 3", "expected text in quotes, or a list of such"),
        ("replica = 2", "replica"),
        ("max-num-seqs = 0", "server 1: max-num-seqs is 0; expected at least 1"),
        ("tensor-parallel-size = 0", "server 1: tensor-parallel-size is 0; expected at least 1"),
        ("long-prefill-token-threshold = -1", "expected at least 0"),
        ("replicas = 100_000", "expected at most 10000"),
    ],
)
def test_servers_of_a_file_are_checked(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(f"[[server]]\n{line}\n")
    done = invoke(*SHORT, "--compare", str(path))
    assert isinstance(done.exception, InfergyError)
    assert words in str(done.exception)


def test_cached_tokens_of_a_log_cost_no_prefill(tmp_path: Path) -> None:
    source = log(tmp_path, "arrived,input_tokens,output_tokens,hit", *(f"{k}.0,8000,5,7900" for k in range(5)))
    plain, cached = (
        answer(source, "--time-column", "arrived", *more)["estimates"][0]["offline"]
        for more in ((), ("--cached-column", "hit"))
    )
    assert cached["energy_j"] < 0.3 * plain["energy_j"]


def test_transformers_must_fit_too() -> None:
    done = invoke(*SHORT, "-e", "transformers", "-g", "l4", "-m", "llama-3.1-70b")
    assert isinstance(done.exception, UsageError)
    assert "does not fit" in str(done.exception)


def test_options_of_the_studys_method_are_refused_without_it() -> None:
    done = invoke(*SHORT, "--bins", "paper")
    assert isinstance(done.exception, UsageError)
    assert "--method ceiling" in str(done.exception)


def test_requests_left_out_are_counted(tmp_path: Path) -> None:
    source = log(tmp_path, "arrived,input_tokens,output_tokens", "0.0,10,5", "1.0,10,5", "0.5,10,5", "2.0,10,0")
    done = invoke(source, "--time-column", "arrived")
    assert "Rows without input or output tokens, or that cannot be read, left out: 1." in done.stdout
    assert "Requests out of order, sorted by arrival: 1." in done.stdout


def test_the_rate_of_arrivals_is_that_of_the_trace(tmp_path: Path) -> None:
    source = log(tmp_path, "arrival_s,input_tokens,output_tokens", *(f"{k},10,5" for k in range(10)))
    assert "10 requests in 9.0 s (1.00 a second)" in " ".join(invoke(source).stdout.split())
    assert "1.00 /s" in CliRunner().invoke(app, ["trace", source]).stdout


def test_power_over_time_is_given_where_asked_for() -> None:
    (plain,), (one,) = (answer(*SHORT, *more)["estimates"] for more in ((), ("--timeline", "7")))
    assert plain["served"]["load"]["timeline"] is None
    for run in (one["served"], one["offline"]):
        over_time = run["load"]["timeline"]
        assert {len(over_time[name]) for name in ("start_s", "power_w", "running", "waiting")} == {7}
        assert sum(over_time["power_w"]) * over_time["bin_s"] == pytest.approx(run["energy_j"])
        assert max(over_time["running"]) <= run["load"]["peak_running"]
    for more, needed in (
        (("--timeline", "7"), "--json"),
        (("--timeline", "7", "--method", "ceiling"), "--method runs"),
    ):
        with raises("option-missing", option=needed, needed_by=["--timeline"]):
            CliRunner().invoke(app, ["estimate", *SHORT, *more], catch_exceptions=False, standalone_mode=False)


def test_energy_is_given_by_request_and_by_token(tmp_path: Path) -> None:
    source = log(tmp_path, "input_tokens,output_tokens", "100,10", "140000,20", "200,20")
    run = answer(source)["estimates"][0]["offline"]
    per = [run["energy"][f"per_{what}_j"] for what in ("request", "output_token", "token")]
    assert per == pytest.approx([run["energy_j"] / count for count in (2, 30, 330)])


def test_explain_adds_options_and_activities() -> None:
    done = invoke(*SHORT, "--explain")
    for words in ("energy by activity", "per output token", "max_num_seqs 1024", "preemptions", "in a step"):
        assert words in done.stdout


SERVERS = """
[[server]]
[[server]]
engine = "vllm-fp8"
[[server]]
max-num-seqs = 16
max-num-batched-tokens = 2048
[[server]]
engine = "transformers"
[[server]]
gpu = "h100-sxm"
replicas = 2
[[server]]
engine = "vllm-fp8"
gpu = "b200"
"""


def test_no_name_of_many_servers_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(SERVERS, encoding="utf-8")
    text = invoke(*SHORT, "--compare", str(path)).stdout
    assert "…" not in text
    # Options stand only where servers differ in nothing else.
    assert text.count("max_num_seqs") == 2
    assert text.count("max_num_batched_tokens 2048") == 1
    assert text.count("replicas 2") == 1
    assert "None" not in text
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_of_many_servers_it_is_said_how_requests_arrive(tmp_path: Path) -> None:
    servers = ("-e", "vllm", "-e", "vllm-fp8")
    assert "As it arrives:" in invoke(*SHORT, *servers).stdout
    untimed = invoke(log(tmp_path, "input_tokens,output_tokens", "100,10"), *servers).stdout
    assert "All at once: no column of arrivals" in untimed


def test_a_latency_has_its_interval_in_its_own_unit() -> None:
    shown: Any = dict(FIGURES)["TTFT p50 / p99"]

    def cell(p50: float, p99: float) -> str:
        percentiles = LikelyPercentiles.within(Percentiles(p50=p50, p90=p99, p99=p99), math.log(2) / Z90)
        return str(shown(SimpleNamespace(latency=LatencyParts(ttft_s=percentiles))))

    assert cell(0.05, 0.2) == "50.0 / 200 ms (100 .. 400)"
    assert cell(0.05, 2.0) == "50.0 ms / 2.00 s (1.00 .. 4.00)"
    assert cell(30.0, 90.0) == "30.0 / 90.0 s (45.0 .. 180)"
    assert cell(90.0, 660.0) == "1.50 / 11.0 min (5.50 .. 22.0)"
    assert cell(600.0, 7200.0) == "10 min 00 s / 2.00 h (1.00 .. 4.00)"
    assert shown(SimpleNamespace(latency=LatencyParts())) == "-"


def test_the_figures_of_an_answer_are_ten_lines_that_fit_ninety_columns() -> None:
    lines = [line.rstrip() for line in invoke(*SHORT).stdout.splitlines()]
    table = [line for line in lines if line.startswith(" ")]
    assert len(table) == 10
    assert max(map(len, table)) <= 90


@pytest.mark.parametrize(
    "arguments",
    [
        ("estimate", "azure-code-2023", "--requests", "20"),
        ("list", "gpus"),
        ("list", "schemas", "measurement"),
        ("check", str(ROWS), "--rows", "--strict"),
        ("-h",),
    ],
)
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "infergy", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, b"")


def test_options_without_effect_on_a_trace_are_rejected(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("input_tokens,output_tokens\n10,5\n12,6\n", encoding="utf-8")
    for verb in ("estimate", "trace"):
        with raises("option-missing", option="--time-column", needed_by=["--time-unit"]):
            CliRunner().invoke(
                app, [verb, str(log), "--time-unit", "ms"], catch_exceptions=False, standalone_mode=False
            )
    options = {"--all-at-once": True, "--speed": 2.0}
    for verb in ("estimate", "recommend", "replay"):
        with raises("options-conflict", options=options):
            asked = [verb, "azure-conv-2023", "--speed", "2", "--all-at-once"]
            CliRunner().invoke(app, asked, catch_exceptions=False, standalone_mode=False)


@pytest.mark.parametrize("verb", ["estimate", "replay"])
@pytest.mark.parametrize(
    ("label", "option", "value"),
    [
        ("vllm-tp2", "--tensor-parallel-size", 1),
        ("vllm-tp2", "--tensor-parallel-size", 4),
        ("vllm-s16", "--max-num-seqs", 32),
        ("vllm-server", "--usage-context", "llm"),
    ],
)
def test_a_label_and_an_option_that_contradict_are_rejected(
    verb: str, label: str, option: str, value: str | int
) -> None:
    asked = [verb, "azure-code-2023", "--requests", "3", "--gpu", "h200", "-e", label, option, str(value)]
    with raises("options-conflict", options={"--engine": label, option: value}):
        CliRunner().invoke(app, asked, catch_exceptions=False, standalone_mode=False)


def test_options_of_vllm_that_contradict_a_label_are_rejected_at_their_defaults_too() -> None:
    for label, option, typed in (
        ("vllm-pc", "--no-enable-prefix-caching", True),
        ("vllm-mem0.5", "--gpu-memory-utilization", 0.92),
        ("vllm-fp8", "--precision", "bfloat16"),
    ):
        given = [option] if typed is True else [option, str(typed)]
        with raises("options-conflict", options={"--engine": label, option: typed}):
            CliRunner().invoke(
                app, ["estimate", *SHORT, "-e", label, *given], catch_exceptions=False, standalone_mode=False
            )


def test_a_label_and_an_option_that_agree_are_one() -> None:
    asked = ("-e", "vllm-s16", "--requests", "3")
    assert answer("azure-code-2023", *asked) == answer("azure-code-2023", *asked, "--max-num-seqs", "16")


def test_the_studys_reference_names_its_server_once() -> None:
    several = invoke(*SHORT, "-e", "transformers", "-e", "vllm").stdout
    assert several.count("study's reference") == 1
    assert "(arXiv 2504.17674) for the first server, transformers: ideal" in several
    assert "(arXiv 2504.17674): ideal" in invoke(*SHORT).stdout


@pytest.mark.parametrize("option", [("--all-at-once",), ("--speed", "2")])
def test_bins_have_no_arrivals(option: tuple[str, ...]) -> None:
    done = invoke("azure-code-2023", "--method", "ceiling", *option)
    assert isinstance(done.exception, UsageError)
    assert option[0] in done.exception.fields["options"]
