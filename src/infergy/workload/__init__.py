"""What is asked of a model: request traces, their bins, and prompts. Importing it loads no data library."""

from infergy.workload.bins import AxisCount, Bin, BinCount, Bins, Histogram
from infergy.workload.formats import FORMAT_NAMES, Columns
from infergy.workload.sources import shipped_traces
from infergy.workload.summary import LengthSummary, TraceSummary
from infergy.workload.trace import Trace, open_trace

__all__ = [
    "FORMAT_NAMES",
    "AxisCount",
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
