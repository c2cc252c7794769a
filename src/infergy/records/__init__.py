"""The shared nouns: what is measured, what was measured, and where it came from. Standard library only.

Names are loaded when first used: an estimate needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infergy.records.cell import (
        END_VISIT,
        GREEDY,
        GRID_VISIT,
        START_VISIT,
        Arrivals,
        Cell,
        Decoding,
        Load,
        grid_visit,
    )  # fmt: skip
    from infergy.records.engine_setup import (
        DEFAULT_DTYPE,
        ENGINES,
        FP8,
        LLM_CLASS,
        RANDOM_WEIGHTS,
        SERVER,
        UNIFORM_WEIGHTS,
        EngineSetup,
    )  # fmt: skip
    from infergy.records.environment import Environment, GpuIdentity, GpuState, Rescaled
    from infergy.records.measurement import SCHEMA, STATUS_FAILED, STATUS_OK, Failure, Measurement
    from infergy.records.plan import PLAN_SCHEMA, MeasureOptions, Plan, PlannedCell
    from infergy.records.result import Result, derive, result_of
    from infergy.records.window import Batch, Tick, Window

__all__ = [
    "DEFAULT_DTYPE",
    "END_VISIT",
    "ENGINES",
    "FP8",
    "GREEDY",
    "GRID_VISIT",
    "LLM_CLASS",
    "PLAN_SCHEMA",
    "RANDOM_WEIGHTS",
    "SCHEMA",
    "SERVER",
    "START_VISIT",
    "STATUS_FAILED",
    "STATUS_OK",
    "UNIFORM_WEIGHTS",
    "Arrivals",
    "Batch",
    "Cell",
    "Decoding",
    "EngineSetup",
    "Environment",
    "Failure",
    "GpuIdentity",
    "GpuState",
    "Load",
    "MeasureOptions",
    "Measurement",
    "Plan",
    "PlannedCell",
    "Rescaled",
    "Result",
    "Tick",
    "Window",
    "derive",
    "grid_visit",
    "result_of",
]

_HOMES = {
    "cell": (
        *("END_VISIT", "GREEDY", "GRID_VISIT", "START_VISIT", "Arrivals", "Cell", "Decoding", "Load", "grid_visit"),
    ),
    "engine_setup": (
        *("DEFAULT_DTYPE", "ENGINES", "FP8", "LLM_CLASS", "RANDOM_WEIGHTS", "SERVER", "UNIFORM_WEIGHTS", "EngineSetup"),
    ),
    "environment": ("Environment", "GpuIdentity", "GpuState", "Rescaled"),
    "measurement": ("SCHEMA", "STATUS_FAILED", "STATUS_OK", "Failure", "Measurement"),
    "plan": ("PLAN_SCHEMA", "MeasureOptions", "Plan", "PlannedCell"),
    "result": ("Result", "derive", "result_of"),
    "window": ("Batch", "Tick", "Window"),
}


def __getattr__(name: str) -> Any:
    """Load a name on its first use."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(f"infergy.records.{home}"), name)
            return value
    raise AttributeError(f"module 'infergy.records' has no attribute {name!r}")
