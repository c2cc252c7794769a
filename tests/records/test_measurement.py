"""Rows: what follows from raw facts, and what a row refuses to be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records import Batch, Measurement, Tick, Window, derive
from raising import raises
from rows import UUID, build_row

Row = Callable[..., Measurement]


def test_the_idle_tail_is_subtracted_at_loaded_idle_power(row: Row) -> None:
    result = row(energy_j=1000.0, duration_s=2.0, batches=2, idle_w=100.0, tail_s=0.05).result
    assert result is not None
    assert result.energy_j == pytest.approx(1000.0)
    assert result.idle_energy_j == pytest.approx(5.0)
    assert result.power_w == pytest.approx(500.0)
    assert result.energy_per_request_j == pytest.approx(125.0)
    assert result.energy_per_output_token_j == pytest.approx(125.0 / 64)
    assert result.output_tokens_per_s == pytest.approx(8 * 64 / 2.0)


def test_the_bound_of_the_tail_is_what_full_power_would_have_used(row: Row) -> None:
    result = row(energy_j=1000.0, duration_s=2.0, tail_s=0.05, idle_w=100.0).result
    assert result is not None
    assert result.idle_bound_j == pytest.approx(0.05 * (2005.0 / 4.05 - 100.0))


def test_energy_is_the_sum_over_gpus_with_edges_of_their_own() -> None:
    window = Window(
        open={"a": Tick(time_s=0.0, energy_j=0.0), "b": Tick(time_s=0.05, energy_j=0.0)},
        close={"a": Tick(time_s=4.1, energy_j=410.0), "b": Tick(time_s=4.15, energy_j=820.0)},
        edge_uncertainty_s=0.0,
        batches=(Batch(start_s=0.05, end_s=4.05, requests=1, input_tokens=1, output_tokens=1),),
    )
    idle = Window(
        open={"a": Tick(time_s=0.0, energy_j=0.0), "b": Tick(time_s=0.0, energy_j=0.0)},
        close={"a": Tick(time_s=1.0, energy_j=50.0), "b": Tick(time_s=1.0, energy_j=60.0)},
        edge_uncertainty_s=0.0,
    )
    result = derive((window,), idle)
    assert result.energy_by_gpu_j == pytest.approx({"a": 410 - 0.1 * 50, "b": 820 - 0.1 * 60})
    assert result.energy_j == pytest.approx(sum(result.energy_by_gpu_j.values()))


def test_a_window_of_no_joules_is_an_error_not_a_zero() -> None:
    still = {"GPU-x": Tick(time_s=0.0, energy_j=7.0)}
    window = Window(open=still, close={"GPU-x": Tick(time_s=1.0, energy_j=7.0)}, edge_uncertainty_s=0.0)
    with raises("counter-stuck", uuid="GPU-x", energy_j=0.0):
        _ = window.energy_by_gpu_j


def settled_window(*, settled_j: float = 2012.0, close_s: float = 14.3, batch_s: float = 4.0) -> Window:
    """4 s at 500 W between 0.05 s and 0.25 s of idling at 40 W, the last 0.1 s of it after the settled tick."""
    return Window(
        open={"a": Tick(time_s=10.0, energy_j=0.0)},
        settled={"a": Tick(time_s=14.2, energy_j=settled_j - 4.0)},
        close={"a": Tick(time_s=close_s, energy_j=2012.0)},
        edge_uncertainty_s=0.0,
        batches=(Batch(start_s=10.05, end_s=10.05 + batch_s, requests=1, input_tokens=1, output_tokens=1),),
    )


def test_a_settled_tail_prices_the_idle_parts_of_its_window_and_leaves_no_bound(row: Row) -> None:
    idle = Window(
        open={"a": Tick(time_s=0.0, energy_j=0.0)},
        close={"a": Tick(time_s=1.0, energy_j=20.0)},
        edge_uncertainty_s=0.0,
    )
    result = derive((settled_window(),), idle)
    assert result.energy_j == pytest.approx(2000.0)
    assert result.idle_s == pytest.approx(0.3)
    assert result.idle_energy_j == pytest.approx(12.0)
    assert result.idle_bound_j == 0


@pytest.mark.parametrize(
    ("window", "code"),
    [
        (settled_window(settled_j=2100.0), "counter-stuck"),
        (settled_window(close_s=14.1), "counter-stuck"),
        (settled_window(batch_s=-0.5), "clock-wrong"),
    ],
    ids=["counter", "clock at the tail", "clock in the batch"],
)
def test_a_counter_or_a_clock_that_runs_backwards_is_an_error(window: Window, code: str) -> None:
    idle = Window(
        open={"a": Tick(time_s=0.0, energy_j=0.0)},
        close={"a": Tick(time_s=1.0, energy_j=20.0)},
        edge_uncertainty_s=0.0,
    )
    with raises(code):
        derive((window,), idle)


@given(power_w=st.floats(60, 1500), duration_s=st.floats(0.01, 1e3), batches=st.integers(1, 5))
def test_a_row_survives_json(power_w: float, duration_s: float, batches: int) -> None:
    measured = build_row(energy_j=power_w * duration_s, duration_s=duration_s, batches=batches)
    assert Measurement.from_json(json.loads(json.dumps(measured.to_json()))) == measured


@pytest.mark.parametrize(
    ("change", "code", "fields"),
    [
        ({"schema": "codecarbon"}, "wrong-schema", {"found": "codecarbon"}),
        ({"schema": "infergy.measurement/99"}, "newer-schema", {"found": "infergy.measurement/99"}),
        ({"seed": "one"}, "bad-row", {"key": "seed", "reason": "expected int, found 'one'"}),
        ({"colour": 1}, "bad-row", {"key": ""}),
        ({"cell": 3}, "bad-row", {"key": "cell"}),
        ({"windows": []}, "bad-field", {"key": "windows"}),
        ({"loaded_idle": None}, "bad-field", {"key": "loaded_idle"}),
        ({"cell_id": "0" * 12}, "bad-field", {"key": "cell_id"}),
        ({"warmup_s": 1e300}, "bad-row", {"key": "warmup_s"}),
        ({"warmup_s": -1.0}, "bad-row", {"key": "warmup_s"}),
        ({"warmup_s": math.nan}, "bad-row", {"key": "warmup_s"}),
        ({"measured_utc": "yesterday"}, "bad-field", {"key": "measured_utc"}),
        ({"measured_utc": "2026-01-01T00:00:00"}, "bad-field", {"key": "measured_utc"}),
        ({"status": "good"}, "bad-field", {"key": "status"}),
        ({"status": "failed"}, "bad-field", {"key": "status"}),
        ({"experts_touched": 1.5}, "bad-field", {"key": "experts_touched"}),
    ],
)
def test_a_foreign_row_is_told_with_its_place(
    row: Row, change: dict[str, object], code: str, fields: dict[str, object]
) -> None:
    data = row().to_json() | change
    with raises(code, place="f.jsonl line 3", **fields):
        Measurement.from_json(data, "f.jsonl line 3")


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("requests", 0, "requests"),
        ("requests", 9, "requests"),
        ("output_tokens", 0, "output_tokens"),
        ("end_s", 1e9, "end_s"),
        ("start_s", 1.0, "end_s"),
        ("input_tokens", 8 * 513, "input_tokens"),
        ("output_tokens", 8 * 65, "output_tokens"),
        ("first_token_s", 2.1, "finished_s"),
        ("finished_s", 3.0, "finished_s"),
        ("times", {"first_token_s": [0.1], "finished_s": [0.2]}, "times"),
    ],
)
def test_a_batch_that_contradicts_its_row_is_rejected(row: Row, name: str, value: object, key: str) -> None:
    data = row().to_json()
    data["windows"][0]["batches"][0][name] = value
    with raises("bad-field", key=f"windows[0].batches[0].{key}"):
        Measurement.from_json(data, "f.jsonl line 3")


def test_batches_that_overlap_are_rejected(row: Row) -> None:
    data = row().to_json()
    data["windows"][0]["batches"][1]["start_s"] -= 1.0
    with raises("bad-field", key="windows[0].batches[1].end_s"):
        Measurement.from_json(data)


def scaled(row: Measurement, factor: float, **limits: float) -> dict[str, Any]:
    """A row as JSON with the energy of its counter times a factor, idle power but not figures included."""
    data = replace(row, result=None).to_json()
    for window in (*data["windows"], data["loaded_idle"]):
        for edge in ("open", "close"):
            window[edge][UUID]["energy_j"] *= factor
    data["environment"]["gpus"][0] |= limits
    return data


@pytest.mark.parametrize("factor", [0.001, 5.0])
def test_a_power_that_no_board_draws_is_rejected(row: Row, factor: float) -> None:
    with raises("bad-row", key="windows[0]", reason="counter-wrong"):
        Measurement.from_json(scaled(row(), factor))


def test_a_mean_power_of_over_twice_the_limit_is_rejected(row: Row) -> None:
    assert Measurement.from_json(scaled(row(), 2.0, power_limit_w=700.0)).is_ok
    with raises("bad-row", key="windows[0]", reason="counter-wrong"):
        Measurement.from_json(scaled(row(), 3.0, power_limit_w=700.0))


def test_a_busy_power_below_half_of_idle_power_is_rejected(row: Row) -> None:
    with raises("bad-row", key="windows[0]", reason="counter-wrong"):
        Measurement.from_json(replace(row(energy_j=60.0, idle_w=100.0), result=None).to_json())


def test_a_missing_key_is_named(row: Row) -> None:
    data = row().to_json()
    del data["windows"][0]["batches"][0]["end_s"]
    with raises("bad-row", place="f.jsonl line 3", key="windows[0].batches[0].end_s", reason="missing"):
        Measurement.from_json(data, "f.jsonl line 3")


def test_stored_figures_follow_from_the_raw_facts(row: Row) -> None:
    measured = row()
    assert measured.loaded_idle is not None
    assert derive(measured.windows, measured.loaded_idle) == measured.result
    assert replace(measured, result=None).result is None


def test_several_windows_count_together_each_less_its_own_tail(row: Row) -> None:
    one, two = row(energy_j=1000.0, batches=1, tail_s=0.01), row(energy_j=1300.0, batches=2, tail_s=0.09)
    assert one.loaded_idle is not None
    result = derive((*one.windows, *two.windows), one.loaded_idle)
    assert result.energy_j == pytest.approx((1000 + 2 * 1300) / 3)
    assert result.batches == 3
    assert result.idle_s == pytest.approx(0.1)
    assert result.idle_energy_j == pytest.approx(0.1 * 100.0)


def test_a_row_of_the_first_schema_is_read_as_one_of_the_present(row: Row) -> None:
    measured = row()
    data = measured.to_json()
    (window,) = data.pop("windows")
    batches = window.pop("batches")
    old = data | {"window": window, "batches": batches, "flags": [], "schema": "infergy.measurement/1"}
    del old["loaded_idle"]["batches"]
    assert Measurement.from_json(old) == measured
    failure = {"code": "engine", "message": "it died"}
    failed = data | {"window": None, "batches": [], "status": "failed", "failure": failure}
    failed["schema"] = "infergy.measurement/1"
    assert Measurement.from_json(failed).windows == ()


def times_of(*told: tuple[float | None, float | None], output_tokens: int = 5) -> tuple[float | None, float | None]:
    """Time to first and per output token of batches of 1, 3, 5 … requests, each with (first, finished) seconds."""
    measured = build_row()
    assert measured.loaded_idle is not None
    batches = tuple(
        Batch(
            start_s=10.0 + place,
            end_s=11.0 + place,
            requests=1 + 2 * place,
            input_tokens=8,
            output_tokens=(1 + 2 * place) * output_tokens,
            first_token_s=first_s,
            finished_s=finished_s,
        )
        for place, (first_s, finished_s) in enumerate(told)
    )
    result = derive([replace(measured.windows[0], batches=batches)], measured.loaded_idle)
    return result.time_to_first_token_s, result.time_per_output_token_s


def test_times_to_tokens_are_means_over_requests() -> None:
    first_s, each_s = times_of((0.1, 0.5), (0.3, 0.9))
    assert first_s == pytest.approx((0.1 + 3 * 0.3) / 4)
    assert each_s == pytest.approx((0.4 + 3 * 0.6) / 4 / 4)


def test_a_time_that_one_batch_does_not_tell_is_unknown() -> None:
    assert times_of((0.1, 0.5), (None, None)) == (None, None)
    for first_s, each_s in (
        times_of((0.1, None), (0.3, 0.9)),
        times_of((0.1, 0.1), (0.3, 0.3), output_tokens=1),
    ):
        assert first_s == pytest.approx(0.25)
        assert each_s is None


def test_rows_from_before_times_were_told_are_read(row: Row) -> None:
    data = row().to_json()
    for batch in data["windows"][0]["batches"]:
        del batch["first_token_s"], batch["last_first_token_s"], batch["finished_s"]
    del data["result"]["time_to_first_token_s"], data["result"]["time_per_output_token_s"]
    assert Measurement.from_json(data) == row()


@pytest.mark.parametrize("where", ["windows", "watched"])
def test_a_row_whose_counter_cannot_be_is_told_by_its_line(where: str) -> None:
    row = build_row()
    (window,) = row.windows
    back = replace(window, close={UUID: replace(window.close[UUID], energy_j=window.open[UUID].energy_j - 1.0)})
    broken = replace(row, windows=(back,)) if where == "windows" else replace(row, watched=back)
    key = "watched" if where == "watched" else "windows[0]"
    with raises("bad-row", place="rows.jsonl line 7", reason="counter-stuck", key=key):
        Measurement.from_json(broken.to_json(), "rows.jsonl line 7")
