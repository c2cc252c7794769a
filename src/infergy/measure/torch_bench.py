"""The workloads of a calibration in torch, on one GPU: copies, matmuls, attention, chains of small kernels.

Operands are random numbers, since a GPU draws less power over zeros. Kernels are launched by CUDA graphs where they can
be, as an engine does it, so that the host's speed is not in the windows. On a CPU the calls run one after the other:
that only shows that they run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle, islice
from typing import Any

from infergy.engines import EngineOutOfMemoryError
from infergy.errors import EngineError
from infergy.measure.calibration_work import Traits, look_nowhere
from infergy.measure.loads import torch_on
from infergy.records.calibration import ATTENTION, COPY, LAUNCH, PRODUCT, Workload

GRAPH_S = 0.005
"""A graph holds calls for about so long: launching the graph itself is then negligible."""

MOST_CALLS = 2000
"""Of a graph."""

CHUNK_S = 0.04
"""Calls go into the GPU's queue by so much at a time, and `QUEUED` of these wait in it: reading the meter takes
milliseconds."""

QUEUED = 2
PROBES = 5
FP8_CAPABILITY = (8, 9)
LARGE_L2 = 2**27
"""Where torch does not report it: more than any GPU of the catalog has."""

Call = Callable[[], object]


class TorchBench:
    """Runs workloads on torch's first GPU, which is metered as `uuid`; None runs them on the CPU.

    Raises:
        MissingError: torch, its CUDA or that GPU is missing.
    """

    def __init__(self, uuid: str | None) -> None:
        self.has_gpu = uuid is not None
        self._device = "cpu" if uuid is None else "cuda:0"
        if uuid is None:
            import torch

            self.torch: Any = torch
            self.traits = Traits(memory_bytes=2**30, l2_bytes=2**20, has_fp8=False)
        else:
            self.torch = torch_on(uuid)
            device = self.torch.cuda.get_device_properties(0)
            self.traits = Traits(
                memory_bytes=int(device.total_memory),
                l2_bytes=int(getattr(device, "L2_cache_size", LARGE_L2)),
                has_fp8=(device.major, device.minor) >= FP8_CAPABILITY,
            )
        self.name = f"torch {self.torch.__version__}"

    def sync(self) -> None:
        """Wait until the GPU has finished."""
        if self.has_gpu:
            self.torch.cuda.synchronize()

    def load(self, work: Workload) -> TorchWork:
        """Allocate operands, load kernels, run them once, capture a graph.

        Raises:
            EngineOutOfMemoryError: The operands do not fit.
            EngineError: The GPU or the library cannot do it.
        """
        try:
            with self.torch.inference_mode():
                return TorchWork(self, work, *self._calls(work))
        except (RuntimeError, NotImplementedError) as error:
            self.close()
            # OutOfMemoryError is a RuntimeError; cuBLAS has an error of its own for it.
            if isinstance(error, self.torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
                message = f"{work.name}: out of memory"
                raise EngineOutOfMemoryError(message, is_usable=True, workload=work.name) from error
            message = f"{work.name}: {str(error).splitlines()[0]}"
            raise EngineError(message, code="engine-failed", workload=work.name, reason=type(error).__name__) from error

    def close(self) -> None:
        """Give cached memory back."""
        if self.has_gpu:
            # Fails too after an error that CUDA does not recover from; the next workload reports it.
            with suppress(RuntimeError):
                self.torch.cuda.empty_cache()

    def _calls(self, work: Workload) -> tuple[str, list[Call]]:
        """Which kernels, and a call for each copy of the operands."""
        torch, random = self.torch, self._random
        if work.kind == COPY:
            source, target = (random(work.sizes[0] // 2) for _ in range(2))
            return "copy_", [lambda: target.copy_(source)]
        if work.kind == PRODUCT:
            return ("_scaled_mm" if work.dtype == "fp8" else "mm"), list(self._matmuls(work))
        if work.kind == ATTENTION:
            return "scaled_dot_product_attention, heads grouped", list(self._attentions(work))
        if work.kind == LAUNCH:
            a, b = (random(work.sizes[0]) for _ in range(2))
            # Each addition waits for the one before.
            return "add", [lambda: torch.add(a, b, alpha=1e-6, out=a)]
        message = f"{work.name}: torch on one GPU has no workload of kind {work.kind}"
        raise EngineError(message, code="no-kernel", workload=work.name, kind=work.kind)

    def _random(self, *shape: int) -> Any:
        return self.torch.randn(*shape, device=self._device, dtype=self.torch.bfloat16)

    def _matmuls(self, work: Workload) -> Iterator[Call]:
        rows, depth, columns = work.sizes
        torch, x, out = self.torch, self._random(rows, depth), self._random(rows, columns)
        x8 = x.to(torch.float8_e4m3fn) if work.dtype == "fp8" else None
        scale = torch.ones((), device=x.device, dtype=torch.float32)
        for _ in range(work.copies):
            # Weights lie as a linear layer's do: the sum runs over what is contiguous.
            weight = self._random(columns, depth)
            if work.dtype == "fp8":
                weight = weight.to(torch.float8_e4m3fn).t()
                yield lambda weight=weight: torch._scaled_mm(  # type: ignore[misc]
                    x8, weight, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
                )
            else:
                weight = weight.t()
                yield lambda weight=weight: torch.mm(x, weight, out=out)  # type: ignore[misc]

    def _attentions(self, work: Workload) -> Iterator[Call]:
        """By cuDNN's kernel where it runs, the fastest on an H100; else by the next of torch's order."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        batch, context, heads, cache_heads, head = work.sizes
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        # One token of each of the heads that share a cache is to attention as many tokens of one head.
        query = self._random(batch, cache_heads, heads // cache_heads, head)

        def attend(keys: Any, values: Any) -> object:
            with sdpa_kernel([*order, SDPBackend.MATH], set_priority=True):
                return self.torch.nn.functional.scaled_dot_product_attention(query, keys, values)

        for _ in range(work.copies):
            cache = [self._random(batch, cache_heads, context, head) for _ in range(2)]
            yield lambda cache=cache: attend(*cache)  # type: ignore[misc]


class TorchWork:
    """Calls in a graph, or one by one; `how` says which kernels."""

    def __init__(self, bench: TorchBench, work: Workload, how: str, calls: list[Call]) -> None:
        self._bench, self._calls = bench, calls
        for call in (*calls[:2], *calls[:2]):
            call()
        call_s = max(1e-7, self._seconds(lambda: self._repeat(PROBES)) / PROBES)
        # Each copy of the operands has its turn equally often.
        self._in_step = len(calls) * max(1, round(min(MOST_CALLS, GRAPH_S / call_s) / len(calls)))
        self._graph = self._capture() if work.in_graph and bench.has_gpu else None
        self.in_graph = self._graph is not None
        self.how = f"{how}, {'in a CUDA graph' if self.in_graph else 'one by one'}"
        self._step()
        self._steps = max(1, round(CHUNK_S / max(1e-6, self._seconds(self._step))))

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        """Keep the queue filled for so long and wait until it is empty; returns how many calls were done.

        `look` is called once, about half-way, while the GPU has work in its queue.
        """
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
            # Stopped by a busy host between the two reads of the clock, it was past the end at once.
            look()
        self._bench.sync()
        return calls

    def close(self) -> None:
        """Drop graph and operands."""
        self._graph, self._calls = None, []
        self._bench.close()

    def _repeat(self, count: int) -> None:
        for call in islice(cycle(self._calls), count):
            call()

    def _step(self) -> None:
        if self._graph is None:
            self._repeat(self._in_step)
        else:
            self._graph.replay()

    def _seconds(self, do: Callable[[], None]) -> float:
        self._bench.sync()
        begun_s = time.monotonic()
        do()
        self._bench.sync()
        return time.monotonic() - begun_s

    def _mark(self, marks: deque[Any]) -> None:
        """Wait until at most `QUEUED` chunks are in the queue."""
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
            self._repeat(2)
        cuda.current_stream().wait_stream(side)
        cuda.synchronize()
        graph = cuda.CUDAGraph()
        try:
            with cuda.graph(graph):
                self._repeat(self._in_step)
        except RuntimeError as error:
            if isinstance(error, self._bench.torch.OutOfMemoryError):
                raise
            cuda.synchronize()
            return None
        return graph
