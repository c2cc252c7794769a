"""Rows as forward passes: the steady state of a server, whose steps decode a batch and prefill what joins it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.energy.demand import Demand, decode_demand, join
from infergy.energy.physics import Chips
from infergy.hardware.gpus import get_gpu
from infergy.hardware.layers import AttentionShape, ExpertShape
from infergy.hardware.shape import ModelShape
from infergy.score.rows import Rows

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

INPUT_TOKENS: Mapping[str, float] = {
    "lm-arena-chat": 150.0,
    "gpqa": 250.0,
    "sourcegraph-fim": 800.0,
    "image-chat": 900.0,
    "video-chat": 4000.0,
}
"""Length of a task's prompts. The benchmark's tables do not tell: guesses, and what they miss a factor takes up."""

ANY_INPUT_TOKENS = 500.0
WIDTH_OVER_DEPTH = 128
STAND_IN_EXPERTS, STAND_IN_VISITED = 128, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """One step of the server of each row.

    Attributes:
        demand: What it asks.
        chips: Of whom.
        batch: Output tokens that it yields.
        requests: Requests that end in it, and so begin: batch over output length.
    """

    demand: Demand
    chips: Chips
    batch: Column
    requests: Column


def steps_of(rows: Rows) -> Steps:
    """The step of each row, in their order."""
    import numpy as np

    inputs = np.array([INPUT_TOKENS.get(task, ANY_INPUT_TOKENS) for task in rows.task])
    kinds = list(zip(rows.model, rows.precision, rows.expert_parallel > 1, rows.data_parallel > 1, strict=True))
    places: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    parts, order = [], []
    for (_, precision, is_dispatched, is_replicated), group in places.items():
        at = np.array(group)
        shape = rows.shapes[group[0]] or stand_in(rows, group[0])
        part = decode_demand(
            shape,
            rows.batch[at],
            inputs[at] + rows.output_tokens[at] / 2,
            dtype=str(precision),
            gpus=rows.gpus[at],
            is_dispatched=bool(is_dispatched),
            is_replicated=bool(is_replicated),
        )
        flops = np.array([shape.prefill_flops(max(1, int(count))) for count in inputs[at]])
        part.prompt_flops[:] = flops * rows.batch[at] / rows.output_tokens[at]
        parts.append(part)
        order.append(at)
    back = np.argsort(np.concatenate(order))
    return Steps(
        demand=join(parts).take(back),
        chips=Chips.of([get_gpu(name) for name in rows.gpu], [str(precision) for precision in rows.precision]),
        batch=rows.batch,
        requests=rows.batch / rows.output_tokens,
    )


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
