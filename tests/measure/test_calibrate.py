"""A calibration as it runs: windows on disk one by one, budgets, failures; on a simulated GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from infergy.catalog.gpus import get_gpu
from infergy.cli.schemas import make_schema
from infergy.engines import EngineOutOfMemoryError
from infergy.errors import EngineError, GpuLostError, MeterError
from infergy.measure.calibrate import CalibrationEvent, calibrate
from infergy.measure.calibration_work import (
    SimulatedBench,
    SimulatedWork,
    Traits,
    draw_truth,
    make_works,
    needed_bytes,
    shrink,
)
from infergy.meters import Meter
from infergy.meters.simulated import SimulatedMeter, SimulatedNode, pretend_node
from infergy.records import GpuState
from infergy.records.calibration import ATTENTION, COPY, PRODUCT, Workload, read_calibration_file
from raising import raises

H200 = Traits(memory_bytes=150_000_000_000, l2_bytes=60 * 2**20, has_fp8=True)


class BrokenBench(SimulatedBench):
    """Fails as it is told to, by the workload's name."""

    def __init__(self, node: SimulatedNode, failures: Mapping[str, Exception]) -> None:
        super().__init__(node, get_gpu("h200"), draw_truth(0))
        self.failures = failures
        self.loaded: list[str] = []

    def load(self, work: Workload) -> SimulatedWork:
        self.loaded.append(work.name)
        for part, error in self.failures.items():
            if part in work.name:
                raise error
        return super().load(work)


class BrokenMeter(SimulatedMeter):
    """Its counter fails from some window on."""

    def __init__(self, node: SimulatedNode, error: Exception, after: int) -> None:
        super().__init__(node)
        self.error, self.left = error, after

    def states(self) -> tuple[GpuState, ...]:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().states()


def broken_bench(failures: Mapping[str, Exception] | None = None) -> tuple[Meter, Callable[[], BrokenBench]]:
    node = pretend_node(get_gpu("h200"), 1)
    return SimulatedMeter(node), lambda: BrokenBench(node, failures or {})


def run(
    path: Path, meter: Meter, open_bench: Callable[[], SimulatedBench], budget_s: float = 600.0
) -> list[CalibrationEvent]:
    return list(calibrate(meter, open_bench, path, budget_s=budget_s))


def names(path: Path) -> list[str]:
    return [one.workload.name for one in read_calibration_file(path)]


def test_each_window_is_a_line_that_follows_the_schema_and_says_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    events = run(path, *broken_bench())
    lines = path.read_text().splitlines()
    assert len(lines) == len([event for event in events if event.window is not None])
    for line in lines:
        Draft202012Validator(make_schema("calibration-window")).validate(json.loads(line))
    found = read_calibration_file(path)
    assert [one.workload.name for one in found] == [
        event.window.workload.name for event in events if event.window is not None
    ]
    assert found[0].workload.name == "idle"
    assert {one.workload.kind for one in found} == {"idle", "copy", "product", "attention", "launch"}
    assert {one.workload.dtype for one in found} == {"bfloat16", "fp8"}
    for one in found:
        assert one.is_whole
        assert one.duration_s == pytest.approx(3.0, rel=0.05)
        assert one.during
        assert len(one.energy_by_gpu_j) == one.workload.gpus
        assert one.doubts == ()


def test_the_same_call_goes_on_where_the_last_one_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    events = calibrate(*broken_bench(), path, budget_s=600)
    whole = 0
    for event in events:
        whole += event.window is not None
        if whole == 5:
            break
    events.close()  # type: ignore[attr-defined]
    kept = path.read_bytes()
    assert len(names(path)) == 5
    path.write_bytes(kept + b'{"schema": "infergy.calib')
    assert len(names(path)) == 5
    told = run(path, *broken_bench())
    assert any("5 windows are in" in event.text for event in told)
    assert path.read_bytes().startswith(kept)
    assert len(set(names(path))) == len(names(path))
    before = path.read_bytes()
    assert not any(event.window for event in run(path, *broken_bench()))
    assert path.read_bytes() == before


def test_a_small_budget_has_the_most_telling_windows_and_names_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    events = run(path, *broken_bench(), budget_s=60)
    kinds = {(one.workload.kind, one.workload.dtype) for one in read_calibration_file(path)}
    telling = {(COPY, "bfloat16"), (PRODUCT, "bfloat16"), (PRODUCT, "fp8"), (ATTENTION, "bfloat16")}
    assert telling <= kinds
    assert "the budget leaves no time for" in events[-1].text
    assert set(events[-1].dropped) | set(names(path)) == {"idle", *(one.name for one in make_works(H200))}
    assert not set(events[-1].dropped) & set(names(path))
    run(path, *broken_bench())
    assert set(events[-1].dropped) <= set(names(path))


