"""Files of nonsense, as commands meet them: an error of usage that names the file, never an answer or a traceback."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fuzzing import BY_HAND, CSV, DEEP, GPU, GRID, HUGE, parquet_bytes, plan_text, rows_text
from infergy.catalog.models import model_config
from infergy.cli import main
from infergy.records.store import shipped_store

LONG = "9" * 5000
Change = Callable[[dict[str, Any]], object]


def run(*words: str) -> tuple[int, str, dict[str, Any]]:
    """A command with ``--json``: its status, what it printed, and its error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), patch("sys.argv", ["infergy", *words, "--json"]):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return code, out.getvalue(), json.loads(err.getvalue().splitlines()[-1])["error"] if code else {}


def rejected(path: Path, content: str | bytes, *words: str) -> str:
    """The code of the error with which a command on a file ends; its message names the file and is short."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    code, out, error = run(*(str(path) if word == "FILE" else word for word in words))
    assert code == 2, out
    # A model goes by the name of its folder.
    assert path.name in error["message"] or path.parent.name in error["message"]
    assert len(error["message"]) < 1500
    return str(error["code"])


def changed(text: str | bytes, change: Change) -> str:
    data = json.loads(text.splitlines()[0])
    change(data)
    return json.dumps(data)


def window(row: dict[str, Any]) -> dict[str, Any]:
    return dict(row["windows"][0])


def close(row: dict[str, Any]) -> dict[str, Any]:
    (tick,) = row["windows"][0]["close"].values()
    assert isinstance(tick, dict)
    return tick


def batch(row: dict[str, Any]) -> dict[str, Any]:
    found = row["windows"][0]["batches"][0]
    assert isinstance(found, dict)
    return found


ROWS: dict[str, Change] = {
    "an integer of 400 digits": lambda row: row.update(warmup_s=int(HUGE)),
    "not a number": lambda row: row.update(warmup_s=float("nan")),
    "endless watts": lambda row: row["timeline"][0]["power_w"].__setitem__(1, float("inf")),
    "a timeline of unlike lengths": lambda row: row["timeline"][0]["power_w"].pop(),
    "a timeline that goes back": lambda row: row["timeline"][0]["offsets_ms"].reverse(),
    "no requests": lambda row: batch(row).update(requests=0),
    "less than no requests": lambda row: batch(row).update(requests=-8),
    "no tokens": lambda row: batch(row).update(output_tokens=0),
    "other tokens than the cell's": lambda row: batch(row).update(output_tokens=batch(row)["output_tokens"] + 1),
    "times of two requests": lambda row: batch(row).update(times={"first_token_s": [0.1] * 2, "finished_s": [0.2] * 2}),
    "an edge of another GPU": lambda row: row["windows"][0].update(close={"GPU-x": close(row)}),
    "a batch that ends at 1e300 s": lambda row: batch(row).update(end_s=1e300),
    "a batch after its window": lambda row: batch(row).update(end_s=batch(row)["end_s"] + 1e4),
    "a batch that ends when it begins": lambda row: batch(row).update(end_s=batch(row)["start_s"]),
    "no idle power": lambda row: row.update(loaded_idle=None),
    "1.7e308 J": lambda row: close(row).update(energy_j=1.7e308),
    "over twice the power limit": lambda row: close(row).update(energy_j=close(row)["energy_j"] + 1e5),
    "a batch unlike the cell's": lambda row: row["cell"]["load"].update(batch=800),
    "an id of another cell": lambda row: row.update(cell_id="0" * 12),
    "no instant": lambda row: row.update(measured_utc="yesterday"),
    "a status of its own": lambda row: row.update(status="fine"),
    "a bare GPU's energy falls": lambda row: next(iter(row["bare_idle"]["close"].values())).update(energy_j=0.0),
}


def row_with_timeline() -> str:
    lines = (line for line in shipped_store("h100-sxm").read_text(encoding="utf-8").splitlines())
    return next(
        line for line in lines if '"arrivals":null' in line and '"timeline":[{' in line and '"settled":{"' in line
    )


@pytest.mark.parametrize("name", ROWS)
def test_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    content = changed(row_with_timeline(), ROWS[name]) + "\n"
    codes = {
        rejected(path, content, *words.split())
        for words in (
            "check FILE",
            f"compare {shipped_store()} FILE",
            f"table build FILE -o {tmp_path}/t.jsonl",
            "estimate azure-code-2023 -t FILE --requests 5",
        )
    }
    assert codes <= {"bad-row", "bad-field"}


@pytest.mark.parametrize("text", [DEEP, LONG, f'{{"schema": {HUGE}}}', "[]", "{}", "\x00", "infergy\n"])
def test_what_is_no_row_is_rejected_or_set_aside(tmp_path: Path, text: str) -> None:
    assert rejected(tmp_path / "rows.jsonl", f"{text}\n", "check", "FILE") in (
        "bad-syntax",
        "wrong-schema",
        "bad-field",
    )


def test_a_compressed_bomb_and_a_device_are_not_read_whole(tmp_path: Path) -> None:
    packed = gzip.compress(b"\n" * 150_000_000, 9)
    assert rejected(tmp_path / "rows.jsonl.gz", packed, "check", "FILE") == "file-not-readable"
    for begin in (b"", b"input_tokens,output_tokens\n", b'{"input_tokens": "'):
        packed = gzip.compress(begin + b"5" * 150_000_000, 9)
        assert rejected(tmp_path / "log.csv.gz", packed, "trace", "FILE") == "file-not-readable"
    for verb in ("check /dev/zero", "trace /dev/zero", "estimate azure-code-2023 -t /dev/zero"):
        code, _, error = run(*verb.split())
        assert (code, error["code"]) == (2, "file-not-readable")


HISTOGRAM = {
    "source": "x",
    "bins": {"name": "custom", "input_edges": [32], "output_edges": [8]},
    "counts": [
        {
            "bin": {"input_tokens": 32, "output_tokens": 8, "input_floor": 0, "output_floor": 0},
            "requests": 10,
            "input_tokens": 200,
            "output_tokens": 50,
        }
    ],
    "schema": "infergy.histogram/1",
}
COUNTS: dict[str, Change] = {
    "less than no requests": lambda one: one["counts"][0].update(requests=-10),
    "no requests": lambda one: one["counts"][0].update(requests=0),
    "less than no tokens": lambda one: one["counts"][0].update(input_tokens=-200),
    "a corner of 0": lambda one: one["counts"][0]["bin"].update(input_tokens=0),
    "a corner of 400 digits": lambda one: one["counts"][0]["bin"].update(input_tokens=int(HUGE)),
    "a sum of another type": lambda one: one.update(requests="10"),
    "a mean over its corner": lambda one: one["counts"][0].update(input_tokens=10**9),
}


@pytest.mark.parametrize("verb", ["estimate FILE", "recommend FILE", "trace FILE --bins paper", "breakdown FILE"])
@pytest.mark.parametrize("name", COUNTS)
def test_histograms(tmp_path: Path, name: str, verb: str) -> None:
    content = changed(json.dumps(HISTOGRAM), COUNTS[name])
    assert rejected(tmp_path / "h.json", content, *verb.split()) in ("bad-row", "bad-field")


@pytest.mark.parametrize("text", [DEEP, f'{{"source": {DEEP}}}', LONG, f'{{"source": {LONG}}}'])
def test_what_is_no_histogram(tmp_path: Path, text: str) -> None:
    assert rejected(tmp_path / "h.json", text, "estimate", "FILE")


@pytest.mark.parametrize("value", [HUGE, LONG, f"{DEEP}", "nan", "inf", "-1", '"x"', "{ a = 1 }", "0"])
@pytest.mark.parametrize(
    ("content", "key", "verb"),
    [
        (GPU, "tdp_w", "list gpus FILE"),
        (BY_HAND, "hidden", "list models FILE"),
        (GRID, "max_batch_s", "measure FILE --dry-run"),
    ],
)
def test_toml(tmp_path: Path, content: bytes, key: str, verb: str, value: str) -> None:
    lines = [f"{key} = {value}" if line.startswith(f"{key} ") else line for line in content.decode().splitlines()]
    assert rejected(tmp_path / "some.toml", "\n".join(lines), *verb.split())


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", HUGE), ("hidden_size", LONG), ("hidden_size", "-1"), ("rope_theta", "NaN"), ("vocab_size", DEEP)],
)
@pytest.mark.parametrize(
    "verb", ["list models FILE", "measure -e vllm --input 64 --output 8 --batch 1 --model FILE --dry-run"]
)
def test_models(tmp_path: Path, key: str, value: str, verb: str) -> None:
    config = model_config("llama-3.1-8b") | {key: "VALUE"}
    assert rejected(tmp_path / "config.json", json.dumps(config).replace('"VALUE"', value), *verb.split())


@pytest.mark.parametrize("name", ["9" * 300, "9" * 300 + ".json", "x/" * 3000 + "config.json", "nul\x01", ""])
def test_names_of_models(name: str) -> None:
    code, _, error = run("list", "models", name)
    assert code == 2
    assert len(error["message"]) < 4001


PLANS: dict[str, Change] = {
    "a target of -1": lambda plan: plan["options"].update(target=-1),
    "a target of 1": lambda plan: plan["options"].update(target=1.0),
    "no target": lambda plan: plan["options"].update(target=float("nan")),
    "time that goes back": lambda plan: plan["options"].update(max_time_s=-1.0),
    "endless time": lambda plan: plan["options"].update(max_time_s=float("inf")),
    "a seed of -1": lambda plan: plan["options"].update(seed=-1),
    "an unknown type of numbers": lambda plan: plan["cells"][0]["cell"]["setup"].update(dtype="x"),
    "no windows": lambda plan: plan["options"].update(min_window_s=0.0),
    "no visits": lambda plan: plan["options"].update(repeats=0),
    "a forecast below 0": lambda plan: plan["cells"][0].update(forecast_batch_s=-1.0),
    "no batch": lambda plan: plan["cells"][0]["cell"]["load"].update(batch=0),
    "a batch of 10^15": lambda plan: plan["cells"][0]["cell"]["load"].update(batch=10**15),
    "arrivals of an offline cell": lambda plan: plan["cells"][0].update(arrival_s=[0.0, 1.0]),
    "lengths of an offline cell": lambda plan: plan["cells"][0].update(lengths=[[1, 1, 1]]),
    "an unknown key": lambda plan: plan.update(colour="red"),
    "no model": lambda plan: plan.update(models={}),
    "no cells": lambda plan: plan.update(cells=[]),
    "an unknown engine": lambda plan: plan["cells"][0]["cell"]["setup"].update(engine="x"),
    "an unknown GPU": lambda plan: plan.update(gpu="x"),
    "a model that is none": lambda plan: plan["models"].update({"llama-3.1-8b": 3}),
}


@pytest.mark.parametrize("verb", ["measure FILE --dry-run", "measure FILE --simulate -o ROWS"])
@pytest.mark.parametrize("name", PLANS)
def test_plans(tmp_path: Path, name: str, verb: str) -> None:
    words = [str(tmp_path / "rows.jsonl") if word == "ROWS" else word for word in verb.split()]
    path = tmp_path / "plan.json"
    path.write_text(changed(plan_text(), PLANS[name]), encoding="utf-8")
    code, out, error = run(*(str(path) if word == "FILE" else word for word in words))
    assert code == 2, out
    assert error["message"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", b"arrival_s,input_tokens,output_tokens\n1e300,5,5\n1,5,5\n"),
        ("log.csv", b"input_tokens,output_tokens\n5,5\n-7,5\nx,5\n"),
        ("log.csv", b"input_tokens,output_tokens\n4294967296,5\n5,5\n"),
        ("log.csv", b"input_tokens,output_tokens\n" + HUGE.encode() + b",5\n"),
        ("log.jsonl", b'{"input_tokens": ' + DEEP.encode() + b', "output_tokens": 5}\n'),
        ("log.parquet", parquet_bytes()[:100]),
        ("log.parquet", parquet_bytes()[:30] + b"\xff" * 200 + parquet_bytes()[230:]),
        ("log.csv", CSV[:2] + b"\0" + CSV[2:]),
    ],
    ids=["1e300 s", "below 0", "2^32", "400 digits", "deep", "cut", "damaged", "zero byte"],
)
@pytest.mark.parametrize("verb", ["trace FILE", "estimate FILE", "replay FILE --requests 2 --gpu h200"])
def test_traces(tmp_path: Path, name: str, content: bytes, verb: str) -> None:
    assert rejected(tmp_path / name, content, *verb.split())


def test_arrivals_that_are_no_times_leave_the_summary_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n1,5,5\ninf,5,5\n", encoding="utf-8")
    code, out, _ = run("trace", str(path))
    assert code == 0
    assert "Infinity" not in out
    json.loads(out)


def test_good_files_of_each_kind_are_read(tmp_path: Path) -> None:
    for name, content, verb in (
        ("rows.jsonl", rows_text(), "check"),
        ("gpu.toml", GPU, "list gpus"),
        ("model.toml", BY_HAND, "list models"),
        ("plan.json", plan_text(), "measure --dry-run"),
        ("log.parquet", parquet_bytes(), "trace"),
        ("h.json", json.dumps(HISTOGRAM).encode(), "trace"),
    ):
        (tmp_path / name).write_bytes(content)
        assert run(*verb.split(), str(tmp_path / name))[0] == 0, name
