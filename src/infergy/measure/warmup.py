"""What runs before a window opens, so that nothing in it is compiled, loaded or chosen for the first time."""

from __future__ import annotations

import math
from dataclasses import replace

from infergy.engines import Session, Work
from infergy.meters import Meter
from infergy.records import GREEDY, Decoding, MeasureOptions, PlannedCell

WARMUP_OUTPUT_TOKENS = 8
"""Enough decode steps to load every kernel of a shape; the first batch at a new shape is the slow one."""

WARMUP_REQUESTS, WARMUP_REPLAY_TOKENS, WARMUP_GAP_S = 64, 32, 0.03
"""Requests that warm up a replay, with at most so many output tokens each; half of them at once, the others one after
the other with such gaps, so that steps of many sizes have run, mixed ones too."""


def make_work(
    prompts: tuple[tuple[int, ...], ...],
    output_tokens: int | tuple[int, ...],
    decoding: Decoding = GREEDY,
    arrival_s: tuple[float, ...] = (),
) -> Work:
    """All prompts, each to yield `output_tokens` (or its own of them), at once or at `arrival_s`, in seconds."""
    count = len(prompts)
    return Work(
        prompts=prompts,
        output_tokens=(output_tokens,) * count if isinstance(output_tokens, int) else output_tokens,
        arrival_s=arrival_s or (0.0,) * count,
        decoding=decoding,
    )


def warm_up(
    session: Session, meter: Meter, planned: PlannedCell, work: Work, options: MeasureOptions
) -> tuple[float, float | None]:
    """Run the cell's own shape with few output tokens, over part of the batch if all of it would take too long.

    Online it is all at once too: what warms is the shape. A replay has many shapes. What is compiled is compiled for
    one batch and one length of the cache: its warm-up is the work itself.

    Returns:
        Seconds that it took, and the share of experts that its decode steps visited, if it ran the whole batch.
    """
    load, setup = planned.cell.load, planned.cell.setup
    count, is_whole = len(work.prompts), False
    if planned.lengths and setup.engine == "vllm":
        shape = replay_warm_up(work)
    elif setup.compiled:
        shape = work
    else:
        prefill_s = planned.forecast_prefill_s
        share = min(1.0, options.warmup_s / prefill_s) if prefill_s > 0 else 1.0
        count = max(1, int(count * share))
        output = min(load.output_tokens, WARMUP_OUTPUT_TOKENS)
        shape = replace(make_work(work.prompts[:count], output, work.decoding), count_experts=True)
        is_whole = count == len(work.prompts) and not load.is_online
    begun_s = meter.clock.now_s()
    completion = session.run(shape)
    return meter.clock.now_s() - begun_s, completion.experts_touched if is_whole else None


def replay_warm_up(work: Work) -> Work:
    """Requests from all over a replay, its longest prompt among them, cut to a few output tokens."""
    count = len(work.prompts)
    longest = max(range(count), key=lambda place: len(work.prompts[place]))
    chosen = sorted({longest, *range(0, count, math.ceil(count / WARMUP_REQUESTS))})
    later = len(chosen) // 2 if work.is_timed else 0
    gaps = range(later + 1 - len(chosen), later + 1)
    return replace(
        work,
        prompts=tuple(work.prompts[place] for place in chosen),
        output_tokens=tuple(min(work.output_tokens[place], WARMUP_REPLAY_TOKENS) for place in chosen),
        arrival_s=tuple(max(0, gap) * WARMUP_GAP_S for gap in gaps),
        after=(),
        gap_s=(),
    )
