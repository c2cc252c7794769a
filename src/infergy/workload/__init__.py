"""What is asked of a model: request traces, their bins, and prompts."""

from infergy.workload.bins import Bin, BinCount, Bins, Histogram
from infergy.workload.trace import Columns, LengthSummary, Trace, TraceSummary, open_trace, shipped_traces

__all__ = [
    "Bin",
    "BinCount",
    "Bins",
    "Columns",
    "Histogram",
    "LengthSummary",
    "Trace",
    "TraceSummary",
    "open_trace",
    "shipped_traces",
]
