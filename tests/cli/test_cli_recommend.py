"""`infergy recommend` and `infergy breakdown` from the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.recommend import print_capacity
from infergy.errors import UsageError
from infergy.estimates.capacity import Capacity, Hour, Schedule

runner = CliRunner()
TRACE = ("azure-code-2023", "--requests", "60")


def run(*arguments: str) -> str:
    done = runner.invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_first_lines_are_what_to_type() -> None:
    lines = run("recommend", *TRACE, "-e", "vllm-eager", "--tpot-p99", "500ms").splitlines()
    assert lines[1] == "Limits: TPOT p99 500 ms"
    assert lines[2].startswith("Present: vllm-eager, 1 × h200: ")
    assert lines[3].startswith(("Recommended: ", "Keep "))
    assert lines[4].startswith("  vllm serve MODEL")


def test_the_replay_that_it_advises_is_of_the_same_requests_and_server() -> None:
    asked = (*TRACE, "-m", "qwen3-32b", "--speed", "2", "-g", "h200")
    found = json.loads(run("recommend", *asked, "--json"))
    chosen = next(one for one in found["configurations"] if one["label"] == found["recommended"])
    (line,) = (line for line in run("recommend", *asked).splitlines() if "measure a window of it first" in line)
    words = shlex.split(line.partition("infergy ")[2])
    assert words[-2:] == ["-o", "replay.jsonl"]
    replayed = json.loads(run(*words[:-2], "--json"))
    assert replayed["predicted"]["energy_j"] == pytest.approx(
        (chosen["estimate"]["served"] or chosen["estimate"]["offline"])["energy_j"], rel=1e-6
    )


def test_a_short_trace_is_replayed_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "my log.csv"
    rows = [f"{arrival},100,20" for arrival in range(300)]
    log.write_text("\n".join(["at,in,out", *rows]))
    columns = ("--time-column", "at", "--input-column", "in", "--output-column", "out")
    text = run("recommend", str(log), *columns, "-m", "qwen3-32b", "-e", "vllm", "-e", "vllm-eager")
    (line,) = (line for line in text.splitlines() if "measure a window of it first" in line)
    words = shlex.split(line.partition("infergy ")[2])
    assert words[:2] == ["replay", str(log)]
    assert set(columns) < set(words)
    assert "--for" in words
    assert "--from" not in words


def test_several_servers_are_ranked_as_they_are() -> None:
    found = json.loads(run("recommend", *TRACE, "-e", "transformers", "-e", "vllm", "--json"))
    assert found["schema"] == "infergy.recommend/3"
    assert {one["label"] for one in found["configurations"]} == {"vllm", "transformers"}
    assert found["present"] == "transformers"
    assert found["recommended"] == "vllm"


def test_it_says_so_where_nothing_keeps_the_limits() -> None:
    assert "No configuration keeps the limits" in run(
        "recommend", *TRACE, "--tpot-p99", "1ms", "-e", "vllm", "-e", "vllm-fp8"
    )
    found = json.loads(run("recommend", *TRACE, "--ttft-p99", "1ms", "-e", "vllm", "-e", "vllm-fp8", "--json"))
    assert found["recommended"] is None
    assert all("ttft_p99_s" in one["breaks"] for one in found["configurations"])


@pytest.mark.parametrize("option", ["--tpot-p99", "--ttft-p99", "--e2e-p99"])
def test_a_limit_without_a_unit_is_rejected_with_what_to_type(option: str) -> None:
    done = runner.invoke(app, ["recommend", *TRACE, option, "50"])
    assert isinstance(done.exception, UsageError)
    assert f"{option} 50ms or {option} 50s" in str(done.exception)
    done = runner.invoke(app, ["recommend", *TRACE, option, "soon"])
    assert isinstance(done.exception, UsageError)


def test_a_breakdown_is_printed_as_bars_that_add_up() -> None:
    text = run("breakdown", *TRACE, "-e", "transformers", "--explain")
    assert text.count("idle") >= 3
    found = json.loads(run("breakdown", *TRACE, "-e", "transformers", "--json"))
    assert found["schema"] == "infergy.breakdown/2"
    for name in ("by_time", "by_source", "by_activity"):
        assert sum(part["energy_j"] for part in found[name]) == pytest.approx(found["energy_j"])
    estimated = json.loads(run("estimate", *TRACE, "-e", "transformers", "--json"))["estimates"][0]
    assert found["energy_j"] == estimated["served"]["energy_j"]


def test_a_breakdown_is_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "waterfall.svg"
    run("breakdown", *TRACE, "-o", str(picture))
    drawn = picture.read_text(encoding="utf-8")
    assert "arithmetic" in drawn
    assert "energy of the run" in drawn


def test_a_picture_has_a_known_format_and_one_server(tmp_path: Path) -> None:
    for arguments in (["-o", "x.gif"], ["-o", str(tmp_path / "x.svg"), "-e", "vllm", "-e", "transformers"]):
        done = runner.invoke(app, ["breakdown", *TRACE, *arguments])
        assert isinstance(done.exception, UsageError)


def test_the_present_server_is_what_its_command_says() -> None:
    command = "CUDA_VISIBLE_DEVICES=0,1 vllm serve meta-llama/Llama-3.1-8B-Instruct -dp 2 --max-num-seqs 64 --port 80"
    asked = ("recommend", *TRACE, "--present", command)
    found = json.loads(run(*asked, "--json"))
    assert found["present"] == "vllm max-num-seqs=64 replicas=2 router=least_loaded"
    lines = run(*asked).splitlines()
    assert lines[2].startswith(f"Present: {found['present']}, 2 × h200: ")
    assert lines[4].startswith("  vllm serve meta-llama/Llama-3.1-8B-Instruct ")
    assert lines[4].endswith(" --port 80")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--present", "vllm serve llama-3.1-8b", "-e", "vllm-eager"), "options-conflict"),
        (("--present", "vllm serve llama-3.1-8b --max-num-seq 3"), "unknown-name"),
        (("--gpus", "four"), "bad-value"),
        (("--gpus", "0..2"), "bad-value"),
        (("--gpus", "4..1"), "bad-value"),
        (("--gpus", "1..1000000000000"), "bad-value"),
        (("--gpus", "2", "-e", "vllm", "-e", "transformers"), "options-conflict"),
        (("--rate", "0"), "bad-value"),
        (("--rate", "2", "--speed", "2"), "options-conflict"),
    ],
)
def test_what_cannot_be_meant_is_rejected(options: tuple[str, ...], code: str) -> None:
    done = runner.invoke(app, ["recommend", *TRACE, *options])
    assert isinstance(done.exception, UsageError)
    assert done.exception.code == code


def test_servers_that_differ_in_context_and_version_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "servers.toml"
    path.write_text(
        '[[server]]\nengine = "vllm"\n[[server]]\nusage-context = "llm"\nvllm-version = "0.33"\nprecision = "fp8"\n',
        encoding="utf-8",
    )
    lines = run("recommend", *TRACE, "--compare", str(path)).splitlines()
    assert lines[4] == "  LLM(MODEL, quantization='fp8_per_tensor')"


def test_limits_need_arrivals_and_a_rate_gives_them() -> None:
    asked = ("recommend", "task:translation", "--requests", "64", "--ttft-p99", "1s", "-e", "vllm", "-e", "vllm-eager")
    done = runner.invoke(app, list(asked))
    assert isinstance(done.exception, UsageError)
    assert done.exception.code == "no-arrivals"
    text = run(*asked, "--rate", "5")
    assert "Recommended: " in text
    # Random arrivals are not replayed.
    assert "infergy replay" not in text


def test_it_says_where_no_allowed_number_of_gpus_serves_better() -> None:
    text = run("recommend", *TRACE, "-m", "llama-3.1-405b", "--gpus", "1")
    assert "Keep vllm-tp8" in text
    assert "with --gpus 1 nothing within the limits" in " ".join(text.split())


def test_the_highest_rates_are_named_where_asked_for() -> None:
    asked = ("recommend", *TRACE, "-e", "vllm", "-e", "vllm-fp8", "--tpot-p99", "500ms")
    assert "requests/s" not in run(*asked)
    assert "vllm-fp8 holds " in run(*asked, "--capacity")
    assert "Replicas by hour" not in run(*asked, "--capacity")


def test_hours_with_equal_replicas_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    hours = tuple(
        Hour(start_s=3600.0 * k, rate_per_s=rate, replicas=count, energy_j=1e6 * count, constant_j=2e6)
        for k, (rate, count) in enumerate(((5.0, 2), (6.0, 2), (0.0, 0), (1.0, 1)))
    )
    schedule = Schedule(
        hours=hours, replicas=2, energy_j=5e6, loading_j=0.0, constant_j=8e6, load_s=47.0, notes=("a note",)
    )
    broken = Capacity(label="vllm", reason="ttft p99")
    capable = Capacity(label="fp8", rate_per_s=7.0, binds=("tpot_p99_s", "overload"), schedule=schedule)
    print_capacity([broken, capable], "fp8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vllm: no rate within the limits: ttft p99"
    assert lines[1] == "fp8 holds up to 7.00 requests/s within the limits; above, TPOT p99 is over and its queue grows"
    assert lines[2] == "Replicas by hour: 5.00 MJ, 8.00 MJ with 2 all the time: 37.5 % saved"
    rows = [line.split() for line in lines if " .. " in line]
    assert [row[:3] for row in rows] == [["0", "..", "2"], ["2", "..", "3"], ["3", "..", "4"]]
    assert rows[0][3:] == ["5.00", "..", "6.00", "2", "4.00", "MJ"]
    assert "- a note" in lines
