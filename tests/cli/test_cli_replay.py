"""`infergy replay` from the command line: predicted, measured, compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import DataError, InfergyError, UsageError
from infergy.records import Plan, result_of
from infergy.records.store import read_store
from infergy.workload import open_trace
from infergy.workload.load_generator import hash_lengths
from raising import raises

runner = CliRunner()
FEW = ("replay", "azure-code-2023", "--requests", "40", "--all-at-once", "--gpu", "h200")
TIMED = ("replay", "azure-code-2023", "--from", "3m", "--for", "10s", "--gpu", "h200")


def printed(*arguments: str) -> dict[str, Any]:
    done = runner.invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("asked", [FEW, TIMED], ids=["all at once", "timed"])
def test_it_is_predicted_measured_and_compared(tmp_path: Path, asked: tuple[str, ...]) -> None:
    store = tmp_path / "replay.jsonl"
    before = printed(*asked)
    assert (before["compared"], before["is_inside"], before["gpu_uuids"]) == ([], None, [])
    after = printed(*asked, "--simulate", "-o", str(store))
    assert after["predicted"] == before["predicted"], "measuring must not move the prediction"
    assert after["simulated"] is True
    figures = {one["name"]: one for one in after["compared"]}
    assert {"energy_j", "duration_s", "ttft_s_p50", "tpot_s_p99", "e2e_s_p99"} <= set(figures)
    for one in figures.values():
        assert one["error"] == pytest.approx(one["predicted"] / one["measured"] - 1)
    energy, run = figures["energy_j"], before["predicted"]
    assert after["is_inside"] == (run["low_j"] <= energy["measured"] <= run["high_j"])
    assert printed("replay", str(store)) == after, "rows are compared again as they were when they were measured"


def test_each_request_keeps_its_lengths_in_the_plan_and_in_the_row(tmp_path: Path) -> None:
    store, plan = tmp_path / "replay.jsonl", tmp_path / "plan.json"
    asked = open_trace("azure-code-2023").requests().slice(0, 40)
    wanted = tuple(zip(asked.input_tokens.tolist(), asked.output_tokens.tolist(), strict=True))
    assert runner.invoke(app, [*FEW, "--plan", str(plan)]).exit_code == 0
    done = runner.invoke(app, ["measure", str(plan), "--simulate", "-o", str(store)])
    assert done.exit_code == 0, done.output
    (row,) = read_store(store).rows
    assert row.lengths == wanted
    assert row.cell.load.arrivals is not None
    assert row.cell.load.arrivals.digest == hash_lengths(wanted)[:12]
    batch = row.windows[0].batches[0]
    assert (batch.requests, batch.input_tokens) == (40, sum(i for i, _ in wanted))
    assert batch.output_tokens == sum(o for _, o in wanted)
    assert printed("replay", str(plan))["predicted"] == printed("replay", str(store))["predicted"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["azure-code-2023", "--requests", "9000"], UsageError, ["azure-code-2023", "8,819"]),
        (["azure-code-2023", "--requests", "9000", "--all-at-once"], UsageError, ["8,819", "9,000"]),
        (
            ["azure-code-2023", "--requests", "40", "--engine", "transformers"],
            UsageError,
            ["transformers", "--all-at-once"],
        ),
        (["azure-code-2023", "--requests", "40", "--engine", "vllm-spec4:llama-3.2-1b:0.8"], UsageError, ["spec4"]),
        (["azure-code-2023", "--from", "5h", "--for", "10s"], UsageError, ["azure-code-2023", "--from", "3435.95"]),
        (["azure-code-2023", "--from", "5h"], UsageError, ["azure-code-2023", "--from", "3435.95"]),
        (["azure-code-2023", "--for", "0"], UsageError, ["--for is 0"]),
        (["azure-code-2023", "--requests", "40", "--input-column", "no"], DataError, ["'no'", "ContextTokens"]),
        (["azure-code-2023", "--requests", "40", "--time-unit", "w"], UsageError, ["time unit", "'w'"]),
        (["azure-code-2023", "--for", "often"], UsageError, ["--for", "often"]),
        (["nothing.jsonl", "--requests", "40"], DataError, ["nothing.jsonl"]),
    ],
)
def test_what_cannot_be_replayed_is_rejected(arguments: list[str], error: type[Exception], words: list[str]) -> None:
    done = runner.invoke(app, ["replay", *arguments, "--gpu", "h200"])
    assert isinstance(done.exception, error), done.output
    assert all(word in str(done.exception) for word in words)


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """Ten sessions of four turns, each prompt the one before and more, in Mooncake's form."""
    path = tmp_path / "sessions.jsonl"
    turns = [
        {
            "timestamp": 2000 * turn + 100 * talk,
            "input_length": 512 * (2 + turn) - talk,
            "output_length": 20,
            "hash_ids": [0, *range(100 * talk + 1, 100 * talk + 2 + turn)],
        }
        for turn in range(4)
        for talk in range(10)
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in turns), encoding="utf-8")
    return path


