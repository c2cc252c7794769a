"""Joules and seconds of one request of a cell, by the physical model: a prefill, then decode steps at the mean context.

What an engine does otherwise than vLLM with CUDA graphs, to which the constants' priors belong, stands here too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infergy.energy.demand import Demand, decode_demand, prefill_demand
from infergy.energy.physics import CONSTANTS, Chips, Constant, Passes, Physics
from infergy.hardware.gpus import Gpu
from infergy.hardware.shape import ModelShape

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

TRANSFORMERS, VLLM = "transformers", "vllm"

ENGINES_DIFFER = 0.1
"""Standard deviation of the logarithm of an engine's constant over that of plain kernels: our own estimate."""

EAGER_LAYER = Constant(
    name="layer_s",
    value=100e-6,
    spread=1.0,
    meaning="s that the host takes to launch a layer's kernels, without CUDA graphs",
    source="60 to 150 us a layer in published eager runs; our own rows on a slow host: some 500 us",
)
CACHE_TRAFFIC = Constant(
    name="cache_traffic",
    value=3.0,
    spread=0.5,
    meaning="bytes that a decode step moves, over those of the KV cache",
    source="transformers' DynamicCache.update is torch.cat: the cache is read, written anew, then read by attention",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What serves the requests of a cell.

    Attributes:
        gpus: GPUs that share the model, tensor parallel.
        dtype: Of weights and matrix products: ``bfloat16``, ``float16``, ``fp8`` or ``mxfp4``.
        engine: ``vllm`` or ``transformers``.
        has_graphs: Whether decode steps replay CUDA graphs.
        calibrated: What a calibration of the GPU found: name of a constant, value, standard deviation of its logarithm.
    """

    shape: ModelShape
    gpu: Gpu
    gpus: int = 1
    dtype: str = "bfloat16"
    engine: str = VLLM
    has_graphs: bool = True
    calibrated: tuple[tuple[str, float, float], ...] = ()

    @property
    def copies_cache(self) -> bool:
        """Whether the KV cache grows by concatenation: transformers, unless its step is compiled."""
        return self.engine == TRANSFORMERS and not self.has_graphs

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The constants of the model with this engine's priors; `spread` holds how far single GPUs differ too.

        What a calibration found stands in place of a prior, and an engine's kernels may differ from plain ones.
        """
        eager = () if self.has_graphs else (EAGER_LAYER,)
        own = {one.name: one for one in (*eager, *((CACHE_TRAFFIC,) if self.copies_cache else ()))}
        known = {one.name: own.get(one.name, one) for one in CONSTANTS} | own
        priors = {name: replace(one, spread=math.hypot(one.spread, one.differs)) for name, one in known.items()}
        found = {
            name: replace(priors[name], value=value, spread=math.hypot(spread, ENGINES_DIFFER))
            for name, value, spread in self.calibrated
            if name in priors and name not in own
        }
        return tuple((priors | found).values())


class CellModel:
    """Cells of one server, whose joules and seconds are told for any values of the constants.

    Args:
        server: What serves them.
        cells: n cells: rows of input tokens, output tokens and batch, each at least 1.
    """

    def __init__(self, server: Server, cells: Column) -> None:
        self.server = server
        self._batch, self._steps = cells[:, 2], cells[:, 1] - 1
        self._chips = Chips.of([server.gpu], [server.dtype])
        options: dict[str, Any] = {"dtype": server.dtype, "gpus": float(server.gpus)}
        inputs, outputs, batch = cells.T
        self._prefill: Demand = prefill_demand(server.shape, batch, inputs, **options)
        self._decode: Demand = decode_demand(server.shape, batch, inputs + outputs / 2, **options)

    def requests(self, physics: Physics, cache_traffic: Any = 1.0) -> Passes:
        """Seconds and joules of one request of each cell: those of its batch, over it; shapes as `Physics.passes`."""
        decode = replace(self._decode, cache_bytes=self._decode.cache_bytes * cache_traffic)
        prefill, step = physics.passes(self._prefill, self._chips), physics.passes(decode, self._chips)
        return Passes(
            seconds=(prefill.seconds + self._steps * step.seconds) / self._batch,
            energy_j=(prefill.energy_j + self._steps * step.energy_j) / self._batch,
        )

    def logs(self, factors: Column, constants: Sequence[Constant]) -> Column:
        """Logarithms of joules, then of seconds, of shape (k, 2n).

        Args:
            factors: Logarithms by which the constants differ from their priors, of shape (k, constants).
            constants: Those of the server.
        """
        import numpy as np

        values = {one.name: one.value * np.exp(factors[:, place, None]) for place, one in enumerate(constants)}
        traffic = values.pop(CACHE_TRAFFIC.name, 1.0)
        found = self.requests(Physics(values=values, runs_ahead=not self.server.has_graphs), traffic)
        logs: Column = np.log(np.concatenate([found.energy_j, found.seconds], axis=1))
        return logs
