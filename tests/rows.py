"""Rows whose joules are known, for any test that needs a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infergy.records import (
    STATUS_OK,
    Batch,
    Cell,
    EngineSetup,
    Environment,
    GpuIdentity,
    Load,
    Measurement,
    Tick,
    Window,
    derive,
)

UUID = "GPU-test-0"


def build_row(
    *,
    engine: str = "vllm",
    input_tokens: int = 512,
    output_tokens: int = 64,
    batch: int = 8,
    energy_j: float = 1000.0,
    duration_s: float = 2.0,
    batches: int = 2,
    idle_w: float = 100.0,
    tail_s: float = 0.05,
    **others: Any,
) -> Measurement:
    """A row of `batches` batches of `energy_j` and `duration_s` each, and an idle tail."""
    busy_s = batches * duration_s
    ran = tuple(
        Batch(
            start_s=10.0 + i * duration_s,
            end_s=10.0 + (i + 1) * duration_s,
            requests=batch,
            input_tokens=batch * input_tokens,
            output_tokens=batch * output_tokens,
        )
        for i in range(batches)
    )
    window = Window(
        open={UUID: Tick(time_s=10.0, energy_j=5000.0)},
        close={UUID: Tick(time_s=10.0 + busy_s + tail_s, energy_j=5000.0 + batches * energy_j + tail_s * idle_w)},
        edge_uncertainty_s=0.0005,
        batches=ran,
    )
    idle = Window(
        open={UUID: Tick(time_s=1.0, energy_j=100.0)},
        close={UUID: Tick(time_s=3.0, energy_j=100.0 + 2 * idle_w)},
        edge_uncertainty_s=0.0005,
    )
    cell = Cell(
        setup=EngineSetup(engine=engine, model="llama-3.1-8b"),
        load=Load(input_tokens=input_tokens, output_tokens=output_tokens, batch=batch),
    )
    facts: dict[str, Any] = {
        "cell_id": cell.id,
        "cell": cell,
        "status": STATUS_OK,
        "batch_choice": "given",
        "measured_utc": "2026-01-01T00:00:00.000+00:00",
        "seed": 0,
        "simulated": False,
        "environment": Environment(
            infergy="0",
            python="3",
            platform="test",
            cpu=None,
            gpus=(GpuIdentity(uuid=UUID, name="NVIDIA H200"),),
            driver="1",
            cuda="13.0",
            meter="nvml",
            scope="gpu-board",
            counter_period_s=0.1,
            weights="random weights: test",
        ),
        "windows": (window,),
        "loaded_idle": idle,
        "result": derive((window,), idle),
    }
    return Measurement(**(facts | others))


def spread_over(row: Measurement, shares: Mapping[str, float]) -> Measurement:
    """The row as measured on several GPUs, each with its share of the joules by UUID, all ticking together."""

    def spread(window: Window) -> Window:
        opened, closed = (
            {uuid: share * tick.energy_j for uuid, share in shares.items()}
            for tick in (window.open[UUID], window.close[UUID])
        )
        return replace(
            window,
            open={uuid: Tick(time_s=window.open[UUID].time_s, energy_j=joules) for uuid, joules in opened.items()},
            close={uuid: Tick(time_s=window.close[UUID].time_s, energy_j=joules) for uuid, joules in closed.items()},
        )

    assert row.loaded_idle is not None
    windows, idle = tuple(map(spread, row.windows)), spread(row.loaded_idle)
    cell = replace(row.cell, setup=replace(row.cell.setup, tensor_parallel=len(shares)))
    gpus = tuple(replace(row.environment.gpus[0], uuid=uuid) for uuid in shares)
    return replace(
        row,
        cell=cell,
        cell_id=cell.id,
        windows=windows,
        loaded_idle=idle,
        environment=replace(row.environment, gpus=gpus),
        result=derive(windows, idle),
    )
