"""Joules and seconds of one request at any lengths, by the best that there is.

1. measured        the cell itself, of a full batch (rule 6 of `infergy.energy.table`) where there is a model
2. modelled        the physical model, given all cells of the set-up (`infergy.energy.posterior`)
3. interpolated, extrapolated: curves through the cells (`infergy.energy.surface`), where the model does not apply: an
                   engine, a GPU or a model whose figures are not known, beams, speculation
4. None            where that has no value either

Cells left out and told by the others: docs/physics.md has the errors of 2 and 3 side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infergy.energy.calibration import Calibration
from infergy.energy.cell_model import TRANSFORMERS, VLLM, Server
from infergy.energy.options import MAX_SEQUENCES, PHYSICS, TABLE
from infergy.energy.posterior import NORMAL_90, Posterior
from infergy.energy.surface import MEASURED, MODELLED, Surface, SurfaceError, SurfaceValue
from infergy.energy.table import SetupTable
from infergy.errors import UsageError
from infergy.hardware import get_gpu, get_model
from infergy.hardware.memory import largest_batch
from infergy.records import EngineSetup

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

NORMAL_95 = 1.96
NORMAL_MEDIAN = 0.6745
FEWEST_TO_TELL = 3
"""Cells that must be left out, one at a time, for their errors to be told."""


def server_of(setup: SetupTable, calibration: Calibration | None = None) -> Server | None:
    """What the physical model needs to know of measured cells; None where it does not apply."""
    decoding = setup.label.removeprefix(setup.setup.label)
    return None if "beam" in decoding else server_for(setup.setup, setup.gpu, calibration)


def server_for(setup: EngineSetup, gpu: str, calibration: Calibration | None = None) -> Server | None:
    """What the physical model needs to know of an engine set-up; None where it does not apply.

    Raises:
        UsageError: The calibration is of another GPU.
    """
    if setup.engine not in (TRANSFORMERS, VLLM) or setup.speculation is not None:
        return None
    try:
        shape, chip = get_model(setup.model), get_gpu(gpu)
    except UsageError:
        return None
    return Server(
        shape=shape,
        gpu=chip,
        gpus=setup.tensor_parallel,
        dtype=setup.dtype,
        engine=setup.engine,
        has_graphs=setup.cuda_graphs is not False if setup.engine == VLLM else setup.compiled,
        calibrated=() if calibration is None else calibration.constants_of(chip),
    )


def add_chips(spread: float | None, repeat: SurfaceError | None) -> float | None:
    """Half the width of a 90 % interval of a logarithm, once more for any chip of the kind.

    Args:
        spread: That of one chip; None where nobody tells.
        repeat: How far the same cells lie apart on two chips, where some were compared: the median is taken for 0.6745
            standard deviations, as if the distance were normal.
    """
    if spread is None:
        return None
    chips = math.log1p(repeat.median) / NORMAL_MEDIAN * NORMAL_90 if repeat is not None else 0.0
    return math.hypot(spread, chips)


class Values:
    """The best value at any lengths.

    Args:
        setup: The cells.
        method: ``table`` takes cells and curves alone; ``physics`` the model alone, also where cells were measured.
        max_batch_s: Seconds that a batch may take.
        calibration: Of the GPU, for the model; None takes the datasheet.

    Attributes:
        surface: The curves through the cells that count, of small batches too.
    """

    def __init__(
        self, setup: SetupTable, *, method: str, max_batch_s: float, calibration: Calibration | None = None
    ) -> None:
        counted = setup.by_length(max_batch_s)
        # Where nothing was measured in time, a slower batch counts: then nothing beside it need be faster.
        self._late_s = max([max_batch_s, *(cell.duration_s * cell.batch for cell in counted.values())])
        self._method = method
        self.surface = Surface(counted)
        server = None if method == TABLE else server_of(setup, calibration)
        self._server = server
        self._posterior = None if server is None else Posterior(server, setup.cells)
        self._served = self.surface if server is None else Surface(setup.full_by_length(max_batch_s))
        self._known: dict[tuple[float, float], SurfaceValue | None] = {}

    @property
    def has_model(self) -> bool:
        """Whether the physical model applies."""
        return self._posterior is not None

    def prepare(self, lengths: Iterable[tuple[float, float]]) -> None:
        """Tell the values at many (input, output) at once, which is much faster than one by one."""
        new = [place for place in dict.fromkeys(lengths) if place not in self._known]
        told = {place: self._served.at(*place) for place in new}
        if self._posterior is not None:
            lacking = {
                place: self._batch(place, value)
                for place, value in told.items()
                if value is None or value.how != MEASURED or self._method == PHYSICS
            }
            # What does not fit the memory is served by nobody: curves may say what they like of it.
            lacking = {place: batch for place, batch in lacking.items() if batch > 0}
            told |= dict(zip(lacking, self._model(lacking, self._posterior), strict=True))
        self._known |= told

    def at(self, input_tokens: float, output_tokens: float) -> SurfaceValue | None:
        """The value at some lengths, at least one token each; None where nothing tells it. Deterministic."""
        place = (input_tokens, output_tokens)
        self.prepare([place])
        return self._known[place]

    def spread(self, lengths: Sequence[tuple[float, float]], energy_j: Sequence[float]) -> float | None:
        """How far the sum of joules may be off, as half the width of a 90 % interval of its logarithm.

        Args:
            lengths: Input and output tokens of each part of the sum.
            energy_j: Joules of each part.

        Returns:
            None where the model does not apply.
        """
        import numpy as np

        if self._posterior is None or not lengths:
            return None
        batches = [value.batch if (value := self.at(*place)) is not None else 1 for place in lengths]
        cells = np.column_stack([np.array(lengths, dtype=float), np.array(batches, dtype=float)])
        share = np.array(energy_j) / sum(energy_j)
        count = len(lengths)
        variance = float(share @ self._posterior.covariance(cells)[:count, :count] @ share)
        return self._posterior.half_width * math.sqrt(max(0.0, variance))

    def model_error(self) -> SurfaceError | None:
        """How far the model lies from measured cells that are left out; None where it does not apply or few can be."""
        if self._posterior is None or len(self._posterior.left_out) < FEWEST_TO_TELL:
            return None
        distances = [math.exp(abs(one.error)) - 1 for one in self._posterior.left_out]
        worst = self._posterior.left_out[distances.index(max(distances))].cell
        return SurfaceError(
            points=len(distances),
            median=float(sorted(distances)[len(distances) // 2]),
            maximum=max(distances),
            worst=f"{worst.input_tokens}→{worst.output_tokens} × {worst.batch}",
            basis="each cell left out in turn, told by the physical model and all other cells",
        )

    def _model(self, wanted: Mapping[tuple[float, float], int], posterior: Posterior) -> list[SurfaceValue]:
        """Values by the model at lengths, in batches that are halved until they answer in time, if that can help."""
        import numpy as np

        if not wanted:
            return []

        def cells(batches: Column) -> Column:
            return np.column_stack([np.array(list(wanted), dtype=float), batches])

        largest = np.array(list(wanted.values()), dtype=float)
        batches = largest
        while (late := posterior.at(cells(batches)).duration_s * batches > self._late_s)[batches > 1].any():
            batches = np.where(late, np.maximum(1, batches // 2), batches)
        batches = np.where(late, largest, batches)
        found = posterior.at(cells(batches))
        error = np.expm1(NORMAL_95 / NORMAL_90 * posterior.half_width * found.spread)
        return [
            SurfaceValue(
                energy_j=float(found.energy_j[place]),
                duration_s=float(found.duration_s[place]),
                batch=int(batches[place]),
                doubt=0.0,
                how=MODELLED,
                error=float(error[place]),
            )
            for place in range(len(wanted))
        ]

    def _batch(self, place: tuple[float, float], curve: SurfaceValue | None) -> int:
        """The batch in which requests of these lengths are served: as beside them, where cells are in line with them.

        Else as many as a grid would allow; 0 where not one fits the memory.
        """
        assert self._server is not None
        fits = largest_batch(
            self._server.shape,
            self._server.gpu,
            math.ceil(place[0]),
            math.ceil(place[1]),
            engine=self._server.engine,
            dtype=self._server.dtype,
            tensor_parallel=self._server.gpus,
        ).batch
        return min(MAX_SEQUENCES if curve is None else curve.batch, fits)
