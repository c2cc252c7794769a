"""What LLM inference costs in joules: measured, modelled from a request trace, compared, and reduced.

Names are loaded when first used: `import infergy` brings neither polars nor an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from infergy.version import VERSION

if TYPE_CHECKING:
    from infergy.energy import Estimate, Ideal, TraceEstimate, estimate
    from infergy.hardware import get_gpu, get_model
    from infergy.workload import Bins, Columns, Histogram, Trace, open_trace

__all__ = [
    "Bins",
    "Columns",
    "Estimate",
    "Histogram",
    "Ideal",
    "Trace",
    "TraceEstimate",
    "__version__",
    "estimate",
    "get_gpu",
    "get_model",
    "open_trace",
]

__version__ = VERSION

_ROOMS = {
    "infergy.energy": ("Estimate", "Ideal", "TraceEstimate", "estimate"),
    "infergy.hardware": ("get_gpu", "get_model"),
    "infergy.workload": ("Bins", "Columns", "Histogram", "Trace", "open_trace"),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(room), name)
    raise AttributeError(f"module 'infergy' has no attribute {name!r}")
