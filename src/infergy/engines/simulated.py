"""A stand-in for any engine on the simulated GPU: each phase takes the time and joules of its forecast, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infergy.engines.protocol import Completion, EngineOutOfMemoryError, Work
from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape, forecast, largest_batch
from infergy.hardware.simulated import SimulatedGpu
from infergy.records import EngineSetup


class SimulatedEngine:
    """Plays the engine that a set-up names; needs neither it nor a GPU."""

    name = "simulated"
    packages: tuple[str, ...] = ()

    def __init__(self, device: SimulatedGpu, gpu: Gpu) -> None:
        self._device = device
        self._gpu = gpu

    def check(self, setup: EngineSetup) -> None:
        """Refuse what one simulated GPU cannot play."""
        if setup.tensor_parallel != 1:
            raise UsageError(f"tensor_parallel = {setup.tensor_parallel}: the simulated GPU is one")

    def open(self, setup: EngineSetup, config: Mapping[str, Any], seed: int) -> SimulatedSession:
        """Nothing is loaded."""
        shape = ModelShape.from_config(config, name=setup.model)
        return SimulatedSession(self._device, self._gpu, shape, setup)


class SimulatedSession:
    """Lets virtual time pass at the forecast's power."""

    def __init__(self, device: SimulatedGpu, gpu: Gpu, shape: ModelShape, setup: EngineSetup) -> None:
        self._device = device
        self._gpu = gpu
        self._shape = shape
        self._setup = setup

    def run(self, work: Work) -> Completion:
        """Spend the forecast's time and joules on `work`.

        Raises:
            UsageError: The requests are not alike: the forecast knows one length at a time.
            EngineOutOfMemoryError: They do not fit.
        """
        if len(set(map(len, work.prompts))) != 1 or len(set(work.output_tokens)) != 1 or any(work.arrival_s):
            raise UsageError("the simulated engine plays one batch of equal lengths at a time; vllm serves mixed ones")
        batch, length, output = len(work.prompts), len(work.prompts[0]), work.output_tokens[0]
        engine, dtype = self._setup.engine, self._setup.dtype
        limit = largest_batch(self._shape, self._gpu, length, output, engine=engine, dtype=dtype)
        if batch > limit.batch:
            raise EngineOutOfMemoryError(f"batch {batch} does not fit: {limit.reason}", is_usable=True)
        cost = forecast(
            self._shape,
            self._gpu,
            length,
            output,
            batch,
            engine=engine,
            cuda_graphs=self._setup.cuda_graphs,
            dtype=dtype,
        )
        self._device.advance(cost.prefill_s, cost.prefill_energy_j / cost.prefill_s)
        if cost.decode_s:
            self._device.advance(cost.decode_s, cost.decode_energy_j / cost.decode_s)
        return Completion(
            input_tokens=tuple(len(prompt) for prompt in work.prompts),
            output_tokens=work.output_tokens,
            first_token_s=(cost.prefill_s,) * batch,
            finished_s=(cost.prefill_s + cost.decode_s,) * batch,
        )

    def facts(self) -> Mapping[str, str | None]:
        """What is played."""
        return {"simulated": f"{self._setup.label} on {self._gpu.title}"}

    def close(self) -> None:
        """Nothing is held."""
