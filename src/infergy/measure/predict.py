"""What serving a cell takes, by simulation: its seconds and its energy, which a plan carries to where it is measured.

Requests go through the scheduler of the engine and steps cost what the cost model says with the constants of the
shipped table, as in every estimate. Needs numpy; measuring does not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infergy.cost.constants import prior_fit
from infergy.cost.drafting import DraftedCost
from infergy.cost.model import StepCost
from infergy.cost.step import StepSums, free_s
from infergy.cost.table import fit_of, shipped_table
from infergy.hardware import Gpu, ModelShape
from infergy.hardware.draft import Draft
from infergy.records import SERVER, EngineSetup, Load
from infergy.serving.setups import Lengths, cost_of_setup, serve_setup


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One batch or run.

    Attributes:
        prefill_s: Seconds of the prompts alone, all at once.
        batch_s: Seconds from the first arrival to the last token.
        batch_j: Energy of all GPUs in that time.
    """

    prefill_s: float
    batch_s: float
    batch_j: float


def forecast_load(setup: EngineSetup, shape: ModelShape, gpu: Gpu, load: Load, draft: Draft | None = None) -> Forecast:
    """What a load takes, all requests at once; each beam is a sequence of its own."""
    cost = _cost(setup, shape, gpu, draft)
    sequences = load.batch * load.decoding.beams
    batch_s, batch_j = _serve(setup, shape, gpu, cost, (load.lengths,) * sequences)
    prefill_s = batch_s
    if load.output_tokens > 1:
        prefill_s, _ = _serve(setup, shape, gpu, cost, ((load.input_tokens, 1),) * sequences)
    return Forecast(prefill_s=prefill_s, batch_s=batch_s, batch_j=batch_j)


def forecast_run(
    setup: EngineSetup,
    shape: ModelShape,
    gpu: Gpu,
    lengths: Lengths,
    arrival_s: Sequence[float],
    draft: Draft | None = None,
) -> Forecast:
    """What requests of so many input and output tokens take that arrive at `arrival_s`, or all at once."""
    cost = _cost(setup, shape, gpu, draft)
    batch_s, batch_j = _serve(setup, shape, gpu, cost, lengths, arrival_s)
    # What a warm-up hands over at once.
    mean = round(sum(inputs for inputs, _ in lengths) / len(lengths))
    prefill_s, _ = _serve(setup, shape, gpu, cost, ((mean, 1),) * len(lengths))
    return Forecast(prefill_s=prefill_s, batch_s=batch_s, batch_j=batch_j)


class GpuWork:
    """Seconds of GPU work in a batch, were launching kernels free and power not limited: what batches are chosen by.

    Constants are priors, so that the cells of a grid stay the same when the shipped table grows. All prompts count as
    one step, and decode steps as that at the mean context.
    """

    def __init__(self, setup: EngineSetup, shape: ModelShape, gpu: Gpu, draft: Draft | None = None) -> None:
        cost = cost_of_setup(setup, shape, gpu, fit=prior_fit(setup.engine), draft=draft)
        if isinstance(cost, DraftedCost):
            models, self._look_ahead, self._tokens = [cost.target, cost.draft], cost.look_ahead, cost.tokens_per_round
        else:
            models, self._look_ahead, self._tokens = [cost], 0, 1.0
        hosts = [replace(one.rates.host, eager=0.0, piecewise=0.0, mixed=0.0) for one in models]
        self._rates = [replace(one.rates, host=host) for one, host in zip(models, hosts, strict=True)]

    def seconds(self, load: Load) -> float:
        """Of one batch; each beam is a sequence of its own."""
        size = load.batch * load.decoding.beams
        tokens, pairs = size * load.input_tokens, size * load.input_tokens * (load.input_tokens + 1) / 2
        prefill = StepSums(0, 0.0, tokens, pairs, size, size, 0)
        context = size * (load.input_tokens + load.output_tokens / 2)
        decode = StepSums(size, context, 0, 0.0, 0, size, size)
        prefill_s = sum(float(free_s(rates, prefill, min)) for rates in self._rates)
        target_s, *draft_s = (float(free_s(rates, decode, min)) for rates in self._rates)
        round_s = target_s + self._look_ahead * sum(draft_s)
        return prefill_s + (load.output_tokens - 1) * round_s / self._tokens


def _cost(setup: EngineSetup, shape: ModelShape, gpu: Gpu, draft: Draft | None) -> StepCost | DraftedCost:
    table = shipped_table()
    return cost_of_setup(setup, shape, gpu, fit=fit_of(table, setup.engine), idle_w=table.idle_w(gpu.name), draft=draft)


def _serve(
    setup: EngineSetup,
    shape: ModelShape,
    gpu: Gpu,
    cost: StepCost | DraftedCost,
    lengths: Lengths,
    arrival_s: Sequence[float] = (),
) -> tuple[float, float]:
    """Seconds and energy of a run, and of handing a batch over."""
    run = serve_setup(setup, shape, gpu, cost, lengths, arrival_s)
    call_s = 0.0 if setup.usage_context == SERVER or any(arrival_s) else cost.call_s
    return run.duration_s + call_s, run.energy_j + call_s * cost.rates.power.base_w