def test_prompts_share_the_prefixes_of_the_log_and_hits_are_predicted_and_measured(
    sessions: Path, tmp_path: Path
) -> None:
    store = tmp_path / "rows.jsonl"
    cached = printed("replay", str(sessions), "--gpu", "h200", "--simulate", "-o", str(store))
    # Of each later turn the full blocks of 16 tokens that the turn before had; of each first turn the first block.
    wanted = 9 * 512 + sum(
        (512 * (1 + turn) - talk if talk else 512 * (1 + turn)) // 16 * 16 for turn in (1, 2, 3) for talk in range(10)
    )
    (figure,) = [one for one in cached["compared"] if one["name"] == "cached_tokens"]
    assert cached["predicted"]["load"]["hit_tokens"] == figure["predicted"] == figure["measured"]
    assert figure["measured"] == pytest.approx(wanted, rel=0.1)
    estimate = printed("estimate", str(sessions), "--gpu", "h200", "--speed", "1")["estimates"][0]["served"]
    assert cached["predicted"]["energy_j"] == pytest.approx(estimate["energy_j"], rel=1e-6)
    plain = printed(
        "replay", str(sessions), "--gpu", "h200", "--no-enable-prefix-caching", "--simulate", "-o", str(store)
    )
    assert plain["cell_id"] != cached["cell_id"]
    assert plain["predicted"]["load"]["hit_tokens"] == 0
    assert "cached_tokens" not in {one["name"] for one in plain["compared"]}
    on, off = read_store(store).rows
    assert on.prompt_sha256 == off.prompt_sha256, "the option is all that differs"
    assert (on.links, on.lengths, on.arrival_s) == (off.links, off.lengths, off.arrival_s)
    assert [row.cell.setup.prefix_caching for row in (on, off)] == [True, False]
    done = runner.invoke(app, ["replay", str(store), "--gpu", "h200"])
    assert "cached_tokens" in done.stdout
    again = printed("replay", str(store), "--gpu", "h200")
    assert again


@pytest.mark.parametrize("times", [True, False], ids=["with times", "without"])
def test_requests_that_follow_answers_do_so_in_a_replay(tmp_path: Path, times: bool) -> None:
    log, store = tmp_path / "log.jsonl", tmp_path / "rows.jsonl"
    turns = [
        {"session_id": f"s{talk}", "pre_gap": 1.5 * turn, "input_length": 100 * (turn + 1), "output_length": 30}
        | ({"timestamp": 0.5 * talk} if times else {})
        for talk in range(5)
        for turn in range(3)
    ]
    log.write_text("".join(f"{json.dumps(one)}\n" for one in turns), encoding="utf-8")
    found = printed("replay", str(log), "--gpu", "h200", "--simulate", "-o", str(store))
    estimate = printed("estimate", str(log), "--gpu", "h200", "--no-enable-prefix-caching")["estimates"][0]["served"]
    for name in ("energy_j", "duration_s"):
        assert found["predicted"][name] == pytest.approx(estimate[name], rel=1e-6)
    (duration,) = [one for one in found["compared"] if one["name"] == "duration_s"]
    assert duration["measured"] > (2.0 if times else 0.0) + 1.5 + 3.0
    (row,) = read_store(store).rows
    assert row.links is not None
    assert row.links.block_tokens is None
    assert [after >= 0 for after in row.links.after].count(True) == 10
    assert sum(row.links.gap_s) == pytest.approx(5 * (1.5 + 3.0))
    done = runner.invoke(app, ["check", str(store), "--allow-simulated"])
    assert not isinstance(done.exception, (IndexError, TypeError)), done.output
    lacks = runner.invoke(app, ["replay", str(log), "--gpu", "h200", "--usage-context", "llm"])
    assert isinstance(lacks.exception, UsageError)
    assert printed("replay", str(log), "--gpu", "h200", "--usage-context", "llm", "--all-at-once")["requests"] == 15


