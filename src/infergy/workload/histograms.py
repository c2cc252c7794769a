"""Histograms in files, and the requests of a histogram: each as long as the mean of its bin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.files import parse_json
from infergy.workload.bins import HISTOGRAM_SCHEMA, HISTOGRAM_SUMS, BinCount, Histogram
from infergy.workload.requests import Requests, SetAside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from infergy.workload.requests import Integers

BIN_AGAIN = "Bin the trace again: infergy trace TRACE --bins paper --json"
_HISTOGRAM_START = re.compile(r'\s*\{\s*"source"\s*:')


def requests_of_histogram(histogram: Histogram, *, at_most: int | None = None) -> Requests:
    """The requests of a histogram, all at once: each has the mean lengths of its bin, rounded so that sums are kept.

    Requests of all bins, of those past the last edge too, are mixed evenly, since their order is unknown. Inputs are
    the uncached tokens, at least 1: a histogram has no cached tokens by bin.

    Args:
        histogram: Counts over bins.
        at_most: Keep about so many, each bin its share and at least one request; None keeps all.
    """
    import numpy as np

    bins = all_counts(histogram)
    total = sum(count.requests for count in bins)
    share = 1.0 if at_most is None or at_most >= total else at_most / total
    columns = list(zip(*(_mean_lengths(count, share) for count in bins), strict=True)) or [(np.zeros(0),)] * 3
    positions, inputs, outputs = (np.concatenate(column) for column in columns)
    order = np.argsort(positions, kind="stable")
    return Requests(
        source=histogram.source,
        input_tokens=np.maximum(inputs[order].astype(np.int64), 1),
        output_tokens=outputs[order].astype(np.int64),
        order_reason="a histogram has no arrivals",
        set_aside=SetAside(failed=histogram.failed_requests),
        lengths_from=histogram.lengths_from,
    )


def all_counts(histogram: Histogram) -> list[BinCount]:
    """The counts of a histogram, with what lies past its last edges."""
    return [*histogram.counts, *(() if histogram.left_out is None else (histogram.left_out,))]


def _mean_lengths(count: BinCount, share: float) -> Iterator[NDArray[np.float64] | Integers]:
    """Positions of a bin's requests between 0 and 1, evenly spaced, and their lengths."""
    import numpy as np

    kept = count.requests if share == 1.0 else max(1, round(count.requests * share))
    yield (np.arange(kept) + 0.5) / kept
    for tokens in (count.input_tokens, count.output_tokens):
        # The running sum of mean lengths, rounded: any part of the bin has the mean to within one token.
        ends = np.arange(kept + 1) * (tokens / count.requests)
        yield np.diff(np.rint(ends).astype(np.int64))


def find_histogram(source: Any) -> Histogram | None:
    """The histogram in a file, as `infergy trace --bins … --json` prints it; None if there is none.

    Raises:
        DataError: The file has the schema of a histogram, and is none or does not add up.
    """
    record = _histogram_record(source)
    if record is None:
        return None
    from infergy.records.codec import from_json

    sums = {name: record.pop(name) for name in HISTOGRAM_SUMS if name in record}
    histogram = from_json(Histogram, record, str(source))
    for name, value, expected in histogram.contradictions(sums):
        raise DataError.bad_field(source, name, value, f"{expected}. {BIN_AGAIN}")
    return histogram


def _histogram_record(source: Any) -> dict[str, Any] | None:
    path = Path(source).expanduser() if isinstance(source, (str, Path)) and source else None
    if path is None or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:
            if not _HISTOGRAM_START.match(file.read(256)):
                return None
            file.seek(0)
            text = file.read()
        record = parse_json(text, path, BIN_AGAIN)
    except UnicodeDecodeError:
        return None
    except DataError:
        if HISTOGRAM_SCHEMA in text:
            raise
        # Some log whose records begin so.
        return None
    return record if isinstance(record, dict) and record.get("schema") == HISTOGRAM_SCHEMA else None
