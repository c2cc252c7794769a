"""Rows among the others of their engine config: drift, clocks, environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infergy.records import GpuIdentity, GpuState, Measurement, Window
from infergy.records.agreement import IDENTITY, MUST, SHOULD, differences, key_of
from infergy.records.unlike import find_unlike
from rows import UUID, build_row

MEGAHERTZ = 1e6


def at_clocks(sm_mhz: float | None, memory_mhz: float = 3201.0, slowdowns: tuple[str, ...] = ()) -> Measurement:
    sm_hz = None if sm_mhz is None else sm_mhz * MEGAHERTZ
    state = GpuState(uuid=UUID, sm_clock_hz=sm_hz, memory_clock_hz=memory_mhz * MEGAHERTZ, slowdowns=slowdowns)
    return build_row(after=(state,))


def in_environment(**changes: Any) -> Measurement:
    row = build_row()
    return replace(row, environment=replace(row.environment, **changes))


def codes(*rows: Measurement) -> list[list[str]]:
    return [[flag.code for flag in flags] for flags, _ in find_unlike(rows)]


def test_an_anchor_that_moved_is_flagged_at_its_end_and_one_that_stayed_is_not() -> None:
    start = replace(build_row(), visit="start")
    moved, stayed = (replace(build_row(energy_j=joules), visit="end") for joules in (1030.0, 1010.0))
    (none, _), ((flag,), _) = find_unlike([start, moved])
    assert none == ()
    assert (flag.code, flag.limit) == ("drift", 0.02)
    assert flag.value == pytest.approx(0.03)
    assert codes(start, stayed) == [[], []]
    assert codes(moved, build_row()) == [[], []]


def on_chip(uuid: str, row: Measurement) -> Measurement:
    def moved(window: Window) -> Window:
        (opened,), (closed,) = window.open.values(), window.close.values()
        return replace(window, open={uuid: opened}, close={uuid: closed})

    assert row.loaded_idle is not None
    return replace(row, windows=tuple(map(moved, row.windows)), loaded_idle=moved(row.loaded_idle))


def test_parts_of_a_set_up_that_two_machines_measured_have_control_cells_each() -> None:
    here, there = (
        [on_chip(uuid, replace(build_row(energy_j=joules), visit=visit)) for visit in ("start", "end")]
        for uuid, joules in (("GPU-a", 1000.0), ("GPU-b", 1050.0))
    )
    assert codes(*here, *there) == [[]] * 4
    # An engine config that began on one chip and ended on another: its controls tell.
    assert codes(here[0], there[1]) == [[], ["drift"]]


def test_a_clock_unlike_the_others_is_flagged() -> None:
    usual = [at_clocks(1980.0), at_clocks(1965.0), at_clocks(1980.0)]
    assert codes(*usual, at_clocks(1700.0)) == [[], [], [], ["clocks"]]
    assert codes(*usual, at_clocks(1980.0, memory_mhz=2619.0)) == [[], [], [], ["clocks"]]


def test_at_the_power_limit_the_sm_clock_floats_and_the_memory_clock_does_not() -> None:
    usual = [at_clocks(1980.0)] * 3
    assert codes(*usual, at_clocks(1395.0, slowdowns=("sw_power_cap",))) == [[]] * 4
    capped = at_clocks(1395.0, memory_mhz=2619.0, slowdowns=("sw_power_cap",))
    (flag,) = find_unlike([*usual, capped])[-1][0]
    assert "memory clock" in flag.reason
    assert "2619 MHz" in flag.reason


def test_a_clock_that_the_driver_does_not_tell_is_no_doubt() -> None:
    assert codes(at_clocks(None), at_clocks(1980.0)) == [[], []]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"driver": "2"}, "driver: 1 against 2"),
        ({"packages": {"vllm": "0.25.0"}}, "package vllm: unknown against 0.25.0"),
        ({"engine": {"cuda_graphs": "NONE"}}, "engine option cuda_graphs: unknown against NONE"),
        ({"gpus": (GpuIdentity(uuid=UUID, name="NVIDIA H200", power_limit_w=350.0),)}, "power limit"),
    ],
)
def test_an_environment_that_no_estimate_takes_is_flagged_so(changes: dict[str, Any], words: str) -> None:
    (flag,) = find_unlike([build_row(), build_row(), in_environment(**changes)])[-1][0]
    assert flag.code == "environment"
    assert words in flag.reason
    assert "no table takes both" in flag.fix


def test_another_gpu_or_host_is_a_fact_and_no_flag() -> None:
    gpu = in_environment(gpus=(GpuIdentity(uuid="GPU-other", name="NVIDIA H200"),))
    host = in_environment(cpu="another")
    *_, first, second = find_unlike([build_row(), build_row(), gpu, host])
    assert first == ((), (f"GPU UUID: {UUID} against GPU-other",))
    assert second == ((), ("CPU: unknown against another",))


def test_versions_that_shape_no_joule_and_what_is_found_anew_may_differ() -> None:
    one = in_environment(infergy="0.1", python="3.11", engine={"kv_cache_blocks": "57144"})
    other = in_environment(infergy="0.2", python="3.12", engine={"kv_cache_blocks": "57100"})
    assert codes(one, other) == [[], []]
    facts = (*IDENTITY, *MUST, *SHOULD)
    assert differences(one, other, facts) == []
    assert key_of(one, facts) == key_of(other, facts)


def test_a_failed_row_is_like_none_and_unlike_none() -> None:
    failed = replace(in_environment(driver="2"), windows=(), result=None, status="failed")
    assert codes(failed, build_row()) == [[], []]
    assert codes(failed) == [[]]
