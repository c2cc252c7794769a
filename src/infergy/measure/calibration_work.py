"""The workloads of a calibration, sized for a GPU, and a simulated GPU that runs them. Standard library only.

The most informative workloads come first: a small budget still has one window for each constant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from infergy.catalog.gpus import Gpu
from infergy.meters.simulated import SimulatedNode
from infergy.records.calibration import ATTENTION, COPY, IDLE, LAUNCH, PRODUCT, Workload

PAST_CACHE = 8
"""Operands that are cycled over take this many times the L2 cache, so that none is still in it when its turn comes."""

SHARE_OF_MEMORY = 0.6
"""Of the GPU's memory, what one workload may take."""

WEIGHTS = ((4096, 14336), (8192, 28672))
"""A feed-forward matrix of Llama-3.1-8B, and one of the 70B."""

HEADS, CACHE_HEADS, HEAD = 32, 8, 128
"""Attention of Llama-3.1-8B."""

LAUNCHED = 64 * 4096
"""Numbers in a small kernel: the hidden states of 64 sequences of an 8B model, which stay in L2."""

IDLE_WORK = Workload(name="idle", kind=IDLE, launches=0.0, in_graph=False)

L2_BYTES = 60 * 2**20
CORNER, LIMIT, SLOWING = 4.0, 32.0, 1.5
"""Of the simulated GPU: exponents of the roofline and the power limit, as in `infergy.cost.step`."""

IDLE_SHARE, LIMIT_SHARE, FLOP_SHARE_AT = 0.175, 0.994, 0.6
"""Loaded idle power and power at the limit, over TDP; the share of the peak to which `flop_share` belongs."""

RANGES = {
    "weight_efficiency": (0.65, 0.95),
    "cache_efficiency": (0.5, 0.95),
    "compute_efficiency": (0.7, 0.88),
    "launch_s": (0.6e-6, 3e-6),
    "busy_share": (0.05, 0.19),
    "byte_j": (0.65e-10, 1.15e-10),
    "flop_share": (0.5, 1.0),
    "cache_energy": (0.9, 1.4),
    "fp8_bytes": (0.9, 1.6),
    "fp8_flops": (0.9, 1.6),
    "fp8_byte_energy": (0.8, 1.5),
    "fp8_flop_energy": (0.45, 1.0),
}
"""From which each constant of a simulated GPU is drawn; names and units as in `infergy.cost.constants`."""

FIXED = {"eager_s": 6e-6, "copy_efficiency": 0.85, "cached_bytes_per_s": 8e12, "scatter": 0.01}
"""Launch of a kernel outside of graphs, bandwidths of copies, and sd of log seconds and log watts between windows."""


def look_nowhere() -> None:
    """Read nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Memory and L2 cache of a GPU in bytes, and whether its tensor cores support fp8."""

    memory_bytes: int
    l2_bytes: int
    has_fp8: bool


def make_works(traits: Traits) -> tuple[Workload, ...]:
    """All workloads, the most informative first; what the memory cannot hold is made smaller or left out."""
    fitting = (fit_memory(work, traits) for work in _by_worth(traits))
    # Of two that shrink to the same one, the first counts.
    return tuple({work.name: work for work in fitting if work is not None}.values())


def _by_worth(traits: Traits) -> Iterator[Workload]:
    def matmuls(rows: tuple[int, ...], dtype: str) -> Iterator[Workload]:
        for count in rows:
            for weights in WEIGHTS:
                yield product_work(count, *weights, dtype, traits)

    def squares(sides: tuple[int, ...], dtype: str) -> Iterator[Workload]:
        for side in sides:
            yield product_work(side, side, side, dtype, traits)

    yield launch_work(in_graph=True)
    yield copy_work(2**30)
    yield product_work(16, *WEIGHTS[1], "bfloat16", traits)
    yield from squares((8192,), "bfloat16")
    yield attention_work(128, 2048, traits)
    if traits.has_fp8:
        yield product_work(16, *WEIGHTS[1], "fp8", traits)
        yield from squares((8192,), "fp8")
    yield from squares((4096,), "bfloat16")
    yield attention_work(32, 8192, traits)
    yield from matmuls((1, 64, 256, 16), "bfloat16")
    yield from squares((16384, 2048), "bfloat16")
    yield attention_work(32, 2048, traits)
    yield attention_work(128, 8192, traits)
    yield copy_work(2**28)
    yield copy_work(2**32)
    yield launch_work(in_graph=False)
    yield cached_copy_work(traits)
    if traits.has_fp8:
        yield from squares((4096, 16384), "fp8")
        yield from matmuls((1, 64, 256, 16), "fp8")


