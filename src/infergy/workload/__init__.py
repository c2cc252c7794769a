"""What is asked of a model: request traces, their bins, and prompts. Names are loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infergy.workload.bins import AxisCount, Bin, BinCount, Bins, Histogram
    from infergy.workload.formats import Columns, format_names
    from infergy.workload.histograms import find_histogram, requests_of_histogram
    from infergy.workload.locate import shipped_traces
    from infergy.workload.requests import PrefixBlocks, Requests, Sample, SetAside, Window
    from infergy.workload.summary import LengthSummary, Padding, TraceSummary
    from infergy.workload.tasks import TaskOptions
    from infergy.workload.trace import Trace, open_requests, open_trace

__all__ = ["AxisCount", "Bin", "BinCount", "Bins", "Columns", "Histogram", "LengthSummary", "Padding", "PrefixBlocks"]
__all__ += ["Requests", "Sample", "SetAside", "TaskOptions", "Trace", "TraceSummary", "Window", "find_histogram"]
__all__ += ["format_names", "open_requests", "open_trace", "requests_of_histogram", "shipped_traces"]

_HOMES = {
    "bins": ("AxisCount", "Bin", "BinCount", "Bins", "Histogram"),
    "formats": ("format_names", "Columns"),
    "histograms": ("find_histogram", "requests_of_histogram"),
    "requests": ("PrefixBlocks", "Requests", "Sample", "SetAside", "Window"),
    "locate": ("shipped_traces",),
    "summary": ("LengthSummary", "Padding", "TraceSummary"),
    "tasks": ("TaskOptions",),
    "trace": ("Trace", "open_requests", "open_trace"),
}


def __getattr__(name: str) -> Any:
    """Load a name on its first use: the help of the command line needs only some."""
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"infergy.workload.{home}"), name)
    raise AttributeError(f"module 'infergy.workload' has no attribute {name!r}")
