"""The work of a calibration in torch: copies, products, attention, chains of small kernels, on one GPU.

Operands are random numbers, since a GPU draws less power over zeros. Kernels are launched by CUDA graphs where they can
be, as an engine does it, so that the host's speed is not in the windows. On a CPU the same work runs one call after the
other: that shows that it runs, and nothing else.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

from infergy.engines import EngineOutOfMemoryError
from infergy.errors import EngineError
from infergy.measure.bench import look_nowhere
from infergy.measure.calibration_plan import Traits
from infergy.measure.loads import torch_on
from infergy.records.calibration import ATTENTION, COPY, LAUNCH, PRODUCT, Workload

GRAPH_S = 0.005
"""A graph holds calls for so long: launching the graph itself is then lost among them."""

MOST_CALLS = 2000
"""Of a graph."""

CHUNK_S = 0.04
"""Calls go into the GPU's queue by so much at a time."""

QUEUED = 2
"""So many of them wait in the queue, at least: a look at the meter takes some milliseconds."""

PROBES = 5
FP8_CAPABILITY = (8, 9)
LARGE_L2 = 2**27
"""Where torch does not tell: more than any GPU of the catalogue has."""

Call = Callable[[], object]


class TorchBench:
    """Work on torch's first GPU.

    Args:
        uuid: The GPU that is metered; None runs on the CPU.

    Raises:
        MissingError: torch, its CUDA or that GPU is missing.
    """

    def __init__(self, uuid: str | None) -> None:
        if uuid is None:
            import torch

            self.torch: Any = torch
            self.traits = Traits(memory_bytes=2**30, l2_bytes=2**20, has_fp8=False)
        else:
            self.torch = torch_on(uuid)
            found = self.torch.cuda.get_device_properties(0)
            self.traits = Traits(
                memory_bytes=int(found.total_memory),
                l2_bytes=int(getattr(found, "L2_cache_size", LARGE_L2)),
                has_fp8=(found.major, found.minor) >= FP8_CAPABILITY,
            )
        self.device = "cpu" if uuid is None else "cuda:0"
        self.has_gpu = uuid is not None
        self.name = f"torch {self.torch.__version__}"

    def sync(self) -> None:
        """Wait until the GPU has done all."""
        if self.has_gpu:
            self.torch.cuda.synchronize()

    def load(self, work: Workload) -> TorchWork:
        """Allocate, run once, capture."""
        try:
            with self.torch.inference_mode():
                how, calls = self._calls(work)
                return TorchWork(self, work, how, calls)
        except (RuntimeError, NotImplementedError) as error:
            self.free()
            # OutOfMemoryError is a RuntimeError; cuBLAS has an error of its own for it.
            if isinstance(error, self.torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
                raise EngineOutOfMemoryError(
                    f"{work.name}: out of memory", is_usable=True, workload=work.name
                ) from error
            message = f"{work.name}: {str(error).splitlines()[0]}"
            raise EngineError(message, code="engine-failed", workload=work.name, reason=type(error).__name__) from error

    def free(self) -> None:
        """Give cached memory back."""
        if self.has_gpu:
            # After an error that CUDA does not recover from it fails too; the next work tells of that.
            with suppress(RuntimeError):
                self.torch.cuda.empty_cache()

    def close(self) -> None:
        """Likewise."""
        self.free()

    def _calls(self, work: Workload) -> tuple[str, list[Call]]:
        """Which kernels, and a call for each copy of the operands."""
        if work.kind == COPY:
            return "copy_", self._copies(work)
        if work.kind == PRODUCT:
            return ("_scaled_mm" if work.dtype == "fp8" else "mm"), list(self._products(work))
        if work.kind == ATTENTION:
            return self._attention(work)
        if work.kind == LAUNCH:
            a, b = (self._random(work.sizes[0]) for _ in range(2))
            # Each addition waits for the one before.
            return "add", [lambda: self.torch.add(a, b, alpha=1e-6, out=a)]
        message = f"{work.name}: torch on one GPU has no work of kind {work.kind}"
        raise EngineError(message, code="no-kernel", workload=work.name, kind=work.kind)

    def _random(self, *shape: int) -> Any:
        return self.torch.randn(*shape, device=self.device, dtype=self.torch.bfloat16)

    def _copies(self, work: Workload) -> list[Call]:
        source, target = (self._random(work.sizes[0] // 2) for _ in range(2))
        return [lambda: target.copy_(source)]

    def _products(self, work: Workload) -> Iterator[Call]:
        rows, depth, columns = work.sizes
        torch, x = self.torch, self._random(rows, depth)
        # Weights lie as a linear layer's do: the sum runs over what is contiguous.
        if work.dtype != "fp8":
            out = self._random(rows, columns)
            for _ in range(work.copies):
                weight = self._random(columns, depth).t()
                yield lambda weight=weight: torch.mm(x, weight, out=out)  # type: ignore[misc]
            return
        narrow = torch.float8_e4m3fn
        scale = torch.ones((), device=self.device, dtype=torch.float32)
        x8 = x.to(narrow)
        for _ in range(work.copies):
            weight = self._random(columns, depth).to(narrow).t()
            yield lambda weight=weight: torch._scaled_mm(  # type: ignore[misc]
                x8, weight, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
            )

    def _attention(self, work: Workload) -> tuple[str, list[Call]]:
        """By the fastest of the kernels that torch has, as an engine would choose."""
        batch, context, heads, cache_heads, head = work.sizes
        caches = [tuple(self._random(batch, cache_heads, context, head) for _ in range(2)) for _ in range(work.copies)]
        query = self._random(batch, heads, 1, head)
        best: tuple[float, str, Callable[[Any, Any], object]] | None = None
        reasons = []
        for name, attend in self._ways(query, cache_heads):
            try:
                seconds = self._probe([lambda attend=attend: attend(*caches[0])])  # type: ignore[misc]
            except RuntimeError as error:
                reasons.append(f"{name}: {str(error).splitlines()[0]}")
                continue
            if best is None or seconds < best[0]:
                best = (seconds, name, attend)
        if best is None:
            message = f"{work.name}: no kernel of torch does it ({'; '.join(reasons)})"
            raise EngineError(message, code="no-kernel", workload=work.name, reasons=reasons)
        _, name, attend = best
        return f"scaled_dot_product_attention, {name}", [
            lambda cache=cache: attend(*cache)  # type: ignore[misc]
            for cache in caches
        ]

    def _ways(self, query: Any, cache_heads: int) -> Iterator[tuple[str, Callable[[Any, Any], object]]]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        attention = self.torch.nn.functional.scaled_dot_product_attention
        batch, heads, _, head = query.shape
        # One token of each of the heads that share a cache is to attention as many tokens of one head.
        grouped = query.view(batch, cache_heads, heads // cache_heads, head)

        def way(backend: Any, q: Any, enable_gqa: bool) -> Callable[[Any, Any], object]:
            def attend(k: Any, v: Any) -> object:
                with warnings.catch_warnings(), sdpa_kernel(backend):
                    # Why a kernel will not do is told as warnings, one for each reason.
                    warnings.simplefilter("ignore")
                    return attention(q, k, v, enable_gqa=enable_gqa)

            return attend

        fast = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
        # Plain products copy the cache: only where nothing else runs.
        for backend in fast if self.has_gpu else (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            yield f"{backend.name.lower()}, heads grouped", way(backend, grouped, False)
        if self.has_gpu:
            yield "flash_attention, enable_gqa", way(SDPBackend.FLASH_ATTENTION, query, True)

    def _probe(self, calls: Sequence[Call]) -> float:
        """Seconds of a call, roughly, once its kernels are loaded."""
        for call in (*calls[:2], *calls[:2]):
            call()
        self.sync()
        begun_s = time.monotonic()
        for _, call in zip(range(PROBES), cycle(calls), strict=False):
            call()
        self.sync()
        return (time.monotonic() - begun_s) / PROBES


class TorchWork:
    """Calls in a graph, or one by one."""

    def __init__(self, bench: TorchBench, work: Workload, how: str, calls: list[Call]) -> None:
        self._bench = bench
        self._calls = calls
        call_s = max(1e-7, bench._probe(calls))
        self._in_step = self._whole_rounds(min(MOST_CALLS, GRAPH_S / call_s))
        self._graph = self._capture() if work.in_graph and bench.has_gpu else None
        self.in_graph: bool | None = self._graph is not None
        self.how = f"{how}, {'in a CUDA graph' if self.in_graph else 'one by one'}"
        self._steps = 1
        step_s = max(1e-6, self._step_s())
        self._steps = max(1, round(CHUNK_S / step_s))

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        """Keep the queue filled for so long, and wait until it is empty."""
        begun_s = time.monotonic()
        marks: deque[Any] = deque()
        calls, has_looked = 0, False
        with self._bench.torch.inference_mode():
            while not calls or time.monotonic() < begun_s + seconds:
                for _ in range(self._steps):
                    self._step()
                calls += self._steps * self._in_step
                self._mark(marks)
                if not has_looked and time.monotonic() >= begun_s + seconds / 2:
                    look()
                    has_looked = True
        if not has_looked:
            # Stopped by a busy host between the two looks at the clock, it was past the end at once.
            look()
        self._bench.sync()
        return calls

    def close(self) -> None:
        """Drop graph and operands."""
        self._graph = None
        self._calls = []
        self._bench.free()

    def _whole_rounds(self, wanted: float) -> int:
        """So many calls, roughly, that each copy of the operands has its turn equally often."""
        return len(self._calls) * max(1, round(wanted / len(self._calls)))

    def _round(self) -> None:
        for _, call in zip(range(self._in_step), cycle(self._calls), strict=False):
            call()

    def _step(self) -> None:
        if self._graph is None:
            self._round()
        else:
            self._graph.replay()

    def _step_s(self) -> float:
        self._step()
        self._bench.sync()
        begun_s = time.monotonic()
        self._step()
        self._bench.sync()
        return time.monotonic() - begun_s

    def _mark(self, marks: deque[Any]) -> None:
        """Wait until no more than some chunks are in the queue."""
        if not self._bench.has_gpu:
            return
        event = self._bench.torch.cuda.Event()
        event.record()
        marks.append(event)
        while len(marks) > QUEUED:
            marks.popleft().synchronize()

    def _capture(self) -> Any:
        """The calls as a graph; None where a kernel cannot be captured."""
        cuda = self._bench.torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            # Libraries allocate what they need for a stream at its first call, which a graph must not hold.
            for call in self._calls[:2]:
                call()
        cuda.current_stream().wait_stream(side)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                self._round()
        except RuntimeError as error:
            if isinstance(error, self._bench.torch.OutOfMemoryError):
                raise
            cuda.synchronize()
            return None
        return graph