def copy_work(size: int) -> Workload:
    """A copy of `size` bytes from device to device: read once and written once."""
    return Workload(name=f"copy {_size(size)}", kind=COPY, sizes=(size,), memory_bytes=2.0 * size)


def cached_copy_work(traits: Traits) -> Workload:
    """A copy within half of the L2 cache: no memory traffic."""
    size = max(2**20, traits.l2_bytes // 4)
    return Workload(name=f"copy {_size(size)} within L2", kind=COPY, sizes=(size,))


def product_work(rows: int, depth: int, columns: int, dtype: str, traits: Traits) -> Workload:
    """A matmul of some rows with weights; with few rows the weights are what moves, as in a decode step."""
    width = _width(dtype)
    weights = width * depth * columns
    moved, copies = float(weights), _copies(weights, traits)
    if rows == depth == columns:
        # Counted only where operands exceed the cache; tiles that are read again come from L2.
        operands = weights + width * rows * depth + 2 * rows * columns
        moved, copies = float(operands if operands > traits.l2_bytes else 0), 1
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
    """One new token per sequence against its KV cache; two kernels: split over the context, and combined."""
    cache = 2 * batch * context * CACHE_HEADS * HEAD * _width("bfloat16")
    return Workload(
        name=f"attention {batch} x {context}",
        kind=ATTENTION,
        sizes=(batch, context, HEADS, CACHE_HEADS, HEAD),
        memory_bytes=float(cache),
        flops=4.0 * batch * context * HEADS * HEAD,
        launches=2.0,
        copies=_copies(cache, traits),
    )


def launch_work(*, in_graph: bool) -> Workload:
    """A chain of small kernels, each waiting for the one before."""
    name = "launch in a graph" if in_graph else "launch one by one"
    return Workload(name=name, kind=LAUNCH, sizes=(LAUNCHED,), in_graph=in_graph)


def needed_bytes(work: Workload) -> float:
    """Memory of a workload's operands."""
    if work.kind == PRODUCT:
        rows, depth, columns = work.sizes
        weights = _width(work.dtype) * depth * columns * work.copies
        # Random numbers are bfloat16 before they are narrowed.
        return float(weights + 2 * depth * columns + 4 * rows * (depth + columns))
    if work.kind == ATTENTION:
        return work.memory_bytes * work.copies
    return 2.0 * work.sizes[0]


def fit_memory(work: Workload, traits: Traits) -> Workload | None:
    """The workload, or a smaller one of its kind that fits; None if there is none."""
    fitting: Workload | None = work
    while fitting is not None and needed_bytes(fitting) > SHARE_OF_MEMORY * traits.memory_bytes:
        fitting = shrink(fitting, traits)
    return fitting


def shrink(work: Workload, traits: Traits) -> Workload | None:
    """Half the copy or batch, or half the copies of weights; None where it would no longer measure the same."""
    if work.kind == COPY and work.memory_bytes and work.sizes[0] // 2 >= PAST_CACHE * traits.l2_bytes // 2:
        return copy_work(work.sizes[0] // 2)
    if work.kind == ATTENTION and work.sizes[0] > 1:
        return attention_work(work.sizes[0] // 2, work.sizes[1], traits)
    if work.kind == PRODUCT and work.copies > 2:
        return replace(work, copies=work.copies // 2)
    return None


def _width(dtype: str) -> int:
    return 1 if dtype == "fp8" else 2


def _copies(operand_bytes: int, traits: Traits) -> int:
    return max(1, -(-PAST_CACHE * traits.l2_bytes // operand_bytes))


def _size(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def draw_truth(seed: int) -> dict[str, float]:
    """Constants of a simulated GPU, uniform over `RANGES`."""
    draw = random.Random(seed).uniform
    return {name: draw(*limits) for name, limits in RANGES.items()} | FIXED


class SimulatedBench:
    """Runs workloads on a simulated GPU with known constants, which a fit must find again."""

    name = "simulated"

    def __init__(self, node: SimulatedNode, gpu: Gpu, truth: Mapping[str, float], seed: int = 0) -> None:
        self.traits = Traits(memory_bytes=gpu.memory_bytes, l2_bytes=L2_BYTES, has_fp8="fp8" in gpu.peak_flops)
        self._node, self._gpu, self._truth = node, gpu, truth
        self._random = random.Random(f"{seed} {gpu.name}")

    def load(self, work: Workload) -> SimulatedWork:
        """The workload, with this window's scatter."""
        call_s, power_w = self._expect(work)
        off_s, off_w = (self._random.lognormvariate(0.0, self._truth["scatter"]) for _ in range(2))
        return SimulatedWork(self._node, call_s * off_s, power_w * off_w)

    def _expect(self, work: Workload) -> tuple[float, float]:
        """Seconds of a call and watts, without scatter."""
        gpu, truth, is_fp8 = self._gpu, self._truth, work.dtype == "fp8"
        kind = {COPY: "copy_efficiency", ATTENTION: "cache_efficiency"}.get(work.kind, "weight_efficiency")
        memory_s = work.memory_bytes * (truth["fp8_bytes"] if is_fp8 else 1.0) / gpu.memory_bandwidth / truth[kind]
        peak = gpu.peak_flops.get("fp8" if is_fp8 else "bfloat16", gpu.peak_flops["bfloat16"])
        compute_s = work.flops * (truth["fp8_flops"] if is_fp8 else 1.0) / (truth["compute_efficiency"] * peak)
        call_s = (memory_s**CORNER + compute_s**CORNER) ** (1 / CORNER)
        call_s += work.launches * truth["launch_s" if work.in_graph else "eager_s"]
        if work.kind == COPY and not work.memory_bytes:
            call_s += 2 * work.sizes[0] / truth["cached_bytes_per_s"]
        base_w = (IDLE_SHARE + truth["busy_share"]) * gpu.tdp_w
        flop_j = truth["flop_share"] * gpu.tdp_w / (FLOP_SHARE_AT * gpu.peak_flops["bfloat16"])
        more = truth["cache_energy"] if work.kind == ATTENTION else truth["fp8_byte_energy"] if is_fp8 else 1.0
        added_j = truth["byte_j"] * work.memory_bytes * more
        added_j += flop_j * work.flops * (truth["fp8_flops"] * truth["fp8_flop_energy"] if is_fp8 else 1.0)
        room_j = (LIMIT_SHARE * gpu.tdp_w - base_w) * call_s
        slower = (1 + (added_j / room_j) ** LIMIT) ** (1 / (LIMIT * (1 + SLOWING)))
        call_s *= slower
        return call_s, base_w + added_j * slower**-SLOWING / call_s

    def close(self) -> None:
        """Nothing is held."""


class SimulatedWork:
    """Time that passes at some power; `run` and `close` are those of `infergy.measure.torch_bench.TorchWork`."""

    how, in_graph = "simulated", None

    def __init__(self, node: SimulatedNode, call_s: float, power_w: float) -> None:
        self._node, self._call_s, self._power_w = node, call_s, power_w

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        """Let whole calls pass."""
        calls = max(1, round(seconds / self._call_s))
        first = calls // 2
        self._node.advance(first * self._call_s, self._power_w)
        look()
        self._node.advance((calls - first) * self._call_s, self._power_w)
        return calls

    def close(self) -> None:
        """Nothing is held."""