def test_a_budget_for_nothing_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with raises("bad-value", option="--budget", value=5):
        run(tmp_path / "h200.jsonl", *broken_bench(), budget_s=5)
    assert list(tmp_path.iterdir()) == []


def test_where_memory_is_short_the_other_workloads_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    short = {"product 16": EngineOutOfMemoryError("no room", is_usable=True)}
    events = run(path, *broken_bench(short))
    failed = [event for event in events if event.window is not None and not event.window.is_whole]
    assert len(failed) > 3
    assert failed[0].text == "product 16 x 8192 x 28672 bfloat16: no window: no room"
    assert len([one for one in read_calibration_file(path) if one.is_whole]) > 20


def test_work_that_fails_is_told_in_the_file_and_tried_again_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    run(path, *broken_bench({"attention": EngineError("no kernel does it")}))
    failed = [one for one in read_calibration_file(path) if not one.is_whole]
    assert {one.workload.kind for one in failed} == {ATTENTION}
    assert {one.reason for one in failed} == {"no kernel does it"}
    run(path, *broken_bench())
    assert {one.workload.name for one in read_calibration_file(path) if one.is_whole} >= {
        one.workload.name for one in failed
    }


def test_several_failures_in_a_row_end_it_with_the_reason(tmp_path: Path) -> None:
    with raises("calibration-failed", failures=3, reason="CUDA is gone"):
        run(tmp_path / "h200.jsonl", *broken_bench({"": EngineError("CUDA is gone")}))


@pytest.mark.parametrize(
    ("error", "code", "fields"),
    [
        (MeterError("did not move in 3 s"), "calibration-failed", {"failures": 2}),
        (GpuLostError("fell off the bus"), "gpu-lost", {}),
    ],
)
def test_a_counter_that_stalls_and_a_lost_gpu_end_it_and_keep_what_was_measured(
    tmp_path: Path, error: Exception, code: str, fields: dict[str, object]
) -> None:
    path = tmp_path / "h200.jsonl"
    node = pretend_node(get_gpu("h200"), 1)
    # Three looks a window: before, in the midst, after.
    with raises(code, **fields):
        run(path, BrokenMeter(node, error, after=12), lambda: BrokenBench(node, {}))
    assert len([one for one in read_calibration_file(path) if one.is_whole]) == 4


def test_a_file_of_another_chip_or_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    run(path, *broken_bench(), budget_s=20)
    other = broken_bench()
    other[0].gpus = (replace(other[0].gpus[0], uuid="GPU-other"),)
    with raises("other-gpu", path=path, found="GPU-simulated-0", expected="GPU-other"):
        run(path, *other)
    path.write_text("hello\n")
    with raises("bad-syntax", path=path, line=1):
        run(path, *broken_bench())
    assert path.read_text() == "hello\n"


def test_two_calibrations_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "h200.jsonl"
    first = calibrate(*broken_bench(), path, budget_s=600)
    next(first)
    with raises("file-locked", path=path):
        run(path, *broken_bench())


@pytest.mark.parametrize("gib", [16, 24, 48, 80, 141])
def test_all_work_fits_the_memory_of_its_gpu(gib: int) -> None:
    works = make_works(replace(H200, memory_bytes=gib * 2**30))
    assert all(needed_bytes(work) <= 0.6 * gib * 2**30 for work in works)
    assert len({work.name for work in works}) == len(works)
    kinds = [work.kind for work in works]
    assert kinds.count(PRODUCT) >= 20
    assert kinds.count(ATTENTION) >= 3


def test_operands_that_should_come_from_memory_do_not_fit_the_cache() -> None:
    for work in make_works(H200):
        if work.memory_bytes and work.kind != COPY and work.sizes[0] != work.sizes[-1]:
            assert work.copies * work.memory_bytes >= 8 * H200.l2_bytes
        if work.kind == COPY and work.memory_bytes:
            assert work.memory_bytes > 8 * H200.l2_bytes


def test_a_gpu_without_fp8_has_none_of_it() -> None:
    assert {work.dtype for work in make_works(replace(H200, has_fp8=False))} == {"bfloat16"}


def test_what_shrinks_ends() -> None:
    for work in make_works(H200):
        smaller: Workload | None = work
        for _ in range(20):
            smaller = None if smaller is None else shrink(smaller, H200)
        assert smaller is None


def test_looking_comes_once_in_the_midst_of_a_window() -> None:
    node = pretend_node(get_gpu("h200"), 1)
    bench = SimulatedBench(node, get_gpu("h200"), draw_truth(0))
    looks: list[float] = []
    look: Callable[[], None] = lambda: looks.append(node.now_s())  # noqa: E731
    bench.load(make_works(H200)[0]).run(3.0, look)
    assert looks == [pytest.approx(1.5, rel=0.01)]
