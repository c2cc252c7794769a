"""Work that makes a GPU draw power on demand, for `infergy doctor --meter`."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from typing import Any

from infergy.errors import MissingError
from infergy.meters.simulated import SimulatedGpu

OFF, HALF, FULL = 0.0, 0.5, 1.0

SIZE = 8192
"""Side of the square matrices: a product takes 1 to 10 ms, and no cache holds them."""

QUEUED = 3
"""Products in the GPU's queue: enough that it never waits for us, few enough that it stops within some milliseconds."""

FEED_S = 0.0005
"""Between two looks at the queue: far less than what is in it takes."""


def torch_on(uuid: str) -> Any:
    """The module torch, once its first GPU is known to be the metered one.

    Raises:
        MissingError: torch, its CUDA or that GPU is missing.
    """
    # As NVML counts them; it must be set before CUDA starts.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        import torch
    except ImportError as error:
        raise MissingError.package("a load on the GPU", "torch", "pip install torch", str(error)) from error
    if not torch.cuda.is_available():
        reason = "The installed one sees no GPU"
        raise MissingError.package("a load on the GPU", "torch with CUDA", "pip install torch", reason)
    found = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    if found and found not in uuid:
        message = f"torch's first GPU is {found}, the metered one {uuid}: type CUDA_VISIBLE_DEVICES={uuid} before it"
        raise MissingError(message, code="gpus-differ", found=found, expected=uuid)
    return torch


class SimulatedLoad:
    """Draws power on the simulated GPU while its clock passes."""

    def __init__(self, gpu: SimulatedGpu, full_w: float) -> None:
        self.name = f"simulated, {full_w:g} W"
        self._gpu, self._full_w = gpu, full_w

    def set(self, level: float) -> None:
        """Draw idle power (0), full power (1), or what is between."""
        self._gpu.load_w = self._gpu.idle_w + level * (self._full_w - self._gpu.idle_w)


class TorchLoad:
    """Matmuls in a queue that a thread keeps filled; half of the load is an addition, which is bound by memory.

    Raises:
        MissingError: torch, its CUDA or the metered GPU is missing.
    """

    def __init__(self, uuid: str) -> None:
        torch = torch_on(uuid)
        self.name = f"torch {torch.__version__}: products of {SIZE} × {SIZE} float16 matrices, additions for half"
        self._torch = torch
        try:
            self._a, self._b, self._c = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.float16) for _ in range(3))
            # The first product loads the library.
            torch.matmul(self._a, self._b, out=self._c)
            torch.cuda.synchronize()
        except RuntimeError as error:
            # Out of memory is one of them.
            message = f"a load does not start on {uuid}: {error}. What runs there: nvidia-smi"
            raise MissingError(message, code="gpu-busy", uuid=uuid, reason=str(error)) from error
        self._events: deque[Any] = deque()
        self._level = OFF
        self._lock = threading.Lock()
        self._is_wanted = threading.Event()
        threading.Thread(target=self._feed, name="load", daemon=True).start()

    def set(self, level: float) -> None:
        """Draw idle power (0), about half of what the load can draw above it (0.5), or all (1)."""
        with self._lock:
            self._level = level
            self._events.clear()
            self._torch.cuda.synchronize()
            self._top_up()
        if level == OFF:
            self._is_wanted.clear()
        else:
            self._is_wanted.set()

    def _feed(self) -> None:
        # In a thread: reading a meter may take its driver 20 ms.
        while True:
            self._is_wanted.wait()
            with self._lock:
                self._top_up()
            time.sleep(FEED_S)

    def _top_up(self) -> None:
        if self._level == OFF:
            return
        while self._events and self._events[0].query():
            self._events.popleft()
        while len(self._events) < QUEUED:
            self._work()
            event = self._torch.cuda.Event()
            event.record()
            self._events.append(event)

    def _work(self) -> None:
        if self._level == FULL:
            self._torch.matmul(self._a, self._b, out=self._c)
            return
        for _ in range(8):
            self._torch.add(self._a, self._b, out=self._c)
