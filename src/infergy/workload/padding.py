"""What static batching pads: a batch works on prompts that are all as long as its longest. Standard library only.

Continuous batching (vLLM) packs tokens of any requests into a step and pads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infergy.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Prompts in static batches: real tokens against those that the engine works on.

    Attributes:
        batch: Requests a batch; the last one may have fewer.
        batches: How many.
        by_arrival: Whether requests are in order of arrival; False where the log tells no arrivals and its own order
            stands for it.
        real_tokens: Of all prompts.
        padded_tokens: Of all batches, each prompt as long as the longest beside it, in that order.
        waste: Share of `padded_tokens` that is padding, 0 to 1.
        sorted_padded_tokens: The same with all requests sorted by length first: the least of any order, for the batch
            that is not full stands where it costs least.
        sorted_waste: Share of `sorted_padded_tokens` that is padding.
    """

    batch: int
    batches: int
    by_arrival: bool
    real_tokens: int
    padded_tokens: int
    waste: float
    sorted_padded_tokens: int
    sorted_waste: float


def padded_tokens(lengths: Sequence[int], batch: int) -> int:
    """Tokens of all prompts, each as long as the longest of its batch, in the order given."""
    chunks = (lengths[start : start + batch] for start in range(0, len(lengths), batch))
    return sum(max(chunk) * len(chunk) for chunk in chunks)


def _least(longest_first: Sequence[int], batch: int) -> int:
    """Padded tokens of batches of neighbours in order of length; a batch that is not full, at the best place."""
    rest = len(longest_first) % batch
    before, after = longest_first[::batch], longest_first[rest::batch]
    if not rest:
        return batch * sum(before)
    # Full batches of the longest come before it, and those after it begin `rest` places later.
    least = cost = rest * before[0] + batch * sum(after)
    for place in range(len(after)):
        cost += batch * (before[place] - after[place]) + rest * (before[place + 1] - before[place])
        least = min(least, cost)
    return least


def find_padding(lengths: Sequence[int], batch: int, *, by_arrival: bool) -> Padding:
    """What batches of `batch` prompts pad, as the prompts come and sorted by length.

    Raises:
        UsageError: `batch` is no size of a batch, or there are no prompts.
    """
    if batch < 1:
        raise UsageError.bad_value("--batch", batch, "a whole number of requests, at least 1")
    if not lengths:
        raise UsageError("no requests to put into batches", code="no-requests")
    real = sum(lengths)
    padded = padded_tokens(lengths, batch)
    by_length = _least(sorted(lengths, reverse=True), batch)
    return Padding(
        batch=batch,
        batches=-(-len(lengths) // batch),
        by_arrival=by_arrival,
        real_tokens=real,
        padded_tokens=padded,
        waste=_waste(real, padded),
        sorted_padded_tokens=by_length,
        sorted_waste=_waste(real, by_length),
    )


def _waste(real: int, padded: int) -> float:
    return 1 - real / padded if padded else 0.0
