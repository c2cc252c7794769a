"""Histograms as files: what `infergy trace --bins … --json` prints, read again, where a trace stays in its lake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from infergy.errors import DataError
from infergy.records.codec import from_json
from infergy.workload.bins import HISTOGRAM_SCHEMA, Histogram
from infergy.workload.trace import Trace, open_trace

SUMS = ("requests", "input_tokens", "output_tokens", "binned_input_tokens", "binned_output_tokens")
"""Of all bins together; printed beside the record, for readers without this code."""

_BEGIN = re.compile(r'\s*\{\s*"source"\s*:')
_HEAD_BYTES = 256


def open_requests(source: Any, **options: Any) -> Trace | Histogram:
    """A histogram if `source` is the path of one, else a trace, opened by `open_trace` with these options.

    Raises:
        DataError: It is neither, or the histogram was changed by hand and does not add up.
    """
    return find_histogram(source) or open_trace(source, **options)


def find_histogram(source: Any) -> Histogram | None:
    """The histogram in a file; None if there is none.

    Raises:
        DataError: The file says that it is one, and is not.
    """
    path = Path(source).expanduser() if isinstance(source, (str, Path)) and source else None
    if path is None or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            if not _BEGIN.match(file.read(_HEAD_BYTES)):
                return None
            file.seek(0)
            found = json.load(file)
    except (UnicodeDecodeError, json.JSONDecodeError):
        # Some log whose records begin so.
        return None
    if not isinstance(found, dict) or found.get("schema") != HISTOGRAM_SCHEMA:
        return None
    told = {name: found.pop(name) for name in SUMS if name in found}
    histogram = from_json(Histogram, found, str(source))
    for name, value in told.items():
        if getattr(histogram, name) != value:
            raise DataError.bad_field(
                source,
                name,
                value,
                f"{getattr(histogram, name):,}, as in its bins; bin the trace again: infergy trace TRACE --bins "
                "powers-of-two --json",
            )
    return histogram
