"""What LLM inference costs in joules: measured, modelled from a request trace, compared, and reduced.

    import infergy

    answer = infergy.estimate("azure-conv-2023")
    print(answer.of("vllm").served.energy_wh)

Names below are loaded when first used: importing the package reads no data library.
"""

from __future__ import annotations

import os
import sys

# `python -m infergy` puts the working folder before the standard library: a json.py there would be run. It is left out,
# or comes last if infergy itself lies there. While a module to run is looked up, the program's name is "-m".
if sys.argv[:1] == ["-m"] and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
    _working_folder = os.path.abspath(sys.path.pop(0))
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == _working_folder:
        sys.path.append(_working_folder)

from typing import TYPE_CHECKING, Any

VERSION = "0.1.0"

if TYPE_CHECKING:
    from infergy.catalog import Gpu, ModelShape, get_gpu, get_model
    from infergy.errors import (
        DataError,
        EngineError,
        InfergyError,
        MeterError,
        MissingError,
        UsageError,
    )
    from infergy.estimates.estimate import RunEstimate, ServerEstimate, TraceEstimate, estimate
    from infergy.estimates.servers import ServerSpec, load_tables
    from infergy.measure.block import BlockEnergy, window
    from infergy.records import Measurement, Plan
    from infergy.serving.config import EngineOptions
    from infergy.workload import Bins, Columns, Histogram, Requests, Trace, open_trace

__all__ = [
    "Bins",
    "BlockEnergy",
    "Columns",
    "DataError",
    "EngineError",
    "EngineOptions",
    "Gpu",
    "Histogram",
    "InfergyError",
    "Measurement",
    "MeterError",
    "MissingError",
    "ModelShape",
    "Plan",
    "Requests",
    "RunEstimate",
    "ServerEstimate",
    "ServerSpec",
    "Trace",
    "TraceEstimate",
    "UsageError",
    "__version__",
    "estimate",
    "get_gpu",
    "get_model",
    "load_tables",
    "open_trace",
    "window",
]

__version__ = VERSION

_HOMES = {
    "infergy.errors": (
        "DataError",
        "EngineError",
        "InfergyError",
        "MeterError",
        "MissingError",
        "UsageError",
    ),
    "infergy.estimates.estimate": ("RunEstimate", "ServerEstimate", "TraceEstimate", "estimate"),
    "infergy.estimates.servers": ("ServerSpec", "load_tables"),
    "infergy.catalog": ("Gpu", "ModelShape", "get_gpu", "get_model"),
    "infergy.measure.block": ("BlockEnergy", "window"),
    "infergy.records": ("Measurement", "Plan"),
    "infergy.serving.config": ("EngineOptions",),
    "infergy.workload": ("Bins", "Columns", "Histogram", "Requests", "Trace", "open_trace"),
}


def __getattr__(name: str) -> Any:
    """Load a public name on its first use."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'infergy' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
