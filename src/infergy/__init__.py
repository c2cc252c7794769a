"""What LLM inference costs in joules: measured, modelled from a request trace, compared, and reduced.

    import infergy

    answer = infergy.estimate("azure-conv-2023")
    print(answer.of("vllm").energy_wh)

Names below are loaded when first used: importing the package reads no data library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infergy.energy.answer import Estimate, TraceEstimate
    from infergy.energy.estimate import estimate
    from infergy.energy.load import load_table
    from infergy.energy.table import EnergyTable
    from infergy.errors import (
        DataError,
        EngineError,
        InfergyError,
        MeterError,
        MissingError,
        UsageError,
    )
    from infergy.hardware import Gpu, ModelShape, get_gpu, get_model
    from infergy.measure.block import BlockEnergy, window
    from infergy.records import Measurement, Plan
    from infergy.workload import Bins, Columns, Histogram, Trace, open_trace

__all__ = [
    "Bins",
    "BlockEnergy",
    "Columns",
    "DataError",
    "EnergyTable",
    "EngineError",
    "Estimate",
    "Gpu",
    "Histogram",
    "InfergyError",
    "Measurement",
    "MeterError",
    "MissingError",
    "ModelShape",
    "Plan",
    "Trace",
    "TraceEstimate",
    "UsageError",
    "__version__",
    "estimate",
    "get_gpu",
    "get_model",
    "load_table",
    "open_trace",
    "window",
]

__version__: str

_HOMES = {
    "infergy.energy.answer": ("Estimate", "TraceEstimate"),
    "infergy.energy.estimate": ("estimate",),
    "infergy.energy.load": ("load_table",),
    "infergy.energy.table": ("EnergyTable",),
    "infergy.errors": (
        "DataError",
        "EngineError",
        "InfergyError",
        "MeterError",
        "MissingError",
        "UsageError",
    ),
    "infergy.hardware": ("Gpu", "ModelShape", "get_gpu", "get_model"),
    "infergy.measure.block": ("BlockEnergy", "window"),
    "infergy.records": ("Measurement", "Plan"),
    "infergy.workload": ("Bins", "Columns", "Histogram", "Trace", "open_trace"),
}


def __getattr__(name: str) -> Any:
    """Load a public name on its first use."""
    from importlib import import_module

    if name == "__version__":
        return import_module("infergy.version").VERSION
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'infergy' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
