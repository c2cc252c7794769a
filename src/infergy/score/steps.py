"""Rows as forward passes: the steady state of a server, whose steps decode a batch and prefill what joins it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infergy.energy.demand import Demand, copies_of_cache, decode_demand, join
from infergy.energy.physics import Chips
from infergy.hardware.gpus import get_gpu
from infergy.hardware.layers import AttentionShape, ExpertShape
from infergy.hardware.shape import ModelShape, cache_bytes
from infergy.score.rows import Rows

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

INPUT_TOKENS: Mapping[str, float] = {
    "lm-arena-chat": 250.0,
    "gpqa": 250.0,
    "sourcegraph-fim": 2000.0,
    "image-chat": 900.0,
    "video-chat": 4000.0,
}
"""Length of a task's prompts. The benchmark's tables do not tell: guesses by what its data sets are (turns of a chat;
questions with four answers; the code before and behind a gap), and what they miss a factor takes up."""

ANY_INPUT_TOKENS = 500.0
WIDTH_OVER_DEPTH = 128
STAND_IN_EXPERTS, STAND_IN_VISITED = 128, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """One step of the server of each row.

    Attributes:
        decode: What its decoding asks, prompts of the guessed length behind it.
        chips: Of whom.
        batch: Output tokens that it yields.
        requests: Requests that end in it, and so begin: batch over output length.
        inputs: Guessed length of prompts; `outputs` mean length of answers.
        token_flops: FLOPs of a prompt's token in all matrices but the output head's.
        pair_flops: FLOPs of a token of a prompt looking at one position in one layer, and `step_pair_flops` of an
            output token.
        value_bytes: What a token leaves in one layer's KV cache, on all GPUs together.
        layers: Layers that look at all positions; `window_layers` at the last `window` of them.
    """

    decode: Demand
    chips: Chips
    batch: Column
    requests: Column
    inputs: Column
    outputs: Column
    token_flops: Column
    pair_flops: Column
    step_pair_flops: Column
    value_bytes: Column
    layers: Column
    window_layers: Column
    window: Column

    @property
    def demand(self) -> Demand:
        """All that a step asks, with prompts of the guessed lengths."""
        return self.with_prompts(1.0)

    def with_prompts(self, longer: Column | float) -> Demand:
        """All that a step asks, where prompts are so many times longer than guessed.

        Prefills ride along: their tokens are multiplied with the weights that decoding has read, of experts too, though
        they visit more of them.
        """
        import numpy as np

        inputs = self.inputs * longer
        guessed, context = (length + self.outputs / 2 for length in (self.inputs, inputs))
        more = self.batch * (self._seen(context) - self._seen(guessed))
        inside = np.minimum(inputs, self.window)
        pairs = self.layers * inputs**2 / 2 + self.window_layers * inside * (inputs - inside / 2)
        looking = self.requests * pairs * self.pair_flops
        tokens = self.requests * inputs
        decode = self.decode
        return replace(
            decode,
            cache_bytes=decode.cache_bytes + more * self.value_bytes,
            linear_flops=decode.linear_flops + tokens * self.token_flops,
            attention_flops=decode.attention_flops + more * self.step_pair_flops + looking,
            reduced_bytes=decode.reduced_bytes * (1 + tokens / self.batch),
        )

    def _seen(self, context: Column) -> Column:
        """Positions that one token looks at, over all layers; chunks are taken for windows."""
        import numpy as np

        return np.asarray(self.layers * context + self.window_layers * np.minimum(context, self.window))


def steps_of(rows: Rows) -> Steps:
    """The step of each row, in their order."""
    import numpy as np

    inputs = np.array([INPUT_TOKENS.get(task, ANY_INPUT_TOKENS) for task in rows.task])
    shapes = [shape or stand_in(rows, place) for place, shape in enumerate(rows.shapes)]
    attention = [shape.attention for shape in shapes]
    wide = [cache_bytes(str(kind)) for kind in rows.precision]
    copies = [float(copies_of_cache(shape, gpus)) for shape, gpus in zip(shapes, rows.gpus, strict=True)]
    attending = np.array([float(shape.attending_layers) for shape in shapes])
    windowed = np.array([float(one.window_layers) for one in attention])
    kinds = list(zip(rows.model, rows.precision, rows.expert_parallel > 1, rows.data_parallel > 1, strict=True))
    places: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    parts, order = [], []
    for (_, precision, is_dispatched, is_replicated), group in places.items():
        at = np.array(group)
        part = decode_demand(
            shapes[group[0]],
            rows.batch[at],
            inputs[at] + rows.output_tokens[at] / 2,
            dtype=str(precision),
            gpus=rows.gpus[at],
            is_dispatched=bool(is_dispatched),
            is_replicated=bool(is_replicated),
        )
        parts.append(part)
        order.append(at)
    back = np.argsort(np.concatenate(order))
    return Steps(
        decode=join(parts).take(back),
        chips=Chips.of([get_gpu(name) for name in rows.gpu], [str(precision) for precision in rows.precision]),
        batch=rows.batch,
        requests=rows.batch / rows.output_tokens,
        inputs=inputs,
        outputs=rows.output_tokens,
        token_flops=np.array([float(_token_flops(shape)) for shape in shapes]),
        pair_flops=np.array([float(one.pair_flops()) for one in attention]),
        step_pair_flops=np.array([float(one.pair_flops(absorbed=True)) for one in attention]),
        value_bytes=np.array([float(one.cached_values) for one in attention])
        * np.array(wide)
        * np.where(rows.data_parallel > 1, 1.0, np.array(copies)),
        layers=attending - windowed,
        window_layers=windowed,
        window=np.array([float(one.window_tokens or np.inf) for one in attention]),
    )


def _token_flops(shape: ModelShape) -> int:
    """Of one more token of a prompt, but for what it looks at."""
    return shape.prefill_flops(2) - shape.prefill_flops(1) - shape.attention_flops(2, 2, absorbed=False)


def stand_in(rows: Rows, place: int) -> ModelShape:
    """A shape with as many parameters as the row's model: of usual proportions, where no configuration is known.

    A dense transformer has some 12 × hidden² parameters a layer (Kaplan et al., arXiv 2001.08361, section 2.1). Here
    it has hidden / 128 layers, 8 heads of keys and values, and 128 experts of which 8 are visited, if active parameters
    are fewer.
    """
    total, active = float(rows.total_parameters[place]), float(rows.active_parameters[place])
    heads = max(8, round((WIDTH_OVER_DEPTH * active / 12) ** (1 / 3) / 128))
    hidden = heads * 128
    layers = max(1, round(active / (12 * hidden**2)))
    experts = None
    if total > 1.2 * active:
        idle = STAND_IN_EXPERTS - STAND_IN_VISITED
        experts = ExpertShape(
            experts=STAND_IN_EXPERTS,
            experts_per_token=STAND_IN_VISITED,
            intermediate=max(1, round((total - active) / (layers * idle * 3 * hidden))),
            shared_intermediate=0,
            layers=layers,
        )
    return ModelShape(
        name=str(rows.model[place]),
        architecture="stand-in",
        layers=layers,
        hidden=hidden,
        intermediate=0 if experts else round(2.7 * hidden),
        vocabulary=128_000,
        tied=False,
        attention=AttentionShape(heads=heads, kv_heads=8, head_dim=128, value_dim=128),
        experts=experts,
    )
