"""Sums over two GPUs for a calibration: a process for each GPU, torch.distributed between them.

The measuring process touches no CUDA here: it opens a window, tells the others how many sums to do, and waits.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from infergy.errors import EngineError
from infergy.measure.bench import look_nowhere
from infergy.measure.calibration_plan import Traits
from infergy.records.calibration import REDUCE, Workload

START_S = 120.0
"""Importing torch and making a communicator takes up to half a minute on a slow disk."""

ANSWER_S = 60.0
"""Beyond the time asked for, before a process is taken for stuck."""

IN_STEP = 20
PROBED = 100


class SumBench:
    """Processes that add up buffers; they end when it is closed, or dies.

    Args:
        uuids: The GPUs, as CUDA_VISIBLE_DEVICES shall name them; empty for two processes on the CPU.
    """

    def __init__(self, uuids: Sequence[str]) -> None:
        self.traits = Traits(memory_bytes=0, l2_bytes=0, has_fp8=False)
        self.name = "torch.distributed, " + ("nccl" if uuids else "gloo")
        ranks = max(2, len(uuids))
        self._folder = tempfile.TemporaryDirectory(prefix="infergy-")
        store = str(Path(self._folder.name) / "store")
        context = multiprocessing.get_context("spawn")
        self._reason: str | None = None
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, ranks, store, list(uuids), theirs), daemon=True, name=f"sum-{rank}"
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            self._answers(START_S)
        except EngineError:
            self.close()
            raise

    def load(self, work: Workload) -> SumWork:
        """Allocate the buffers and add them up for the first time."""
        if work.kind != REDUCE:
            message = f"{work.name}: several GPUs have sums to do only"
            raise EngineError(message, code="no-kernel", workload=work.name)
        in_graph = all(self.ask(("load", work.sizes[0]), ANSWER_S))
        seconds = max(float(one) for one in self.ask(("run", PROBED), ANSWER_S))
        return SumWork(self, in_graph, max(1e-7, seconds / PROBED))

    def ask(self, order: tuple[str, int], patience_s: float, look: Callable[[], None] = look_nowhere) -> list[Any]:
        """Give all the same order and wait for all answers."""
        if self._reason is not None:
            raise EngineError(self._reason, code="engine-failed", reason=self._reason)
        try:
            for pipe in self._pipes:
                pipe.send(order)
        except OSError as error:
            raise self._broken("a process died") from error
        look()
        return self._answers(patience_s)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            # They end by themselves when their pipe does; one that hangs in a sum does not.
            process.join(0.0 if self._reason else 5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def _answers(self, patience_s: float) -> list[Any]:
        """The answer of each process, in the order of GPUs.

        Raises:
            EngineError: One failed, died or did not answer.
        """
        answers: list[Any] = [None] * len(self._pipes)
        waiting = dict(zip(self._pipes, range(len(self._pipes)), strict=True))
        end_s = time.monotonic() + patience_s
        while waiting:
            # Whichever comes first: where one GPU's process failed, the others wait for it for ever.
            ready: list[Any] = wait(list(waiting), max(0.0, end_s - time.monotonic()))
            if not ready:
                raise self._broken(f"no answer in {patience_s:g} s")
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    is_good, answers[rank] = pipe.recv()
                except (EOFError, OSError) as error:
                    raise self._broken(f"the process of GPU {rank} died") from error
                if not is_good:
                    raise self._broken(f"GPU {rank}: {answers[rank]}")
        return answers

    def _broken(self, why: str) -> EngineError:
        """From now on nothing is asked: who waits for a lost partner answers nothing."""
        self._reason = f"sums over GPUs: {why}"
        return EngineError(self._reason, code="engine-failed", reason=self._reason)


class SumWork:
    """Buffers of one size on all GPUs."""

    def __init__(self, bench: SumBench, in_graph: bool, call_s: float) -> None:
        self.how = f"all_reduce, {'in a CUDA graph' if in_graph else 'one by one'}"
        self.in_graph: bool | None = in_graph
        self._bench = bench
        self._call_s = call_s

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        """As many sums as take about so long: all GPUs must do equally many."""
        calls = IN_STEP * max(1, round(seconds / self._call_s / IN_STEP))

        def wait_and_look() -> None:
            time.sleep(seconds / 2)
            look()

        self._bench.ask(("run", calls), 2 * seconds + ANSWER_S, wait_and_look)
        return calls

    def close(self) -> None:
        """The next size takes the place of this one."""


def _serve(rank: int, ranks: int, store: str, uuids: list[str], pipe: Any) -> None:
    """One GPU's process: orders in, answers out, until the pipe ends."""
    if uuids:
        # Set before torch starts CUDA: whichever process this is, it sees the metered GPUs, in the meter's order.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    else:
        # Else it looks for the host's name, which not every machine can resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        summing = _Summing(rank, ranks, store, has_gpu=bool(uuids))
        pipe.send((True, "ready"))
        while True:
            verb, number = pipe.recv()
            pipe.send((True, summing.load(number) if verb == "load" else summing.run(number)))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - whatever fails here is told to the process that waits
        text = str(error).strip().splitlines() or [type(error).__name__]
        pipe.send((False, f"{type(error).__name__}: {text[0]}"))
    finally:
        # Not destroy_process_group: it waits for the others, which may be gone.
        pipe.close()
        os._exit(0)


class _Summing:
    """Sums in this process."""

    def __init__(self, rank: int, ranks: int, store: str, *, has_gpu: bool) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist, self._has_gpu = torch, dist, has_gpu
        self._device = f"cuda:{rank}" if has_gpu else "cpu"
        if has_gpu:
            torch.cuda.set_device(rank)
        dist.init_process_group(
            "nccl" if has_gpu else "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks
        )
        self._graph: Any = None
        self._buffer: Any = None

    def load(self, size: int) -> bool:
        """Allocate a buffer; returns whether a CUDA graph adds it up."""
        self._graph = None
        self._buffer = self._torch.randn(max(1, size // 2), device=self._device, dtype=self._torch.bfloat16)
        for _ in range(IN_STEP):
            self._add()
        self._sync()
        if self._has_gpu:
            self._graph = self._capture()
        return self._graph is not None

    def run(self, calls: int) -> float:
        self._sync()
        begun_s = time.monotonic()
        for step in range(-(-calls // IN_STEP)):
            if self._graph is not None:
                self._graph.replay()
            else:
                for _ in range(IN_STEP):
                    self._add()
            # Some chunks in the queue, not all of three seconds.
            if step % 64 == 63:
                self._sync()
        self._sync()
        return time.monotonic() - begun_s

    def _add(self) -> None:
        # The largest instead of the sum moves as many bytes, and does not grow past what bfloat16 holds.
        self._dist.all_reduce(self._buffer, op=self._dist.ReduceOp.MAX)

    def _sync(self) -> None:
        if self._has_gpu:
            self._torch.cuda.synchronize()

    def _capture(self) -> Any:
        """The sums as a graph, as engines launch them; None where this cannot be had."""
        graph = self._torch.cuda.CUDAGraph()
        try:
            # Another thread of torch.distributed looks at events meanwhile, which a global capture forbids.
            with self._torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for _ in range(IN_STEP):
                    self._add()
        except RuntimeError:
            self._torch.cuda.synchronize()
            return None
        return graph
