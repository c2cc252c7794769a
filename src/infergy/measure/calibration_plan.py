"""Which work a calibration repeats on a GPU of some memory, cache and arithmetic. Standard library only.

The order is that of what a window teaches: whoever has a small budget gets the first ones, which bear on each constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infergy.records.calibration import ATTENTION, COPY, IDLE, LAUNCH, PRODUCT, REDUCE, Workload

WIDTHS = {"bfloat16": 2, "fp8": 1}

PAST_CACHE = 8
"""Operands that are cycled over take so many times the L2 cache: none is still there when its turn comes."""

SHARE_OF_MEMORY = 0.6
"""Of the GPU's memory, what one workload may take: libraries and whoever shares the GPU need the rest."""

WEIGHTS = ((4096, 14336), (8192, 28672))
"""A matrix of the feed-forward part of Llama-3.1-8B, and one of the 70B."""

ROWS = (1, 16, 64, 256)
COPIES = (2**28, 2**30, 2**32)
HEADS, CACHE_HEADS, HEAD = 32, 8, 128
"""Attention of Llama-3.1-8B."""

ATTENTIONS = ((32, 2048), (128, 2048), (32, 8192), (128, 8192))
LAUNCHED = 64 * 4096
"""Numbers that a small kernel works on: the hidden states of 64 sequences in an 8B model, which stay in L2."""

