"""Joules of a trace on GPUs that nobody served it on: the physical model, marked as such.

Its constants are the priors, or those that `infergy calibrate` found for the GPU (docs/calibration.md).

Each bin is priced at the mean lengths of its requests, in the largest batch that fits the memory of the GPUs and
answers in time, as vLLM with CUDA graphs would serve a trace that is known at once: a prefill, then decode steps at the
mean context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.energy.answer import TraceFacts
from infergy.energy.calibration import Calibration
from infergy.energy.demand import decode_demand, prefill_demand
from infergy.energy.estimate import facts_of, histogram_of
from infergy.energy.options import MAX_BATCH_S, MAX_SEQUENCES
from infergy.energy.physics import Chips, Passes, Physics
from infergy.energy.price import mean_lengths
from infergy.errors import UsageError
from infergy.hardware.gpus import Gpu, get_gpu
from infergy.hardware.memory import largest_batch
from infergy.hardware.models import canonical_name, get_model
from infergy.hardware.shape import ModelShape, dtype_bytes
from infergy.units import SECONDS_PER_HOUR, format_bytes, to_wh
from infergy.workload.bins import POWERS_OF_TWO, Bins

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

DATASHEET_SCHEMA = "infergy.datasheet/1"

HALF_WIDTH = 0.64
"""Of log J: 90 % of the scoreboard's 690 rows of served models lie so near to the datasheet's figure, or nearer."""

ENGINE = "vllm"
MOST_GPUS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasheetBin:
    """The requests of one bin.

    Attributes:
        input_tokens: Mean length of their prompts; `output_tokens` of their answers.
        batch: Served at once.
        energy_j: Joules of all requests, all GPUs; `duration_s` their seconds.
    """

    input_tokens: float
    output_tokens: float
    requests: int
    batch: int
    energy_j: float
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasheetEstimate:
    """Joules of a trace from datasheets alone: nothing of it was measured.

    Attributes:
        gpus: GPUs that share the model, tensor parallel.
        precision: Of weights and matrix products.
        limit_w: Power limit of all GPUs, their TDP.
        energy_j: Joules of all GPUs; 90 % of what was measured elsewhere lies as near as `low_j` to `high_j`.
        duration_s: Seconds, one batch after the other.
        largest_batch: Over all bins.
        basis: Where the figures are from, in words.
    """

    trace: TraceFacts
    model: str
    gpu: str
    gpus: int
    precision: str
    limit_w: float
    energy_j: float
    low_j: float
    high_j: float
    energy_wh: float
    duration_s: float
    gpu_hours: float
    power_w: float
    energy_per_request_j: float
    energy_per_output_token_j: float
    largest_batch: int
    bins: tuple[DatasheetBin, ...]
    basis: str
    schema: str = DATASHEET_SCHEMA


def estimate_from_datasheet(
    source: object,
    *,
    model: str,
    gpu: str,
    gpus: int = 1,
    precision: str = "bfloat16",
    bins: str | Bins | None = POWERS_OF_TWO,
    max_batch_s: float = MAX_BATCH_S,
    calibration: Calibration | None = None,
) -> DatasheetEstimate:
    """Estimate a trace without any measurement of a model.

    Args:
        source: A `Trace`, a `Histogram`, or whatever `infergy.open_trace` takes.
        model: Shipped name, or the path of a `config.json` or of numbers by hand (docs/models.md).
        gpu: Name in the catalogue, or the path of a TOML file that describes it.
        gpus: Tensor parallel, 1 to 8.
        precision: ``bfloat16``, ``float16``, ``fp8`` or ``mxfp4``.
        bins: As for `infergy.estimate`.
        max_batch_s: Seconds that a batch may take to be formed so large.
        calibration: Constants of this kind of GPU, from `load_calibration`; None takes the priors.

    Raises:
        UsageError: A name is not known, the trace is empty, the calibration is of another GPU, or the model does not
            fit; the message says how many GPUs would.
        DataError: A file is not what it should be.
    """
    if not 1 <= gpus <= MOST_GPUS:
        raise UsageError(f"{gpus} GPUs: expected 1 to {MOST_GPUS}, those of one host. Give --gpus")
    dtype_bytes(precision)
    shape, chip = get_model(model), get_gpu(gpu)
    histogram = histogram_of(source, bins)
    facts = facts_of(histogram)
    if not histogram.counts:
        raise UsageError(f"{facts.source}: no request with output to price")
    physics = Physics() if calibration is None else calibration.physics_of(chip)
    server = _Server(shape=shape, gpu=chip, gpus=gpus, precision=precision, physics=physics)
    priced = tuple(
        server.price(*mean_lengths(count), requests=count.requests, max_batch_s=max_batch_s)
        for count in histogram.counts
    )
    energy_j, duration_s = (sum(getattr(one, name) for one in priced) for name in ("energy_j", "duration_s"))
    requests = sum(one.requests for one in priced)
    outputs = sum(count.output_tokens for count in histogram.counts)
    return DatasheetEstimate(
        trace=facts,
        model=canonical_name(model),
        gpu=chip.name,
        gpus=gpus,
        precision=precision,
        limit_w=chip.tdp_w * gpus,
        energy_j=energy_j,
        low_j=energy_j * math.exp(-HALF_WIDTH),
        high_j=energy_j * math.exp(HALF_WIDTH),
        energy_wh=to_wh(energy_j),
        duration_s=duration_s,
        gpu_hours=duration_s * gpus / SECONDS_PER_HOUR,
        power_w=energy_j / duration_s,
        energy_per_request_j=energy_j / requests,
        energy_per_output_token_j=energy_j / outputs,
        largest_batch=max(one.batch for one in priced),
        bins=priced,
        basis=_basis(chip, shape, calibration),
    )


def _basis(chip: Gpu, shape: ModelShape, calibration: Calibration | None) -> str:
    what = f"{chip.title}, {shape.architecture} of {shape.layers} layers, docs/physics.md."
    served = "90 % of 690 measured rows of other servers (docs/scoreboard.md)"
    if calibration is None:
        return f"DATASHEET: nothing of this was measured; {what} The range holds for {served}"
    pretended = "SIMULATED: these constants say nothing about real hardware. " if calibration.simulated else ""
    return (
        f"{pretended}CALIBRATED on {', '.join(calibration.uuids)} ({calibration.windows} windows over plain kernels, "
        f"{calibration.measured_from[:10]}, docs/calibration.md), not measured: no model was served; {what} What an "
        f"engine adds to its kernels has the datasheet's constants, and the range is still that of {served} about the "
        "datasheet's figure"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    shape: ModelShape
    gpu: Gpu
    gpus: int
    precision: str
    physics: Physics

    def price(self, input_tokens: float, output_tokens: float, *, requests: int, max_batch_s: float) -> DatasheetBin:
        """Requests of one length, in the largest of the batches 1, 2, 4, … that fits and answers in time."""
        import numpy as np

        batches = self._batches(math.ceil(input_tokens), math.ceil(output_tokens))
        found = self._serve(batches, input_tokens, output_tokens)
        timely = np.flatnonzero(found.seconds <= max_batch_s)
        place = int(timely[-1]) if len(timely) else 0
        share = requests / batches[place]
        return DatasheetBin(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            requests=requests,
            batch=int(batches[place]),
            energy_j=float(found.energy_j[place] * share),
            duration_s=float(found.seconds[place] * share),
        )

    def _batches(self, input_tokens: int, output_tokens: int) -> Column:
        import numpy as np

        limit = self._fits(input_tokens, output_tokens, self.gpus)
        if limit < 1:
            enough = [n for n in (2, 4, 8) if n > self.gpus and self._fits(input_tokens, output_tokens, n) >= 1]
            cure = f"--gpus {enough[0]} would do" if enough else "not even 8 GPUs hold it; take a larger GPU, or fp8"
            weights = format_bytes(self.shape.weight_bytes(self.precision))
            raise UsageError(
                f"{self.shape.name} ({weights} of weights) and a request of {input_tokens}→{output_tokens} do not fit "
                f"{self.gpus} × {self.gpu.title}: {cure}"
            )
        most = min(limit, MAX_SEQUENCES)
        return np.unique(np.append(2.0 ** np.arange(int(math.log2(most)) + 1), float(most)))

    def _fits(self, input_tokens: int, output_tokens: int, gpus: int) -> int:
        return largest_batch(
            self.shape,
            self.gpu,
            input_tokens,
            output_tokens,
            engine=ENGINE,
            dtype=self.precision,
            tensor_parallel=gpus,
        ).batch

    def _serve(self, batches: Column, input_tokens: float, output_tokens: float) -> Passes:
        """Whole batches: prefill, then a step for each further token, at the mean context."""
        import numpy as np

        chips = Chips.of([self.gpu], [self.precision])
        physics, gpus = self.physics, float(self.gpus)
        length, context = np.full_like(batches, input_tokens), np.full_like(batches, input_tokens + output_tokens / 2)
        one = physics.passes(prefill_demand(self.shape, batches, length, dtype=self.precision, gpus=gpus), chips)
        step = physics.passes(decode_demand(self.shape, batches, context, dtype=self.precision, gpus=gpus), chips)
        steps = max(0.0, output_tokens - 1)
        return Passes(seconds=one.seconds + steps * step.seconds, energy_j=one.energy_j + steps * step.energy_j)