def test_a_request_that_is_too_long_is_left_out_and_counted_as_estimate_counts_it(tmp_path: Path) -> None:
    log, store = tmp_path / "log.csv", tmp_path / "rows.jsonl"
    # The longest prompt and the longest answer are not of one request, and the second last fits exactly.
    lengths = [(100, 300), (4000, 97), (200, 200), (4095, 1), (4095, 2)]
    lines = [f"{at},{inputs},{outputs}" for at, (inputs, outputs) in enumerate(lengths)]
    log.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]), encoding="utf-8")
    asked = [str(log), "--gpu", "h200"]
    found = printed("replay", *asked, "-e", "vllm-len4096", "--simulate", "-o", str(store))
    options = ("--max-model-len", "4096", "--no-enable-prefix-caching")
    estimate = printed("estimate", *asked, *options)["estimates"][0]["served"]
    assert (estimate["requests"], estimate["rejected_requests"], found["requests"]) == (5, 2, 3)
    assert [found["predicted"][name] for name in ("requests", "rejected_requests")] == [5, 2]
    assert found["predicted"]["energy_j"] == pytest.approx(estimate["energy_j"], rel=1e-6)
    (row,) = read_store(store).rows
    assert row.lengths == ((100, 300), (200, 200), (4095, 1))
    assert printed("replay", str(store))["predicted"]["rejected_requests"] == 2
    plain = printed("replay", *asked)
    assert (plain["requests"], plain["predicted"]["rejected_requests"]) == (5, 0)
    done = runner.invoke(app, ["replay", *asked, "-e", "vllm-len200"])
    assert isinstance(done.exception, UsageError)


def test_a_trace_without_hashes_is_replayed_without_a_cache_unless_asked(tmp_path: Path) -> None:
    found = [printed(*TIMED, *more)["cell"] for more in ((), ("--enable-prefix-caching",), ("-e", "vllm-pc"))]
    assert [cell.startswith("vllm-server-pc-replay") for cell in found] == [False, True, True]
    done = runner.invoke(app, [*FEW, "-e", "transformers", "--enable-prefix-caching"])
    assert isinstance(done.exception, UsageError)
    done = runner.invoke(app, [*TIMED, "-e", "vllm-pc", "--no-enable-prefix-caching"])
    assert isinstance(done.exception, UsageError)


def test_rows_without_a_replay_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    store = tmp_path / "cells.jsonl"
    asked = ["measure", "--engine", "vllm", "--input", "64", "--output", "8", "--batch", "2", "--simulate"]
    assert runner.invoke(app, [*asked, "-o", str(store)]).exit_code == 0
    done = runner.invoke(app, ["replay", str(store)])
    assert isinstance(done.exception, UsageError)
    assert str(store) in str(done.exception)


def test_columns_and_their_unit_are_named_as_for_estimate(tmp_path: Path) -> None:
    path, plan = tmp_path / "log.csv", tmp_path / "plan.json"
    path.write_text("when,in,out\n0,100,10\n1000,100,12\n2000,200,20\n9000,200,20\n", encoding="utf-8")
    names = ("--input-column", "in", "--output-column", "out", "--time-column", "when", "--time-unit", "ms")
    found = printed("replay", str(path), *names, "--for", "3s", "--gpu", "h200", "--plan", str(plan))
    assert (found["requests"], found["input_tokens"], found["output_tokens"]) == (3, 400, 42)
    (cell,) = Plan.load(plan).cells
    assert cell.arrival_s == (0.0, 1.0, 2.0)
    assert cell.lengths == ((100, 10), (100, 12), (200, 20))
    # The same run as of a log that needs no options.
    plain, other = tmp_path / "plain" / "log.csv", tmp_path / "other.json"
    plain.parent.mkdir()
    plain.write_text("arrival_s,input_tokens,output_tokens\n0,100,10\n1,100,12\n2,200,20\n9,200,20\n", encoding="utf-8")
    printed("replay", str(plain), "--for", "3s", "--gpu", "h200", "--plan", str(other))
    assert Plan.load(other).cells[0].cell.id == cell.cell.id
    # Without times requests are served all at once, and a window of time is an error.
    at_once = printed("replay", str(path), *names[:4], "--requests", "3", "--gpu", "h200")
    assert (at_once["requests"], at_once["input_tokens"], at_once["output_tokens"]) == (3, 400, 42)
    done = runner.invoke(app, ["replay", str(path), *names[:4], "--for", "3s", "--gpu", "h200"])
    assert isinstance(done.exception, InfergyError)
    assert str(path) in str(done.exception)


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "empty.jsonl", "empty.csv"])
def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("empty"):
        path.touch()
    done = runner.invoke(app, ["replay", str(path), "--requests", "5", "--gpu", "h200"])
    assert isinstance(done.exception, DataError)
    assert str(path) in str(done.exception)
    assert "empty" in str(done.exception) or "no such file" in str(done.exception)


