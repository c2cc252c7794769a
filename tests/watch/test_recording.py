"""What a watch records, read as requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infergy.errors import DataError
from infergy.estimates.estimate import estimate
from infergy.watch.record import recorded_line
from infergy.workload import open_trace
from infergy.workload.recording import RECORDING_SCHEMA, draw_recorded
from watched import INPUT, OUTPUT, Server, node_of, silent, watch_of

pytest.importorskip("prometheus_client")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A minute of a server that restarts after half of it."""
    node = node_of()
    server, path = Server(node), tmp_path / "load.jsonl"
    watch = watch_of(server)
    with path.open("w", encoding="utf-8") as file:
        for second in range(60):
            node.sleep(max(0.0, second - node.now_s()))
            server.begun_s = 30.5 if second > 30 else 0.0
            watch.refresh()
            if second:
                file.write(recorded_line([*watch.readings][-2:], 1.8e9 + second) + "\n")
    return path


def test_its_sums_are_those_of_the_server_and_the_counter(recording: Path) -> None:
    lines = [json.loads(line) for line in recording.read_text(encoding="utf-8").splitlines()]
    assert {line["schema"] for line in lines} == {RECORDING_SCHEMA}
    first, last = (sum(lines[index]["counter_j"].values()) for index in (0, -1))
    assert sum(sum(line["energy_by_gpu_j"].values()) for line in lines[1:]) == pytest.approx(last - first, rel=1e-6)
    # Ten seconds are of the gap and of half a second before it.
    assert sum(line["tokens"].get("output_tokens", 0) for line in lines) == pytest.approx(57_500, rel=0.02)
    assert [line["gap"] is not None for line in lines].count(True) == 1


@pytest.mark.parametrize(("may_run_on", "seconds"), [(True, 20), (False, 18)])
def test_what_came_while_the_server_was_slow_is_in_the_next_line(may_run_on: bool, seconds: int) -> None:
    node = node_of()
    server, lines = Server(node), []
    watch = watch_of(server)
    for second in range(21):
        node.sleep(max(0.0, second - node.now_s()))
        server.faults = [silent(may_run_on=may_run_on)] if second == 10 else []
        watch.refresh()
        if second:
            *before, first, last = watch.readings
            lines.append(json.loads(recorded_line((first, last), 1.8e9 + second, before)))
    assert sum(line["tokens"].get("output_tokens", 0) for line in lines) == pytest.approx(1000 * seconds, rel=0.02)
    assert sum(line["lengths"].get("output", {"tokens": 0})["tokens"] for line in lines) == pytest.approx(
        1000 * seconds, rel=0.03
    )
    assert [line["gap"] is not None for line in lines].count(True) == 1 + (not may_run_on)
    assert sum(sum(line["energy_by_gpu_j"].values()) for line in lines) == pytest.approx(300 * 20, rel=0.02)


def test_requests_have_the_lengths_and_the_rate_of_the_server(recording: Path) -> None:
    requests = open_trace(recording).requests()
    assert requests.rate_per_s == pytest.approx(1000 / OUTPUT, rel=0.1)
    assert requests.input_tokens.mean() == pytest.approx(INPUT, rel=0.01)
    assert requests.output_tokens.mean() == pytest.approx(OUTPUT, rel=0.01)
    assert (requests.input_tokens > 500).all()
    assert (requests.input_tokens <= 1000).all()
    assert (requests.output_tokens <= 200).all()
    assert requests.lengths_from is not None
    assert "histograms" in requests.lengths_from


def test_it_is_drawn_alike_each_time(recording: Path) -> None:
    first, second = (open_trace(recording).requests() for _ in range(2))
    assert first.input_tokens.tolist() == second.input_tokens.tolist()


def test_a_line_that_was_cut_is_left_out_and_counted(recording: Path) -> None:
    whole = len(open_trace(recording).requests())
    text = recording.read_text(encoding="utf-8")
    recording.write_text(text + '{"schema": "infergy.recording/1", "time_un\n[]\n{"lengths": 3}\n', encoding="utf-8")
    requests = open_trace(recording).requests()
    assert len(requests) == whole
    assert requests.lengths_from is not None
    assert "3 lines cut" in requests.lengths_from


def test_an_estimate_reads_it(recording: Path) -> None:
    answer = estimate(str(recording))
    assert answer.trace.lengths_from is not None
    assert answer.estimates[0].served is not None


def test_a_recording_without_lengths_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    line = {
        "schema": RECORDING_SCHEMA,
        "time_unix_s": 1.0,
        "seconds": 1.0,
        "tokens": {"output_tokens": 5},
        "lengths": {},
    }
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        open_trace(path).requests()
    assert caught.value.code == "no-requests"


@pytest.mark.parametrize("counts", [[10**12], [-5], [1.5], ["x"], [float("nan")]])
def test_impossible_counts_are_left_out(tmp_path: Path, counts: list[object]) -> None:
    path = tmp_path / "load.jsonl"
    good, bad = ({"ends": [[0, 10]], "counts": own, "tokens": 30} for own in ([4], counts))
    line = {"schema": RECORDING_SCHEMA, "time_unix_s": 1.0, "seconds": 1.0, "tokens": {}}
    lines = [json.dumps(line | {"lengths": {"input": one, "output": good}}) for one in (good, bad)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(open_trace(path).requests()) <= 5


def line(**changed: object) -> str:
    """A line of a recording, of three requests."""
    axis = {"ends": [[0, 100]], "counts": [3], "tokens": 150}
    record = {
        "schema": RECORDING_SCHEMA,
        "time_unix_s": 1.8e9,
        "seconds": 1.0,
        "tokens": {"cached_tokens": 5},
        "lengths": {"input": axis, "output": axis},
    }
    return json.dumps(record | changed)


def test_cached_tokens_of_unknown_prompts_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    path.write_text(line() + "\n", encoding="utf-8")
    assert open_trace(path).requests().cached_tokens is None


@pytest.mark.parametrize(
    "changed",
    [
        {"time_unix_s": float("inf")},
        {"lengths": {axis: {"ends": [[0, 1e300]], "counts": [3], "tokens": 9} for axis in ("input", "output")}},
    ],
)
def test_impossible_times_and_lengths_are_left_out(changed: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    path.write_text(line() + "\n" + line(**changed) + "\n", encoding="utf-8")
    assert len(open_trace(path).requests()) == 3


def test_sums_that_contradict_their_histograms_are_named(tmp_path: Path) -> None:
    path, axis = tmp_path / "load.jsonl", {"ends": [[0, 100]], "counts": [3], "tokens": 9000}
    path.write_text(line(lengths={"input": axis, "output": axis}) + "\n", encoding="utf-8")
    _, words = draw_recorded(path)
    assert "contradict" in words
