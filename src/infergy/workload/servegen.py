"""ServeGen's clients (alibaba/ServeGen): requests drawn from the published rates and distributions of lengths.

    chunk-i-trace.csv     no header: start of a window (s), requests per second, cv, Gamma|Weibull|nothing, shape, scale
    chunk-i-dataset.json  by start of a longer window: {"input_tokens": "{12: 0.4, …}", "output_tokens": …}, as text

As theirs: gaps are drawn and scaled to the exact rate, and one uniform number chooses all lengths of a request.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    Generator = np.random.Generator

WINDOW_S = 600.0
MOST_REQUESTS = 5_000_000
_LARGEST_SHAPE = 1e6
PATTERNS = ("Gamma", "Weibull", "")
_AXES = ("input_tokens", "output_tokens")
_ENDING = "-trace.csv"
_PAIR = re.compile(r"(\d+)(?:\.0*)?\s*:\s*([0-9.eE+-]+)")


def client_files(path: Path) -> list[Path]:
    """Files of clients: one, or all in a folder; none where there are no distributions beside them."""
    found = sorted(path.glob(f"*{_ENDING}")) if path.is_dir() else [path] if path.name.endswith(_ENDING) else []
    return [file for file in found if _dataset(file).is_file() and _has_windows(file)]


def draw_requests(files: Sequence[Path], seed: int = 0) -> tuple[pl.DataFrame, str]:
    """Requests of clients by arrival, and in words where their lengths come from.

    Raises:
        DataError: A file is damaged, or there are too many requests to be held.
    """
    import numpy as np
    import polars as pl

    source = np.random.default_rng(seed)
    windows = [(window, lengths) for file in files for window, lengths in _windows(file)]
    total = sum(round(rate * WINDOW_S) for (_, rate, *_), _ in windows)
    if total > MOST_REQUESTS:
        message = f"{files[0].parent}: {count_of(total, 'request')}, more than {MOST_REQUESTS:,}"
        raise DataError(f"{message}. Name the file of one client: {files[0].name}", code="too-many", requests=total)
    parts = [_draw(window, lengths, source) for window, lengths in windows]
    names = ("input_tokens", "output_tokens", "arrival_s")
    columns: list[Any] = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [[], [], []]
    frame = pl.DataFrame(dict(zip(names, columns, strict=True))).sort("arrival_s")
    return frame, f"drawn with seed {seed} from the rates and lengths of {count_of(len(files), 'client')} of ServeGen"


def _dataset(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(_ENDING) + "-dataset.json")


def _has_windows(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        first = next(csv.reader(lines), [])
    return len(first) == 6 and _PAIR.fullmatch(f"{first[0]}:{first[1]}") is not None and first[3] in PATTERNS


def _windows(file: Path) -> list[tuple[tuple[float, float, str, float], dict[str, Any]]]:
    """Start, rate, pattern and shape of each window with requests, and its distributions."""
    try:
        datasets = {float(start): held for start, held in json.loads(_dataset(file).read_text("utf-8")).items() if held}
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [(float(row[0]), float(row[1]), row[3], float(row[4] or 1)) for row in csv.reader(lines) if row]
        found = []
        for row in filter(_is_drawn, rows):
            begun = [start for start in datasets if start <= row[0]]
            if begun:
                found.append((row, {axis: _distribution(datasets[max(begun)][axis]) for axis in _AXES}))
    except (OSError, ValueError, OverflowError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise DataError.not_readable(file, error, "A file of ServeGen, and its -dataset.json beside it") from error
    return found


def _is_drawn(row: tuple[float, float, str, float]) -> bool:
    return 0 < row[1] < MOST_REQUESTS and 0 < row[3] < _LARGEST_SHAPE


def _distribution(text: str) -> tuple[Any, Any]:
    """Lengths, ascending, and the probability of each or a shorter one; the text of a dict is no code to be run."""
    import numpy as np

    pairs = sorted((int(length), float(share)) for length, share in _PAIR.findall(text))
    lengths, shares = np.array(pairs, dtype=float).reshape(-1, 2).T
    if not shares.sum() > 0:
        raise ValueError("a distribution without lengths")
    return lengths.astype(np.int64), np.cumsum(shares) / shares.sum()


def _draw(window: tuple[float, float, str, float], lengths: dict[str, Any], source: Generator) -> list[Any]:
    import numpy as np

    start_s, rate, pattern, shape = window
    count = round(rate * WINDOW_S)
    gaps: Any = {"Gamma": source.gamma, "Weibull": source.weibull}.get(pattern)
    drawn = source.exponential(size=count + 1) if gaps is None else gaps(shape, size=count + 1)
    ends = np.cumsum(drawn)[:count]
    arrival_s = start_s + ends / max(float(drawn.sum()), 1e-300) * WINDOW_S
    uniform = source.random(count)
    columns = []
    for values, cumulated in (lengths[axis] for axis in _AXES):
        columns.append(values[np.minimum(np.searchsorted(cumulated, uniform), len(values) - 1)])
    return [*columns, arrival_s]
