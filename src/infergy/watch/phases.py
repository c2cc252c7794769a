"""What the cost model says of a load: prefill, decode and idle apart, and the roofline's floor."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infergy.errors import InfergyError
from infergy.watch.span import Span

if TYPE_CHECKING:
    from infergy.cost.model import StepCost

STEP_SUMS = ("count", "decodes", "context", "prefill_tokens", "prefill_pairs", "prefills", "sampled", "padded")


@dataclass(slots=True, kw_only=True)
class Served:
    """What is served, as far as options and metrics say.

    Attributes:
        gpu: Kind of GPU, as the driver names it; `gpus` of them share the model, unless `present` says otherwise.
        model: Name or file; None for the one that the metrics, or `present`, name.
        present: The command that started it.
        words: Options of `infergy recommend` that say the same; empty as long as they are not known.
    """

    gpu: str
    gpus: int
    model: str | None = None
    present: str | None = None
    words: tuple[str, ...] = ()

    def cost(self, models: Sequence[str]) -> StepCost | str:
        """Step costs under vLLM, by the shipped table; or why they are not known."""
        from infergy.catalog import get_gpu
        from infergy.estimates.servers import open_server
        from infergy.estimates.vllm_command import parse_command

        if self.present is None and len(models) != 1:
            return f"the metrics name {len(models)} models, and no option says which: --present"
        command = self.present or shlex.join(["vllm", "serve", models[0], "--tensor-parallel-size", str(self.gpus)])
        try:
            spec = parse_command(command, gpu=get_gpu(self.gpu).name, model=self.model).spec
            cost = open_server(spec).cost
        except InfergyError as error:
            return str(error)
        self.words = ("--present", command, "-g", spec.gpu, *(() if self.model is None else ("-m", self.model)))
        return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """A load by the cost model: shares of the energy, in steps of one kind each, and of the time.

    Attributes:
        prefill: Share of the energy; `decode` and `idle` the same.
        busy_share: Share of the time in which the GPUs would compute.
        energy_per_output_token_j: What the model says, for comparison with what is measured.
        floor_per_output_token_j: The same steps at full bandwidth or the dense peak, without launches and host, on GPUs
            that are never idle.
    """

    prefill: float
    decode: float
    idle: float
    busy_share: float
    energy_per_output_token_j: float
    floor_per_output_token_j: float


def phases_of(span: Span, cost: StepCost, replicas: int = 1) -> Phases | str:
    """The phases of the load of a span on `replicas` servers, or why they are not known."""
    import numpy as np

    from infergy.cost.step import Steps, added_j, sums_of

    output = span.rate("output_tokens")
    steps = max(span.grown("step_tokens").counts.values(), default=0.0)
    running = [reading.page.gauges.get("running", 0.0) for reading in span.readings if reading.page is not None]
    busy = [count for count in running if count]
    lengths = [span.grown(name) for name in ("input_lengths", "output_lengths")]
    requests = min(max(own.counts.values(), default=0.0) for own in lengths)
    if not output or not (steps or busy) or not requests:
        return "no tokens, or no finished request of known length, in this time"
    inputs, outputs = (own.total / requests for own in lengths)
    asked, cached = span.rate("input_tokens"), span.rate("cached_tokens") or 0.0
    computed = span.rate("computed_tokens") if asked is None else max(0.0, asked - cached)
    # Of one replica, per second. A server that does not count its steps makes one for the tokens of those that run.
    prompts, tokens = requests / span.seconds / replicas, output / replicas
    rate = steps / span.seconds / replicas if steps else tokens / max(1.0, sum(busy) / len(busy) / replicas)
    batch = max(1.0, tokens / rate)
    mixed = min(prompts, rate)
    each = prompts / mixed
    hit = max(0.0, inputs - (computed or 0.0) / replicas / prompts)
    fresh = max(1.0, inputs - hit)
    context = batch * (inputs + outputs / 2)
    decodes = (batch, context, 0.0, 0.0, 0.0, batch, batch)
    both = (batch, context, each * fresh, each * (fresh * hit + fresh * (fresh + 1) / 2), each, batch + each, 0.0)
    # Steps with prompts, the others, and the former without their prompts: what they draw more is the prompts' own.
    rows = [(mixed, *both), (rate - mixed, *decodes), (mixed, *decodes)]
    step_s = [cost.start().step(*row[1:]) for row in rows]  # type: ignore[arg-type]
    zero, columns = np.zeros(len(rows)), dict(zip(STEP_SUMS, np.array(rows).T, strict=True))
    made = Steps(start_s=zero, kv_blocks=zero, waiting=zero, step_s=np.array(step_s), **columns)
    mixed_w, other_w, shared_w = (cost.step_energy_j(made) * made.count).tolist()
    busy_share = float(made.count[:2] @ made.step_s[:2])
    idle_w = cost.idle_w * max(0.0, 1.0 - busy_share)
    floor_j = added_j(cost.rates, sums_of(made)) + cost.rates.power.base_w * cost.floor_s(made)
    total_w = mixed_w + other_w + idle_w
    return Phases(
        prefill=(mixed_w - shared_w) / total_w,
        decode=(other_w + shared_w) / total_w,
        idle=idle_w / total_w,
        busy_share=busy_share,
        energy_per_output_token_j=total_w * replicas / output,
        floor_per_output_token_j=float(floor_j[:2] @ made.count[:2]) * replicas / output,
    )
