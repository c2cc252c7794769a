"""Requests as columns: what a server is asked and when, from any trace, task or histogram.

    Trace.requests ──▶ Requests ──▶ window (part of its time), slice (part of its order), take, all_at_once

An index is the same request in every column. Requests stand in order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from infergy.errors import DataError, UsageError
from infergy.units import count_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Number = TypeVar("Number", np.int64, np.float64)

AT_ONCE = "all at once was asked for"
WHOLE_REQUESTS = 1_000_000
"""A trace of so many requests is simulated whole."""
FASTEST = 1e6
"""Of factors on the rate of arrivals: past it, all requests come at once."""
SAMPLING_ERROR = 0.01
"""Half-width of the 90 % interval of summed tokens, relative."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrefixBlocks:
    """Hashes of the blocks that prompts consist of: equal hashes are equal blocks after equal prefixes.

    Attributes:
        ids: Hashes of all requests, one after the other.
        offsets: Where the hashes of each request begin in `ids`, and at last their number; shape (requests + 1,).
        block_tokens: Tokens of a block; the last block of a prompt may be shorter. Tokens of a prompt past its blocks
            are shared with no other request.
    """

    ids: Integers
    offsets: Integers
    block_tokens: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, request: int) -> Integers:
        """The hashes of one request."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def take(self, index: Integers) -> PrefixBlocks:
        """The hashes of the requests at `index`, in its order."""
        import numpy as np

        counts = self.offsets[index + 1] - self.offsets[index]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        # The k-th hash of a request lies k places after its first.
        shift = np.repeat(self.offsets[index] - offsets[:-1], counts)
        ids = self.ids[np.arange(offsets[-1]) + shift]
        return PrefixBlocks(ids=ids, offsets=offsets, block_tokens=self.block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """Rows of a log that are not among its requests, or not in its order.

    Attributes:
        failed: Rows without output, or of no request to a model (embeddings, spans of agents), left out.
        unreadable: Rows whose tokens cannot be read, and lines that are no rows, left out.
        chunks: Rows that are further parts of an answer, of which the last counts.
        without_input: Rows with output and 0 input tokens, left out: engines reject an empty prompt.
        out_of_order: Requests that arrived before the one above them in the log; all are sorted by arrival.
        without_session: Requests without the id of a session, in a log that has sessions, or no later than the request
            that they follow: each is one of its own.
        without_blocks: Requests without hashes of blocks, in a log that has them: their prompts share no prefix.
    """

    failed: int = 0
    unreadable: int = 0
    chunks: int = 0
    without_input: int = 0
    out_of_order: int = 0
    without_session: int = 0
    without_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Requests in order of arrival, as columns of equal length.

    Attributes:
        input_tokens: Whole prompts, cached tokens included; at least 1.
        output_tokens: Generated tokens; at least 1.
        arrival_s: Seconds after the first request of the trace, or after the start of the window; ascending. None if
            unknown: all arrive at once, but for what `gap_s` says.
        order_reason: Why `arrival_s` is None; None if it is known.
        cached_tokens: Input tokens that the log reports as served by a prefix cache, 0 where it reports none; None if
            it reports none at all.
        prefix_blocks: Hashes of the prompts' blocks; None if the log has none.
        after: Index of the previous request of the same session, less than the request's own; -1 if there is none, or
            it is not among these. None if the log knows no sessions. Without `gap_s` it states the order alone.
        gap_s: Seconds between the answer to `after` and this request, which then arrives at that time whatever
            `arrival_s` says; 0 where `after` is -1. None if unknown.
        set_aside: What was left out of the log.
        lengths_from: Where the lengths of a task come from, in words; None for a trace, whose lengths are its own.
        origin_unix_s: Unix time of `arrival_s` 0, UTC where the log names no zone; None where its times are no dates.
    """

    source: str
    input_tokens: Integers
    output_tokens: Integers
    arrival_s: Floats | None = None
    order_reason: str | None = None
    cached_tokens: Integers | None = None
    prefix_blocks: PrefixBlocks | None = None
    after: Integers | None = None
    gap_s: Floats | None = None
    set_aside: SetAside = field(default_factory=SetAside)
    lengths_from: str | None = None
    origin_unix_s: float | None = None

    def __post_init__(self) -> None:
        names = ("output_tokens", "arrival_s", "cached_tokens", "after", "gap_s", "prefix_blocks")
        lengths = {name: len(column) for name in names if (column := getattr(self, name)) is not None}
        count = count_of(len(self), "request")
        wrong = [f"{name} has {length:,} values for {count}" for name, length in lengths.items() if length != len(self)]
        wrong = wrong or (self._wrong_values() if len(self) else [])
        if wrong:
            raise DataError(f"{self.source}: {'; '.join(wrong)}", code="bad-trace", trace=self.source, reasons=wrong)

    def _wrong_values(self) -> list[str]:
        import numpy as np

        times, after, gap_s = self.arrival_s, self.after, self.gap_s
        least = min(self.input_tokens.min(), self.output_tokens.min())
        ascends = times is None or bool(times[0] >= 0 and times[-1] < math.inf and (times[1:] >= times[:-1]).all())
        follows = after is None or bool(((after >= -1) & (after < np.arange(len(self)))).all())
        waits = gap_s is None or (after is not None and bool(((gap_s >= 0) & (gap_s < math.inf)).all()))
        laws = {
            "a request needs at least 1 input token and 1 output token": least >= 1,
            "arrival_s must ascend from 0 s or later, and be finite": ascends,
            "after must be -1 or less than the request's own index": follows,
            "gap_s must be at least 0 s and finite, with the column after": waits,
        }
        return [law for law, holds in laws.items() if not holds]

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def is_timed(self) -> bool:
        """Whether it is known when requests arrive: at times of the log, or after the answers of their sessions."""
        return self.arrival_s is not None or self.gap_s is not None

    @property
    def duration_s(self) -> float | None:
        """Seconds from the first arrival to the last; None if unknown."""
        if self.arrival_s is None or not len(self):
            return None
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @property
    def rate_per_s(self) -> float | None:
        """Requests after the first, divided by the duration; None if unknown, or if all arrive at one instant."""
        return (len(self) - 1) / self.duration_s if self.duration_s else None

    def window(self, *, start_s: float = 0.0, duration_s: float | None = None, speed: float = 1.0) -> Requests:
        """The requests that arrive in `duration_s` of wall time, `speed` times as fast, from `start_s` of the trace on.

        The window ``[start_s, start_s + duration_s × speed)`` is in seconds after the first request of the trace.
        Arrivals become seconds after the start of the window, divided by `speed`, as do gaps.

        Args:
            start_s: Where the window begins, in the trace's own time.
            duration_s: Its length in wall time; None goes to the end of the trace.
            speed: Trace seconds in one wall second.

        Raises:
            UsageError: No arrival times, no request in the window, or a time or speed out of range.
        """
        if not 0 < speed <= FASTEST:
            raise UsageError.bad_value("--speed", speed, f"a factor above 0 and up to {FASTEST:g}, as 2 or 0.5")
        if not 0 <= start_s < math.inf:
            raise UsageError.bad_value("--from", start_s, "a time of 0 s or later, as 10m")
        if duration_s is not None and not 0 < duration_s < math.inf:
            raise UsageError.bad_value("--for", duration_s, "a positive time, as 75s")
        if self.arrival_s is None:
            what = f"--from, --for and --speed need arrival times: {self.order_reason}"
            message = f"{self.source}: {what}. Choose by order instead: --requests N"
            raise UsageError(message, code="no-arrivals", trace=self.source, reason=self.order_reason)
        end_s = start_s + (math.inf if duration_s is None else duration_s * speed)
        first, last = self.arrival_s.searchsorted([start_s, end_s])
        if first == last:
            until = "on" if math.isinf(end_s) else f"to {end_s:g} s"
            message = (
                f"{self.source}: no request arrives from {start_s:g} s {until}; the last arrives at "
                f"{self.arrival_s[-1]:g} s. Choose another part: --from TIME --for TIME"
            )
            raise UsageError(message, code="no-requests", trace=self.source, from_s=start_s, for_s=duration_s)
        part = self._part(int(first), int(last))
        assert part.arrival_s is not None
        gap_s = None if part.gap_s is None else part.gap_s / speed
        arrival_s = (part.arrival_s - start_s) / speed
        origin = None if part.origin_unix_s is None else part.origin_unix_s + start_s
        return replace(part, arrival_s=arrival_s, gap_s=gap_s, origin_unix_s=origin)

    def speed_for(self, rate_per_s: float) -> float:
        """The factor that makes a rate of the mean rate of the arrivals; 1 where they are not known.

        Raises:
            UsageError: The rate is not above 0, or all requests come at one instant.
        """
        if not 0 < rate_per_s <= FASTEST:
            raise UsageError.bad_value("--rate", rate_per_s, f"requests per second, above 0 and up to {FASTEST:g}")
        if self.arrival_s is None:
            return 1.0
        if self.rate_per_s is None:
            message = f"{self.source}: --rate needs arrivals at several times: all requests come at one instant"
            raise UsageError(message, code="no-arrivals", trace=self.source, option="--rate")
        return rate_per_s / self.rate_per_s

    def at_random(self, rate_per_s: float, seed: int = 0) -> Requests:
        """The same requests, each after an exponential gap (a Poisson process of so many per second)."""
        import numpy as np

        gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, len(self))
        gaps[:1] = 0.0
        return replace(self, arrival_s=np.cumsum(gaps), order_reason=None, after=None, gap_s=None)

    def slice(self, first: int = 0, count: int | None = None) -> Requests:
        """`count` requests in order of arrival, `first` of them skipped; the earliest arrives at 0 s.

        Args:
            first: How many are skipped.
            count: How many are taken; None takes the rest.

        Raises:
            UsageError: There are fewer.
        """
        last = len(self) if count is None else first + count
        if first < 0 or last > len(self) or first >= last:
            wanted = f"{'the rest' if count is None else f'{count:,}'} from {first:,} on"
            message = f"{self.source}: {count_of(len(self), 'request')}, {wanted} asked for. Choose fewer: --requests N"
            raise UsageError(
                message, code="too-few-requests", trace=self.source, found=len(self), first=first, expected=count
            )
        part = self._part(first, last)
        return part if part.arrival_s is None else part.starting_at(float(part.arrival_s[0]))

    def starting_at(self, start_s: float) -> Requests:
        """The same requests, their arrivals counted from `start_s`; earlier ones, by rounding, arrive at 0 s."""
        assert self.arrival_s is not None
        origin = None if self.origin_unix_s is None else self.origin_unix_s + start_s
        return replace(self, arrival_s=(self.arrival_s - start_s).clip(min=0.0), origin_unix_s=origin)

    def take(self, chosen: NDArray[np.bool_] | Integers) -> Requests:
        """The requests that a mask or ascending indices choose; arrivals as they are.

        What follows a request that is not chosen begins a session of its own.
        """
        import numpy as np

        index = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        after, gap_s = None, _at(self.gap_s, index)
        if self.after is not None:
            # One more than the requests there are, so that -1 finds -1.
            places = np.full(len(self) + 1, -1, dtype=np.int64)
            places[index] = np.arange(len(index))
            after = places[self.after[index]]
            gap_s = None if gap_s is None else np.where(after < 0, 0.0, gap_s)
        return replace(
            self,
            input_tokens=self.input_tokens[index],
            output_tokens=self.output_tokens[index],
            arrival_s=_at(self.arrival_s, index),
            cached_tokens=_at(self.cached_tokens, index),
            prefix_blocks=None if self.prefix_blocks is None else self.prefix_blocks.take(index),
            after=after,
            gap_s=gap_s,
        )

    def all_at_once(self, reason: str = AT_ONCE) -> Requests:
        """The same requests, none waiting for another: no arrivals, no sessions."""
        return replace(self, arrival_s=None, order_reason=reason, after=None, gap_s=None)

    def _part(self, first: int, last: int) -> Requests:
        import numpy as np

        return self if (first, last) == (0, len(self)) else self.take(np.arange(first, last))


