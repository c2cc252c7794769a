"""A recording of `infergy watch`: requests drawn from what a server's histograms of lengths grew by, line by line.

    {"schema": "infergy.recording/1", "time_unix_s": …, "seconds": 1.0, "energy_j": 402.1, "counter_j": {UUID: …},
     "tokens": {"input_tokens": …}, "lengths": {"input": {"ends": [[200, 500]], "counts": [3], "tokens": 1210}, …}}

A histogram says how many requests ended in some time, and how many are of each range of lengths; not which answer is of
which prompt. Lengths lie in their ranges so that their sum is the server's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.units import count_of

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    Column = NDArray[np.float64]

RECORDING_SCHEMA = "infergy.recording/1"
AXES = {"input": "input_tokens", "output": "output_tokens"}
MOST_REQUESTS, LONGEST = 5_000_000, 1e9
_PEEKED, _HALVINGS = 4096, 60


def is_recording(path: Path) -> bool:
    """Whether a file begins as a recording does."""
    with path.open("rb") as file:
        return f'"schema": "{RECORDING_SCHEMA}"'.encode() in file.read(_PEEKED).partition(b"\n")[0]


def draw_recorded(path: Path, seed: int = 0) -> tuple[pl.DataFrame, str]:
    """Requests of a recording by arrival, and in words where their lengths come from; a line that was cut is left out.

    Raises:
        DataError: It has no requests, or too many to be held.
    """
    import numpy as np
    import polars as pl

    random, tokens, cut = np.random.default_rng(seed), dict.fromkeys(AXES, 0.0), 0
    parts: list[list[Column]] = []
    hits = prompts = 0.0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if (drawn := _draw(record, random)) is not None:
                parts.append(drawn)
                for axis in AXES:
                    tokens[axis] += record["lengths"][axis]["tokens"]
            hits += record["tokens"].get("cached_tokens", 0.0)
            prompts += record["tokens"].get("input_tokens", 0.0)
        except (ValueError, KeyError, TypeError, AttributeError):
            cut += 1
    total = sum(len(part[0]) for part in parts)
    if not total:
        reason = "no request ended in its time, or the server publishes no histograms of lengths"
        raise DataError(f"{path}: a recording without requests: {reason}", code="no-requests", trace=str(path))
    if total > MOST_REQUESTS:
        message = f"{path}: {count_of(total, 'request')}, more than {MOST_REQUESTS:,}. Give a part of its lines"
        raise DataError(message, code="too-many", requests=total)
    arrival_s, *ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    rows = zip(AXES.items(), ends[::2], ends[1::2], strict=True)
    columns = {name: _lengths(low, high, tokens[axis], random) for (axis, name), low, high in rows}
    if hits and prompts:
        columns["cached_tokens"] = (columns["input_tokens"] * min(1.0, hits / prompts)).astype(np.int64)
    frame = pl.DataFrame(columns | {"arrival_s": arrival_s - arrival_s.min()}).sort("arrival_s")
    words = (
        f"drawn with seed {seed} from a server's histograms, input and output apart; arrivals are when requests ended"
    )
    sums = {axis: float(columns[name].sum()) for axis, name in AXES.items()}
    if wrong := [axis for axis, made in sums.items() if abs(made - tokens[axis]) > 0.02 * tokens[axis] + total]:
        words += f"; the server's sums of {' and '.join(wrong)} tokens contradict its histograms, which were taken"
    return frame, words + (f"; {count_of(cut, 'line')} cut or damaged" if cut else "")


def _draw(record: Mapping[str, Any], random: np.random.Generator) -> list[Column] | None:
    """When the requests of a line came, and between which lengths each lies: of inputs, of outputs."""
    import numpy as np

    lengths = record["lengths"]
    if any(axis not in lengths for axis in AXES):
        return None
    counts = {axis: np.array(lengths[axis]["counts"], dtype=np.int64) for axis in AXES}
    requests, most = (end(int(own.sum()) for own in counts.values()) for end in (min, max))
    if not 0 < requests <= most <= MOST_REQUESTS:
        return None
    columns = [record["time_unix_s"] - record["seconds"] * random.random(requests)]
    for axis, own in counts.items():
        ends = np.repeat(np.array(lengths[axis]["ends"], dtype=float), own, axis=0)
        if not (np.isfinite(columns[0]).all() and (ends >= 0).all() and (ends <= LONGEST).all()):
            raise ValueError("no times or lengths")
        columns += [*random.permutation(ends)[:requests].T]
    return columns


def _lengths(low: Column, high: Column, tokens: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Lengths above `low` and up to `high`, whose sum is near `tokens`."""
    import numpy as np

    share = random.random(low.size)

    def drawn(power: float) -> NDArray[np.int64]:
        made: NDArray[np.int64] = np.maximum(1.0, np.ceil(low + (high - low) * share**power)).astype(np.int64)
        return made

    # The higher the power the shorter: halve the range of its logarithm.
    least, most = -10.0, 10.0
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if drawn(float(np.exp(middle))).sum() > tokens else (least, middle)
    return drawn(float(np.exp(most)))
