"""What the cost model says of a load: prefill, decode and idle apart, and the roofline's floor."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infergy.errors import InfergyError
from infergy.watch.span import Span

if TYPE_CHECKING:
    from infergy.cost.model import StepCost

STEP_SUMS = ("count", "decodes", "context", "prefill_tokens", "prefill_pairs", "prefills", "sampled", "padded")
SETTLED_S, MOST_STEPS = 2.0, 1000
"""How long steps follow each other until the power limit acts as it does on all of them."""


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

    def check(self) -> None:
        """Reject a model, a command or a GPU that is not known, where options name a model or a command.

        Raises:
            UsageError: One is not known, or they contradict.
        """
        if self.model is not None or self.present is not None:
            self._open(("MODEL",))

    def cost(self, models: Sequence[str]) -> StepCost | str:
        """Step costs under vLLM, by the shipped table; or why they are not known."""
        if self.present is None and len(models) != 1:
            return f"the metrics name {len(models)} models, and no option says which: --present"
        try:
            return self._open(models)
        except InfergyError as error:
            return str(error)

    def _open(self, models: Sequence[str]) -> StepCost:
        from infergy.catalog import get_gpu
        from infergy.estimates.servers import open_server
        from infergy.estimates.vllm_command import parse_command

        command = self.present or shlex.join(["vllm", "serve", models[0], "--tensor-parallel-size", str(self.gpus)])
        spec = parse_command(command, gpu=get_gpu(self.gpu).name, model=self.model).spec
        cost = open_server(spec).cost
        self.words = ("--present", command, "-g", spec.gpu, *(() if self.model is None else ("-m", self.model)))
        return cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """A load by the cost model: shares of the energy, in steps of one kind each, and of the time.

    Attributes:
        prefill: Share of the energy; `decode` and `idle` the same.
        busy_share: Share of the time in which the GPUs would compute.
        energy_per_output_token_j: What the model says, for comparison with what is measured.
        floor_per_output_token_j: The same steps at full bandwidth or the dense peak, without launches and host, at the
            clocks that the power limit leaves them, on GPUs that are never idle.
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

    from infergy.cost.step import Steps

    output = span.rate("output_tokens")
    steps = max(span.grown("step_tokens").counts.values(), default=0.0)
    running = [reading.page.gauges.get("running", 0.0) for reading in span.readings if reading.page is not None]
    busy = [count for count in running if count]
    lengths = [span.grown(name) for name in ("input_lengths", "output_lengths")]
    requests = min(max(own.counts.values(), default=0.0) for own in lengths)
    if not output or not (steps or busy) or not requests:
        return "no tokens, or no finished request of known length, in this time"
    inputs, outputs = (max(1.0, own.total / requests) for own in lengths)
    # Prompts that began, of the length of those that ended: of a load that grows or falls, others end than begin.
    asked, cached = span.rate("input_tokens"), span.rate("cached_tokens") or 0.0
    began = requests / span.seconds if asked is None else asked / inputs
    computed = span.rate("computed_tokens") if asked is None else max(0.0, asked - cached)
    fresh = min(inputs, max(1.0, (computed or 0.0) / began)) if began else 1.0
    hit = inputs - fresh
    # Of one replica, per second. A server that does not count its steps makes one for the tokens of those that run.
    prompts, tokens = began / replicas, output / replicas
    rate = steps / span.seconds / replicas if steps else tokens / max(1.0, sum(busy) / len(busy) / replicas)
    batch = max(1.0, (tokens - prompts) / rate)  # the first token of a request comes with its prompt
    mixed = min(prompts, rate)
    each = prompts / mixed if mixed else 0.0
    context = batch * (inputs + outputs / 2)
    decodes = (batch, context, 0.0, 0.0, 0.0, batch, batch)
    both = (batch, context, each * fresh, each * (fresh * hit + fresh * (fresh + 1) / 2), each, batch + each, 0.0)
    # Steps with prompts, the others, and the former without their prompts: what they draw more is the prompts' own.
    rows = [(mixed, *both), (rate - mixed, *decodes), (mixed, *decodes)]
    step_s = _settled_s(cost, rows)
    zero, columns = np.zeros(len(rows)), dict(zip(STEP_SUMS, np.array(rows).T, strict=True))
    made = Steps(start_s=zero, kv_blocks=zero, waiting=zero, step_s=np.array(step_s), **columns)
    energy_j, base_w = cost.step_energy_j(made), cost.rates.power.base_w
    mixed_w, other_w, shared_w = (energy_j * made.count).tolist()
    busy_share = float(made.count[:2] @ made.step_s[:2])
    idle_w = cost.idle_w * max(0.0, 1.0 - busy_share)
    floor_j = energy_j + base_w * (cost.floor_s(made) - made.step_s)
    total_w = mixed_w + other_w + idle_w
    return Phases(
        prefill=(mixed_w - shared_w) / total_w,
        decode=(other_w + shared_w) / total_w,
        idle=idle_w / total_w,
        busy_share=busy_share,
        energy_per_output_token_j=total_w * replicas / output,
        floor_per_output_token_j=float(floor_j[:2] @ made.count[:2]) * replicas / output,
    )


def _settled_s(cost: StepCost, rows: Sequence[tuple[float, ...]]) -> list[float]:
    """Seconds of a step of each row once the first two have followed each other for a while, as often as each comes.

    A single step after idle time is not slowed by the power limit, which acts on the mean power of some tenths of
    a second.
    """
    counts = [row[0] for row in rows[:2]]
    pace, latest_s = cost.start(), [cost.start().step(*row[1:]) for row in rows[:2]]  # type: ignore[arg-type]
    known: list[list[float]] = [[], []]
    passed_s = due = 0.0
    while passed_s < SETTLED_S and sum(map(len, known)) < MOST_STEPS:
        due += counts[0] / sum(counts)
        kind = int(due < 1.0)
        due -= 1.0 - kind
        latest_s[kind] = pace.step(*rows[kind][1:])  # type: ignore[arg-type]
        idle_s = max(0.0, 1.0 - counts[0] * latest_s[0] - counts[1] * latest_s[1]) / sum(counts)
        pace.idle(idle_s)
        known[kind].append(latest_s[kind])
        passed_s += latest_s[kind] + idle_s
    means_s = [
        statistics.fmean(own[len(own) // 2 :]) if own else once_s for own, once_s in zip(known, latest_s, strict=True)
    ]
    return [*means_s, pace.step(*rows[2][1:])]  # type: ignore[arg-type]
