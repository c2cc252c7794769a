"""Every NVIDIA board of this machine, whether it can be metered or not: what `infergy doctor` tells of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infergy.errors import MissingError
from infergy.meters import nvml as nvml_meter
from infergy.meters.nvml import NvmlMeter
from infergy.records import GpuIdentity
from infergy.units import WATTS_PER_MILLIWATT


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One board; None where the driver does not tell.

    Attributes:
        index: NVML's, in PCI order.
        meter: Reads this board alone; its counter may not answer.
        power_limit_low_w: The lowest power limit that it could be set to, and `power_limit_high_w` the highest.
        has_mig: Whether it is cut into slices now.
    """

    index: int
    gpu: GpuIdentity
    meter: NvmlMeter
    power_limit_low_w: float | None
    power_limit_high_w: float | None
    has_mig: bool | None


@contextmanager
def open_boards() -> Iterator[tuple[Board, ...]]:
    """All boards, whatever CUDA_VISIBLE_DEVICES says.

    Raises:
        MissingError: NVML or a driver is missing, or a board may not be opened.
    """
    nvml = nvml_meter.load_nvml()
    try:
        try:
            boards = tuple(_board(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            message = f"NVML starts, but a GPU cannot be opened: {error}. Look at: nvidia-smi; ls -l /dev/nvidia*"
            raise MissingError(message, code="nvml-unavailable", reason=str(error)) from error
        yield boards
    finally:
        nvml.nvmlShutdown()


def _board(nvml: Any, index: int) -> Board:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid = nvml.nvmlDeviceGetUUID(handle)
    gpu = nvml_meter.identity(nvml, uuid, handle)
    limits_mw = nvml_meter.ask(nvml, lambda: nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
    low_w, high_w = (None, None) if limits_mw is None else (limit * WATTS_PER_MILLIWATT for limit in limits_mw)
    mig = nvml_meter.ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    return Board(
        index=index,
        gpu=gpu,
        meter=NvmlMeter(nvml, {uuid: handle}, (gpu,)),
        power_limit_low_w=low_w,
        power_limit_high_w=high_w,
        has_mig=None if mig is None else bool(mig),
    )