def test_a_plan_takes_no_options_of_a_trace(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    printed(*FEW, "--plan", str(plan))
    for given in (("--for", "3s"), ("--input-column", "x"), ("--all-at-once",)):
        done = runner.invoke(app, ["replay", str(plan), *given])
        assert isinstance(done.exception, UsageError)
        assert given[0] in str(done.exception)


def test_tasks_and_first_requests_are_replayed_as_they_are_estimated() -> None:
    for source in ("task:classification", "azure-conv-2023"):
        asked = (source, "--requests", "30", "--all-at-once", "--gpu", "h200")
        (estimated,) = printed("estimate", *asked)["estimates"]
        replayed = printed("replay", *asked)["predicted"]
        assert replayed["energy_j"] == pytest.approx(estimated["offline"]["energy_j"], rel=0.02)


def test_longer_requests_are_left_out_when_asked(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    found = printed(*TIMED, "--max-tokens", "2000", "--plan", str(plan))
    (cell,) = Plan.load(plan).cells
    assert max(map(sum, cell.lengths)) <= 2000
    assert 2 <= found["requests"] < printed(*TIMED)["requests"]
    assert cell.arrival_s[0] == 0


@pytest.mark.parametrize("options", [(), ("--all-at-once",)], ids=["timed", "all at once"])
def test_a_part_of_a_log_out_of_order_is_the_one_that_estimates_take(tmp_path: Path, options: tuple[str, ...]) -> None:
    log, plan = tmp_path / "log.csv", tmp_path / "plan.json"
    log.write_text("arrival_s,input_tokens,output_tokens\n30,3,3\n0,1,1\n20,2,2\n40,4,4\n10,5,5\n", encoding="utf-8")
    asked = (str(log), "--from", "15s", "--requests", "2", "--gpu", "h200", *options)
    printed("replay", *asked, "--plan", str(plan))
    (cell,) = Plan.load(plan).cells
    assert cell.lengths == ((2, 2), (3, 3))
    assert cell.cell.load.arrivals is not None
    assert cell.cell.load.arrivals.first == 2
    assert printed("estimate", *asked)["trace"]["output_tokens"] == 5


def test_one_request_and_a_histogram_are_no_replay(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,100,10\n1,100,12\n", encoding="utf-8")
    with raises("too-few-requests", found=1):
        runner.invoke(app, ["replay", str(path), "--requests", "1"], catch_exceptions=False, standalone_mode=False)


@pytest.mark.parametrize("options", [("-e", "vllm-fp8"), ("--simulate",), ("--requests", "3"), ("--max-num-seqs", "8")])
def test_options_that_say_nothing_of_rows_are_rejected(tmp_path: Path, options: tuple[str, ...]) -> None:
    store = tmp_path / "rows.jsonl"
    printed(*FEW, "--simulate", "-o", str(store))
    error = runner.invoke(app, ["replay", str(store), *options]).exception
    assert isinstance(error, UsageError)
    assert (error.code, error.fields["path"]) == ("option-not-applicable", str(store))
    assert "SIMULATED" in runner.invoke(app, ["replay", str(store)]).stdout


def test_vllm_is_its_server_unless_the_class_is_asked_for(tmp_path: Path) -> None:
    contexts = []
    for options in ((), ("-e", "vllm"), ("-e", "vllm-server"), ("--usage-context", "llm")):
        plan = tmp_path / "plan.json"
        printed(*FEW, *options, "--plan", str(plan))
        contexts.append(Plan.load(plan).cells[0].cell.setup.usage_context)
    assert contexts == ["server", "server", "server", "llm"]


def test_a_static_batch_without_a_bound_is_of_all_requests_in_the_prediction_too() -> None:
    asked = ("replay", "task:translation", "--requests", "60", "-e", "transformers", "--gpu", "h200")
    free, bound, small = (
        printed(*asked, *more)["predicted"] for more in ((), *(("--max-num-seqs", k) for k in ("60", "32")))
    )
    assert free == bound
    assert free["duration_s"] < small["duration_s"]


@pytest.mark.parametrize(("gpu", "size"), [("h200", 32), ("l4", 1)])
def test_static_batches_that_fit_are_named_where_all_requests_do_not(gpu: str, size: int) -> None:
    asked = ["replay", "azure-code-2023", "--requests", "400", "--all-at-once", "-e", "transformers", "--gpu", gpu]
    with raises("does-not-fit", gpu=gpu) as caught:
        runner.invoke(app, asked, catch_exceptions=False, standalone_mode=False)
    assert f"--max-num-seqs {size}," in str(caught.value)
    assert runner.invoke(app, [*asked, "--max-num-seqs", str(size)]).exit_code == 0


def test_fp8_on_a_gpu_without_units_for_it_is_predicted_as_estimated() -> None:
    gpu = ("-g", "a100-80gb-sxm", "-e", "vllm-fp8")
    replayed = printed("replay", "azure-code-2023", "--requests", "20", *gpu)
    predicted = replayed["predicted"]
    assert any("W8A16" in note for note in replayed["notes"])
    asked = ["estimate", "azure-code-2023", "--requests", "20", *gpu, "--no-enable-prefix-caching", "--json"]
    estimated = json.loads(runner.invoke(app, asked).stdout)["estimates"][0]
    text = runner.invoke(app, ["replay", "azure-code-2023", "--requests", "20", *gpu, "-e", "vllm-fp8-s16"]).stdout
    assert text.count("W8A16") == 1
    # Arrival times of plans are whole microseconds.
    for name in ("energy_j", "low_j", "high_j", "duration_s"):
        assert predicted[name] == pytest.approx(estimated["served"][name], rel=1e-6)


def test_what_a_replay_leaves_out_of_a_log_is_named(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": float(at), "input_tokens": 50, "cached_tokens": 16 * at, "output_tokens": 9} for at in range(3)
    ]
    log = tmp_path / "cached.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["replay", str(log)], catch_exceptions=False)
    assert "left out, of the prediction too: cached tokens" in done.stderr
    done = CliRunner().invoke(app, ["replay", "azure-code-2023", "--requests", "5"], catch_exceptions=False)
    assert "left out, of" not in done.stderr


REPLICAS = ("replay", "azure-conv-2023", "--from", "25m", "--for", "10s", "--speed", "3", "--gpu", "h200")


def test_replicas_take_turns_and_are_predicted_as_estimate_does(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    both = printed(*REPLICAS, "--replicas", "2", "--simulate", "-o", str(store))
    asked = ("azure-conv-2023", "--from", "25m", "--for", "10s", "--speed", "3", "--gpu", "h200", "--replicas", "2")
    estimate = printed("estimate", *asked)["estimates"][0]["served"]
    rows = read_store(store).rows
    assert sorted(row.cell.load.arrivals.label[-4:] for row in rows if row.cell.load.arrivals) == ["#1/2", "#2/2"]
    assert sum(row.cell.load.batch for row in rows) == both["requests"]
    assert both["predicted"]["energy_j"] == pytest.approx(estimate["energy_j"], rel=1e-6)
    figures = {one["name"]: one["measured"] for one in both["compared"]}
    energies, durations = ([getattr(result_of(row), name) for row in rows] for name in ("energy_j", "duration_s"))
    idle_w = [sum(row.loaded_idle.power_by_gpu_w.values()) for row in rows if row.loaded_idle is not None]
    waited_j = sum(watts * (max(durations) - took_s) for watts, took_s in zip(idle_w, durations, strict=True))
    assert figures["energy_j"] == pytest.approx(sum(energies) + waited_j)
    assert figures["duration_s"] == max(durations)
    assert sorted(tmp_path.glob("*.jsonl")) == [store], "the replicas' own stores are joined"
    assert printed("replay", str(store)) == both
    again = printed(*REPLICAS, "--replicas", "2", "--simulate", "-o", str(store))
    assert again == both, "the same command measures nothing again"


def test_a_replica_whose_others_are_missing_is_not_compared(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    printed(*REPLICAS, "--replicas", "2", "--simulate", "-o", str(store))
    first = tmp_path / "first.jsonl"
    first.write_text(store.read_text(encoding="utf-8").splitlines(keepends=True)[0], encoding="utf-8")
    done = runner.invoke(app, ["replay", str(first)])
    assert isinstance(done.exception, UsageError)
    assert done.exception.code == "no-rows"


def test_sessions_with_gaps_are_replayed_on_one_replica(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    turns = [{"session_id": "s", "pre_gap": 1.5 * turn, "input_length": 100, "output_length": 30} for turn in range(3)]
    log.write_text("".join(f"{json.dumps(one)}\n" for one in turns), encoding="utf-8")
    done = runner.invoke(app, ["replay", str(log), "--gpu", "h200", "--replicas", "2"])
    assert isinstance(done.exception, UsageError)
    assert done.exception.fields["option"] == "--replicas"
