"""What a load sends and when, the same for every engine: token ids from a seed; arrivals from a seed or a trace.

Standard library only, but for what is read from a trace.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain

from infergy.errors import DataError
from infergy.records import Load
from infergy.records.cell import Arrivals, Links
from infergy.records.engine_setup import without_defaults
from infergy.units import MICROSECONDS_PER_SECOND, count_of

DIGEST_LENGTH = 12


def make_prompts(
    load: Load, vocabulary: int, seed: int, lengths: Sequence[tuple[int, int]] = (), links: Links | None = None
) -> tuple[tuple[int, ...], ...]:
    """Uniform random token ids, `load.batch` prompts of `load.input_tokens` each, in [0, `vocabulary`).

    Prompts of one length are the same sequence in every cell: a larger batch only takes more of them. In a replay each
    prompt has the input tokens of its own of `lengths`, and begins with the stretches that `links` says.
    """
    widths = [tokens for tokens, _ in lengths] or [load.input_tokens] * load.batch
    prompts = {width: _random_ids(width, count, vocabulary, seed) for width, count in Counter(widths).items()}
    own = (next(prompts[width]) for width in widths)
    if links is None or not links.block_tokens:
        return tuple(own)
    size, stretches = links.block_tokens, {pair for path in links.prefixes for pair in path}
    tokens = {
        (number, blocks): next(_random_ids(blocks * size, 1, vocabulary, f"{seed}:shared:{number}"))
        for number, blocks in stretches
    }
    begins = (tuple(chain.from_iterable(map(tokens.__getitem__, path))) for path in links.prefixes)
    return tuple((begin + rest[len(begin) :])[: len(rest)] for begin, rest in zip(begins, own, strict=True))


def _random_ids(width: int, count: int, vocabulary: int, seed: int | str) -> Iterator[tuple[int, ...]]:
    source = random.Random(f"{seed}:{width}")
    ids = [value % vocabulary for value in array("I", source.randbytes(4 * width * count))]
    return (tuple(ids[i * width : (i + 1) * width]) for i in range(count))


def hash_prompts(prompts: tuple[tuple[int, ...], ...]) -> str:
    """SHA-256 over lengths and token ids, in hexadecimal."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(len(prompt).to_bytes(4, "little"))
        digest.update(array("I", prompt).tobytes())
    return digest.hexdigest()


def draw_times(arrivals: Arrivals, count: int, seed: int) -> tuple[float, ...]:
    """Seconds at which `count` requests arrive, ascending, the first at 0.

    The gaps are gamma variates, shape = burstiness, scale = 1 / (rate × burstiness); exponential for a Poisson process.
    They are then stretched so that the last request comes at (count − 1) / rate: each run has exactly its rate, as in
    vLLM's ``benchmarks/serve.py`` (`get_request`), which stretches to count / rate since it also waits for the first.

    Args:
        arrivals: With a rate.
        count: Requests, at least 2.
        seed: Of the gaps.

    Raises:
        DataError: All gaps of an extremely bursty process are 0, so that nothing can be stretched.
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
        message = f"{source}: the trace has no arrival times. Give a rate instead: poisson4"
        raise DataError(message, code="no-arrivals", trace=source)
    times = frame.select(polars.col("arrival_s").drop_nulls().sort()).collect()["arrival_s"].head(count).to_list()
    if len(times) < count:
        message = f"{source}: {len(times)} arrival times, expected {count}. Give a smaller batch"
        raise DataError(message, code="too-few-requests", trace=source, found=len(times), expected=count)
    return _scaled(tuple(time_s - times[0] for time_s in times), arrivals)


def hash_lengths(lengths: Sequence[tuple[int, int]]) -> str:
    """SHA-256 over lengths, in hexadecimal."""
    return hashlib.sha256(array("I", (tokens for pair in lengths for tokens in pair)).tobytes()).hexdigest()


def hash_links(links: Links) -> str:
    """SHA-256 over how requests depend on each other, in hexadecimal."""
    return hashlib.sha256(json.dumps(without_defaults(links)).encode()).hexdigest()


def hash_times(times: Sequence[float]) -> str:
    """SHA-256 over the times in microseconds, in hexadecimal."""
    return hashlib.sha256(array("q", (round(t * MICROSECONDS_PER_SECOND) for t in times)).tobytes()).hexdigest()


def _scaled(times: Sequence[float], arrivals: Arrivals) -> tuple[float, ...]:
    """Times at the rate of `arrivals`, if it has one, in whole microseconds: what a row and a plan keep."""
    factor = 1.0
    if arrivals.rate_per_s is not None:
        if not times[-1] > 0:
            message = f"{arrivals.label}: all {count_of(len(times), 'request')} arrive at one instant, so have no rate"
            raise DataError(message, code="bad-trace", trace=arrivals.trace, reason="one instant")
        factor = (len(times) - 1) / arrivals.rate_per_s / times[-1]
    return tuple(round(time_s * factor * MICROSECONDS_PER_SECOND) / MICROSECONDS_PER_SECOND for time_s in times)
