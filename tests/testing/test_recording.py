"""Recording readings and playing them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infergy.measure.cell import measure_idle
from infergy.meters import next_tick
from infergy.meters.simulated import SimulatedGpu, SimulatedMeter
from infergy.records import GpuIdentity
from infergy.testing import METER_RULES, FakeClock, RecordingMeter, ReplayMeter, check_meter, record
from raising import raises


def open_simulated() -> SimulatedMeter:
    return SimulatedMeter(SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=150.0))


def test_a_replay_stands_where_the_recording_stood() -> None:
    meter = ReplayMeter([(10.0, {"a": 1.0}), (10.5, {"a": 60.0}), (12.0, {"a": 200.0})])
    assert meter.read() == {"a": 1.0}
    meter.clock.sleep(0.49)
    assert meter.read() == {"a": 1.0}
    meter.clock.sleep(0.02)
    assert meter.read() == {"a": 60.0}
    assert [gpu.uuid for gpu in meter.gpus] == ["a"]
    assert meter.is_simulated


def test_a_replay_knows_no_joules_beyond_its_recording() -> None:
    meter = ReplayMeter([(10.0, {"a": 1.0}), (12.0, {"a": 200.0})])
    meter.clock.sleep(2.5)
    with raises("recording-ended", now_s=12.5, expected=[10.0, 12.0]):
        meter.read()


def test_what_is_recorded_is_replayed_tick_by_tick(tmp_path: Path) -> None:
    path = tmp_path / "idle.jsonl"
    record(open_simulated(), path, seconds=5.0)
    lines = path.read_text().splitlines()
    assert len(lines) == pytest.approx(1 + 50, abs=3)
    truth, replay = open_simulated(), ReplayMeter.load(path)
    for _ in range(10):
        expected, got = next_tick(truth).ticks["GPU-a"], next_tick(replay).ticks["GPU-a"]
        assert got.energy_j == expected.energy_j
        assert got.time_s == pytest.approx(expected.time_s, abs=0.002)
    window = measure_idle(ReplayMeter.load(path), 2.0)
    joules = window.close["GPU-a"].energy_j - window.open["GPU-a"].energy_j
    seconds = window.close["GPU-a"].time_s - window.open["GPU-a"].time_s
    assert joules / seconds == pytest.approx(150.0, rel=0.01)


def test_the_replay_and_the_recording_meter_keep_every_rule(tmp_path: Path) -> None:
    path = tmp_path / "idle.jsonl"
    record(open_simulated(), path, seconds=5.0)
    assert check_meter(lambda: ReplayMeter.load(path)) == tuple(METER_RULES)
    other = tmp_path / "other.jsonl"
    assert check_meter(lambda: RecordingMeter(open_simulated(), other)) == tuple(METER_RULES)


def test_a_recording_says_what_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record(open_simulated(), path, seconds=0.3)
    head = json.loads(path.read_text().splitlines()[0])
    assert (head["meter"], head["scope"]) == ("simulated", "gpu-board")
    assert ReplayMeter.load(path).gpus == (GpuIdentity(uuid="GPU-a", name="simulated"),)


def test_a_recording_without_a_reading_is_closed_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    RecordingMeter(open_simulated(), path).close()
    with raises("bad-recording", readings=0):
        ReplayMeter.load(path)


@pytest.mark.parametrize(
    ("readings", "fields"),
    [
        ([(0.0, {"a": 1.0})], {"readings": 1}),
        ([(1.0, {"a": 1.0}), (1.0, {"a": 2.0})], {"reading": 2, "time_s": 1.0}),
        ([(1.0, {"a": 1.0}), (2.0, {"b": 2.0})], {"reading": 2, "uuids": ["b"], "expected": ["a"]}),
        ([(1.0, {"a": 1.0}), (2.0, {"a": None})], {"reading": 2, "energy_j": {"a": None}}),
        ([(1.0, {"a": float("nan")}), (2.0, {"a": 2.0})], {"reading": 1}),
    ],
)
def test_readings_that_cannot_be_are_rejected(readings: Any, fields: dict[str, object]) -> None:
    with raises("bad-recording", **fields):
        ReplayMeter(readings)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad-recording"),
        ("no json", "bad-syntax"),
        ('{"schema": "infergy.recording/1"}', "bad-recording"),
        ("[1]", "bad-recording"),
    ],
)
def test_a_file_that_is_no_recording_is_named(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with raises(code, path=path):
        ReplayMeter.load(path)
    path.write_text('{"schema": "other"}')
    with raises("wrong-schema", path=path, found="other"):
        ReplayMeter.load(path)


def test_the_fake_clock_moves_only_when_asked_and_never_back() -> None:
    clock = FakeClock(5.0, pause_s=0.25)
    assert clock.now_s() == clock.now_s() == 5.0
    clock.sleep(2.0)
    clock.pause()
    assert clock.now_s() == 7.25
    with pytest.raises(ValueError, match="never goes back"):
        clock.sleep(-1.0)
    with pytest.raises(ValueError, match="would never end"):
        FakeClock(pause_s=0.0)