def _at(column: NDArray[Number] | None, index: Integers) -> NDArray[Number] | None:
    return None if column is None else column[index]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """A part of a trace that stands for others.

    Attributes:
        requests: What arrives in it, in seconds after its start; may be empty.
        start_s: Where it begins, in seconds after the first request of the trace; None if arrivals are unknown.
        duration_s: Its length; None if arrivals are unknown.
        weight: How many windows of the trace it stands for, itself included; at least 1.
    """

    requests: Requests
    start_s: float | None
    duration_s: float | None
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """Windows of a trace: a sum over the trace is the weighted sum over them.

    Attributes:
        source: Name of the trace, or its path.
        windows: In order of time; a single one of weight 1 is the whole trace.
        requests: Requests of the whole trace; `input_tokens` and `output_tokens` the same.
        duration_s: From the first arrival to the last; None if arrivals are unknown.
        relative_se: Standard error of any weighted sum of input and output tokens, relative to it, at most; 0 if whole.
    """

    source: str
    windows: tuple[Window, ...]
    requests: int
    input_tokens: int
    output_tokens: int
    duration_s: float | None
    relative_se: float
    set_aside: SetAside = field(default_factory=SetAside)

    @property
    def is_whole(self) -> bool:
        """Whether the trace is whole in one window."""
        return len(self.windows) == 1 and self.windows[0].weight == 1

    @property
    def is_timed(self) -> bool:
        """Whether the requests of all windows have arrival times."""
        return all(window.requests.is_timed for window in self.windows)

    def all_at_once(self) -> Sample:
        """The same requests without arrivals: all windows are one, which stands for the tokens of the trace."""
        return replace(self, windows=(_join(self),))


