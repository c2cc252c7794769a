"""Where a calibration runs: this machine's GPUs under torch, or simulated ones. Standard library and pynvml only."""

from __future__ import annotations

from importlib.util import find_spec

from infergy.errors import MissingError
from infergy.hardware.gpus import get_gpu
from infergy.measure.bench import Bench
from infergy.measure.calibrate import Station
from infergy.measure.simulated_bench import SimulatedBench, Truth
from infergy.meters.nvml import NvmlMeter
from infergy.meters.simulated import SimulatedMeter, pretend_node


def stations_here() -> tuple[Station, Station | str]:
    """The first visible GPU, and it with the second one, or why there is no second one.

    Raises:
        MissingError: NVML, a GPU or torch is missing.
    """
    meter = NvmlMeter.open(1)
    # Not imported yet: torch may wake the GPU, whose idle power is measured first.
    if find_spec("torch") is None:
        meter.close()
        raise MissingError.package("a calibration", "torch", "pip install torch", "No model, no engine is needed")

    def open_torch() -> Bench:
        from infergy.measure.torch_bench import TorchBench

        return TorchBench(meter.gpus[0].uuid)

    return Station(meter=meter, open_bench=open_torch), _pair_here()


def _pair_here() -> Station | str:
    try:
        meter = NvmlMeter.open(2)
    except MissingError as error:
        return str(error)
    names = {gpu.name for gpu in meter.gpus}
    if len(names) > 1:
        meter.close()
        return f"the first two GPUs differ ({', '.join(sorted(names))})"

    def open_sums() -> Bench:
        from infergy.measure.sum_bench import SumBench

        return SumBench([gpu.uuid for gpu in meter.gpus])

    return Station(meter=meter, open_bench=open_sums)


def simulated_stations(gpu: str, truth: Truth | None = None, seed: int = 0) -> tuple[Station, Station]:
    """Simulated GPUs of a kind, one and two, that obey some constants.

    Raises:
        UsageError: There is no such GPU.
    """
    chip = get_gpu(gpu)
    obeyed = truth or Truth.drawn(seed)

    def station(count: int) -> Station:
        node = pretend_node(chip, count)
        return Station(meter=SimulatedMeter(node), open_bench=lambda: SimulatedBench(node, chip, obeyed, seed))

    return station(1), station(2)