SUMS = (2**14, 2**28)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the plan needs to know of a GPU.

    Attributes:
        memory_bytes: All of it.
        l2_bytes: Its L2 cache.
        has_fp8: Whether its tensor cores know fp8.
    """

    memory_bytes: int
    l2_bytes: int
    has_fp8: bool


def idle_work() -> Workload:
    """No work at all."""
    return Workload(name="idle", kind=IDLE, launches=0.0, in_graph=False)


def make_works(traits: Traits) -> tuple[Workload, ...]:
    """All work on one GPU, the most telling first; what its memory cannot hold is made smaller or left out."""
    found: dict[str, Workload] = {}
    for one in _by_worth(traits):
        fitting = fit_memory(one, traits)
        if fitting is not None:
            found.setdefault(fitting.name, fitting)
    return tuple(found.values())


def _by_worth(traits: Traits) -> Iterator[Workload]:
    small, large = WEIGHTS
    yield launch_work(in_graph=True)
    yield copy_work(COPIES[1])
    yield product_work(16, *large, "bfloat16", traits)
    yield product_work(8192, 8192, 8192, "bfloat16", traits)
    yield attention_work(*ATTENTIONS[1], traits)
    if traits.has_fp8:
        yield product_work(16, *large, "fp8", traits)
        yield product_work(8192, 8192, 8192, "fp8", traits)
    yield product_work(4096, 4096, 4096, "bfloat16", traits)
    yield attention_work(*ATTENTIONS[2], traits)
    for rows in (1, 64, 256, 16):
        for weights in (small, large):
            yield product_work(rows, *weights, "bfloat16", traits)
    for size in (16384, 2048):
        yield product_work(size, size, size, "bfloat16", traits)
    for sizes in ATTENTIONS:
        yield attention_work(*sizes, traits)
    for size in (COPIES[0], COPIES[2]):
        yield copy_work(size)
    yield launch_work(in_graph=False)
    yield cached_copy_work(traits)
    if traits.has_fp8:
        for size in (4096, 16384):
            yield product_work(size, size, size, "fp8", traits)
        for rows in (1, 64, 256, 16):
            for weights in (small, large):
                yield product_work(rows, *weights, "fp8", traits)


def copy_work(size: int) -> Workload:
    """A copy from device to device, read once and written once."""
    return Workload(name=f"copy {_size(size)}", kind=COPY, sizes=(size,), memory_bytes=2.0 * size)


def cached_copy_work(traits: Traits) -> Workload:
    """A copy that stays within half of the L2 cache: nothing is asked of memory."""
    size = max(2**20, traits.l2_bytes // 4)
    return Workload(name=f"copy {_size(size)} within L2", kind=COPY, sizes=(size,))


def product_work(rows: int, depth: int, columns: int, dtype: str, traits: Traits) -> Workload:
    """Some rows times weights; of a few rows the weights are what moves, as in a decode step."""
    width = WIDTHS[dtype]
    weights = width * depth * columns
    is_square = rows == depth == columns
    operands = weights + width * rows * depth + 2 * rows * columns
    if is_square:
        # Counted only where it must go through memory; tiles that are read again come from L2.
        moved, copies = float(operands if operands > traits.l2_bytes else 0), 1
    else:
        moved, copies = float(weights), _copies(weights, traits)
    return Workload(
        name=f"product {rows} x {depth} x {columns} {dtype}",
        kind=PRODUCT,
        sizes=(rows, depth, columns),
        dtype=dtype,
        memory_bytes=moved,
        flops=2.0 * rows * depth * columns,
        copies=copies,
    )


def attention_work(batch: int, context: int, traits: Traits) -> Workload:
    """One new token of each sequence against its cache, keys and values."""
    cache = 2 * batch * context * CACHE_HEADS * HEAD * WIDTHS["bfloat16"]
    return Workload(
        name=f"attention {batch} x {context}",
        kind=ATTENTION,
        sizes=(batch, context, HEADS, CACHE_HEADS, HEAD),
        memory_bytes=float(cache),
        flops=4.0 * batch * context * HEADS * HEAD,
        # Split over the context, and put together by a second kernel.
        launches=2.0,
        copies=_copies(cache, traits),
    )


def launch_work(*, in_graph: bool) -> Workload:
    """A chain of small kernels, each of which waits for the one before."""
    return Workload(
        name="launch in a graph" if in_graph else "launch one by one",
        kind=LAUNCH,
        sizes=(LAUNCHED,),
        in_graph=in_graph,
    )


def sum_works(gpus: int = 2) -> tuple[Workload, ...]:
    """Sums over GPUs, of which each holds its part: small ones for the latency, large ones for the link."""
    return tuple(
        # What each GPU sends and gets is 2 (G - 1) / G of the buffer (how nccl-tests count bus bandwidth).
        Workload(
            name=f"sum of {_size(size)} over {gpus} GPUs",
            kind=REDUCE,
            sizes=(size,),
            in_graph=False,
            gpus=gpus,
            link_bytes=2.0 * (gpus - 1) / gpus * size,
        )
        for size in SUMS
    )


def needed_bytes(work: Workload) -> float:
    """What the operands of a workload take in memory."""
    if work.kind == COPY:
        return 2.0 * work.sizes[0]
    if work.kind == PRODUCT:
        rows, depth, columns = work.sizes
        width = WIDTHS[work.dtype]
        # Random bfloat16 numbers come first, whatever they are narrowed to.
        return float(width * depth * columns * work.copies + 2 * depth * columns + 4 * rows * (depth + columns))
    if work.kind == ATTENTION:
        return work.memory_bytes * work.copies
    return float(sum(work.sizes))


def fit_memory(work: Workload, traits: Traits) -> Workload | None:
    """The workload, or a smaller one of its kind that fits; None if there is none."""
    while needed_bytes(work) > SHARE_OF_MEMORY * traits.memory_bytes:
        smaller = shrink(work, traits)
        if smaller is None:
            return None
        work = smaller
    return work


def shrink(work: Workload, traits: Traits) -> Workload | None:
    """Half as large a copy or batch, or half as many copies of weights; None where it would no longer tell the same."""
    if work.kind == COPY and work.memory_bytes and work.sizes[0] // 2 >= PAST_CACHE * traits.l2_bytes // 2:
        return copy_work(work.sizes[0] // 2)
    if work.kind == ATTENTION and work.sizes[0] > 1:
        return attention_work(work.sizes[0] // 2, work.sizes[1], traits)
    if work.kind == PRODUCT and work.copies > 2:
        return replace(work, copies=work.copies // 2)
    return None


def _copies(operand_bytes: int, traits: Traits) -> int:
    return max(1, -(-PAST_CACHE * traits.l2_bytes // operand_bytes))


def _size(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"