def whole(requests: Requests) -> Sample:
    """All requests in one window."""
    start_s = None if requests.arrival_s is None else 0.0
    window = Window(requests=requests, start_s=start_s, duration_s=requests.duration_s, weight=1.0)
    return Sample(
        source=requests.source,
        windows=(window,),
        requests=len(requests),
        input_tokens=int(requests.input_tokens.sum()),
        output_tokens=int(requests.output_tokens.sum()),
        duration_s=requests.duration_s,
        relative_se=0.0,
        set_aside=requests.set_aside,
    )


def _join(sample: Sample) -> Window:
    """The requests of all windows, one after the other, all at once: a window that stands for the trace's tokens."""
    first, *others = sample.windows
    requests, weight = first.requests, first.weight
    if others:
        requests = join_requests([window.requests for window in sample.windows])
        inputs, outputs = int(requests.input_tokens.sum()), int(requests.output_tokens.sum())
        weight = 2 / (inputs / sample.input_tokens + outputs / sample.output_tokens)
    return Window(requests=requests.all_at_once(), start_s=None, duration_s=None, weight=weight)


def join_requests(parts: Sequence[Requests]) -> Requests:
    """Requests of several parts of one trace, one part after the other, without arrivals and sessions."""
    import numpy as np

    def joined(name: str) -> Any:
        none = [np.zeros(len(part), dtype=np.int64) for part in parts]
        held = [getattr(part, name) for part in parts]
        return np.concatenate([zeros if own is None else own for own, zeros in zip(held, none, strict=True)])

    names = ("input_tokens", "output_tokens", "cached_tokens")
    columns = {name: joined(name) for name in names if any(getattr(part, name) is not None for part in parts)}
    blocks = [part.prefix_blocks for part in parts if part.prefix_blocks is not None]
    if blocks:
        counts = np.concatenate([np.diff(own.offsets) for own in blocks])
        ids = np.concatenate([own.ids for own in blocks])
        columns["prefix_blocks"] = replace(blocks[0], ids=ids, offsets=np.append(0, np.cumsum(counts)))
    return replace(parts[0].all_at_once(), **columns)
