"""When requests arrive: times drawn from a law and a seed, or taken from a trace; the same for every engine.

Standard library only, but for `trace_times`.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Sequence
from itertools import accumulate

from infergy.errors import DataError
from infergy.records.arrivals import Arrivals
from infergy.units import MICROSECONDS_PER_SECOND, count_of

DIGEST_LENGTH = 12


def draw_times(arrivals: Arrivals, count: int, seed: int) -> tuple[float, ...]:
    """Seconds at which `count` requests arrive, ascending, the first at 0.

    The gaps are gamma variates, shape = burstiness, scale = 1 / (rate × burstiness), exponential for Poisson's law.
    They are then stretched so that the last request comes at (count − 1) / rate: each run has exactly its rate, as in
    vLLM's ``benchmarks/serve.py`` (`get_request`), which stretches to count / rate since it also waits for the first.

    Args:
        arrivals: A law with a rate.
        count: Requests, at least 2.
        seed: Of the gaps.

    Raises:
        DataError: All gaps of an extremely bursty law are 0, so that nothing can be stretched.
    """
    assert arrivals.rate_per_s is not None
    shape = arrivals.burstiness
    source = random.Random(f"{seed}:{arrivals.law}:{shape!r}")
    gaps = (source.gammavariate(shape, 1 / shape) for _ in range(count - 1))
    return _scaled((0.0, *accumulate(gaps)), arrivals)


def trace_times(source: str, count: int, arrivals: Arrivals) -> tuple[float, ...]:
    """Seconds at which the first `count` requests of a trace arrive, ascending, the first at 0.

    Args:
        source: Name or path of the trace.
        count: Requests, at least 2.
        arrivals: If it has a rate, the times are stretched so that the last request comes at (count − 1) / rate.

    Raises:
        DataError: The trace has no times, fewer requests, or all of these at one instant and a rate is asked for.
    """
    import polars

    from infergy.workload.trace import open_trace

    frame = open_trace(source).frame
    if "arrival_s" not in frame.collect_schema().names():
        message = f"{source}: it tells no times of arrival. Give a rate instead: poisson4"
        raise DataError(message, code="no-arrivals", trace=source)
    times = frame.select(polars.col("arrival_s").drop_nulls().sort()).collect()["arrival_s"].head(count).to_list()
    if len(times) < count:
        words = f"{source}: it tells {len(times)} times of arrival, {count} are asked for. Give a smaller batch"
        raise DataError(words, code="too-few-requests", trace=source, found=len(times), expected=count)
    return _scaled(tuple(time_s - times[0] for time_s in times), arrivals)


def trace_lengths(source: str, first: int, count: int) -> tuple[tuple[int, int], ...]:
    """Input and output tokens of `count` requests of a trace, in the order of the log, `first` of them passed by.

    Failed requests are not among them, and a prompt is whole, what a prefix cache served included.

    Raises:
        DataError: The trace has fewer.
    """
    import polars

    from infergy.workload.trace import open_trace

    rows = open_trace(source).frame.filter(polars.col("output_tokens") > 0, polars.col("input_tokens") > 0)
    found = rows.select("input_tokens", "output_tokens").slice(first, count).collect().rows()
    if len(found) < count:
        message = f"{source}: {count_of(len(found), 'request')} from {first} on, {count} are asked for. Ask for fewer"
        raise DataError(message, code="too-few-requests", trace=source, found=len(found), expected=count)
    return tuple((int(inputs), int(outputs)) for inputs, outputs in found)


def hash_lengths(lengths: Sequence[tuple[int, int]]) -> str:
    """SHA-256 over lengths, in hexadecimal."""
    digest = hashlib.sha256()
    for pair in lengths:
        digest.update(array("I", pair).tobytes())
    return digest.hexdigest()


def _scaled(times: Sequence[float], arrivals: Arrivals) -> tuple[float, ...]:
    """Times at the rate of `arrivals`, if it has one, in whole microseconds: what a row and a plan keep."""
    factor = 1.0
    if arrivals.rate_per_s is not None:
        if not times[-1] > 0:
            message = (
                f"{arrivals.label}: all {count_of(len(times), 'request')} arrive at one instant; no rate can be made "
                "of it"
            )
            raise DataError(message, code="bad-trace", trace=arrivals.trace, reason="one instant")
        factor = (len(times) - 1) / arrivals.rate_per_s / times[-1]
    return tuple(round(time_s * factor * MICROSECONDS_PER_SECOND) / MICROSECONDS_PER_SECOND for time_s in times)


def hash_times(times: Sequence[float]) -> str:
    """SHA-256 over the times in microseconds, in hexadecimal: equal if and only if they are."""
    return hashlib.sha256(array("q", (round(one * MICROSECONDS_PER_SECOND) for one in times)).tobytes()).hexdigest()
