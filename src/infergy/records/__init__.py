"""The shared nouns: what is measured, what was measured, and where it came from. Standard library only."""

from infergy.records.arrivals import Arrivals
from infergy.records.cell import (
    DEFAULT_DTYPE,
    END_VISIT,
    ENGINES,
    FP8,
    GREEDY,
    GRID_VISIT,
    LLM_CLASS,
    RANDOM_WEIGHTS,
    SERVER,
    START_VISIT,
    UNIFORM_WEIGHTS,
    Cell,
    Decoding,
    EngineSetup,
    Load,
    grid_visit,
)
from infergy.records.environment import Environment, GpuIdentity, GpuState
from infergy.records.measurement import (
    SCHEMA,
    STATUS_FAILED,
    STATUS_OK,
    Failure,
    Measurement,
    Result,
    derive,
    result_of,
)
from infergy.records.plan import PLAN_SCHEMA, MeasureOptions, Plan, PlannedCell
from infergy.records.rescaled import Rescaled
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
