"""Rows as steps: the steady state of a server, whose steps decode a batch and prefill what joins it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from infergy.catalog.gpus import IDLE_SHARE, Gpu, get_gpu
from infergy.catalog.layers import AttentionShape, ExpertShape, MlpShape
from infergy.catalog.shape import Checkpoint, ModelShape
from infergy.cost.rates import Rates, rates_of
from infergy.cost.step import StepSums, added_j, free_s, slowed_j, stretched_s
from infergy.cost.work import ServerWork, server_work
from scoreboard.rows import Rows

Column = np.ndarray[Any, np.dtype[Any]]

INPUT_TOKENS: Mapping[str, float] = {
    "lm-arena-chat": 500.0,
    "gpqa": 250.0,
    "sourcegraph-fim": 2000.0,
    "image-chat": 900.0,
    "video-chat": 4000.0,
}
"""Length of a task's prompts: guesses by the benchmark's data sets (turns of a chat; questions with four answers; code
around a gap), corrected by a fitted factor."""

ANY_INPUT_TOKENS = 500.0
PROMPTS: Mapping[str, float] = {"gpqa": 198.0, "video-chat": 512.0}
"""Prompts of a task; of the other tasks 1,024. Those sent again are found in the prefix cache."""
MEMORY_SHARE = 0.9
LARGEST_GRAPH = 512.0
"""Tokens."""
WIDTH_OVER_DEPTH = 128
NO_WINDOW = 1e12
"""Tokens; more than any context."""
STAND_IN_EXPERTS, STAND_IN_VISITED = 128, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of the server of each row: some decode a batch, in the others prompts join it.

    CUDA graphs are captured up to twice `max_num_seqs` tokens, at most 512 (vLLM's default): larger steps have none.

    Attributes:
        servers: What serves, each once; `server` the index of a row's own.
        batch: Sequences that decode.
        requests: Requests that begin in a step.
        inputs: Guessed length of prompts; `position` mean position in an answer of a sequence that decodes.
        graphs: Tokens of the largest CUDA graph.
        fresh: Share of the prompts that no earlier request had.
    """

    servers: tuple[tuple[ServerWork, Gpu], ...]
    server: Column
    batch: Column
    requests: Column
    inputs: Column
    position: Column
    graphs: Column
    fresh: Column

    def rates(self, constants: Callable[[str], Mapping[str, Any]]) -> Rates:
        """Rates as columns, a row each.

        Args:
            constants: Values of the constants on a kind of GPU, by name: numbers, or columns of shape (k, 1).
        """
        known = {name: constants(name) for name in {gpu.name for _, gpu in self.servers}}
        return columns_of(
            [
                rates_of(
                    work,
                    gpu,
                    known[gpu.name],
                    idle_w=IDLE_SHARE * gpu.tdp_w * work.gpus,
                    server=True,
                    sorts=True,
                )
                for work, gpu in self.servers
            ],
            self.server,
        )

    def decode(self, longer: Column | float = 1.0) -> StepSums:
        """The sums of a step that decodes alone, where prompts are so many times longer than guessed."""
        zeros = np.zeros(len(self.batch))
        return StepSums(
            decodes=self.batch,
            context=self.batch * (self.inputs * longer + self.position),
            prefill_tokens=zeros,
            prefill_pairs=zeros,
            prefills=zeros,
            sampled=self.batch,
            padded=self._padded(self.batch),
        )

    def mixed(self, longer: Column | float = 1.0) -> tuple[Column, StepSums]:
        """The share of steps that prompts join, and the sums of one of them."""
        share = np.minimum(1.0, self.requests)
        prompts, inputs = self.requests / share, self.inputs * longer
        tokens = prompts * inputs * self.fresh
        return share, StepSums(
            decodes=self.batch,
            context=self.batch * (inputs + self.position),
            prefill_tokens=tokens,
            prefill_pairs=tokens * (inputs + 1) / 2,
            prefills=prompts,
            sampled=self.batch + prompts,
            padded=self._padded(self.batch + tokens),
        )

    def _padded(self, tokens: Column) -> Column:
        return np.where(tokens <= self.graphs, tokens, 0.0)

    def average(self) -> StepSums:
        """The sums of the mean step, with prompts of the guessed length."""
        tokens = self.requests * self.inputs * self.fresh
        return self.decode()._replace(
            prefill_tokens=tokens,
            prefill_pairs=tokens * (self.inputs + 1) / 2,
            prefills=self.requests,
            sampled=self.batch + self.requests,
        )

    def energy_j(self, constants: Callable[[str], Mapping[str, Any]], longer: Column | float = 1.0) -> Column:
        """Energy per output token of each row, of shape (k, rows)."""
        rates = self.rates(constants)
        sums = self.decode(longer)
        share, mixed = self.mixed(longer)
        added = (1 - share) * added_j(rates, sums) + share * added_j(rates, mixed)
        free = (1 - share) * free_s(rates, sums) + share * free_s(rates, mixed)
        power = rates.power
        # The limiter averages over many steps of one load: its average stands at the limit if power is at it at all.
        seconds = stretched_s(power, added, free, power.limit_w, np.exp, np.maximum)
        energy: Column = (slowed_j(power, added, free, seconds) + power.base_w * seconds) / self.batch
        return energy


def steps_of(rows: Rows) -> Steps:
    """The steps of each row, in their order."""
    kinds = list(
        zip(
            rows.model,
            rows.precision,
            rows.gpu,
            map(int, rows.gpus),
            rows.expert_parallel > 1,
            rows.data_parallel > 1,
            strict=True,
        )
    )
    index: dict[Any, int] = {}
    servers: list[tuple[ServerWork, Gpu]] = []
    for row, kind in enumerate(kinds):
        if kind in index:
            continue
        index[kind] = len(servers)
        _, precision, gpu, gpus, dispatched, replicated = kind
        shape = rows.shapes[row] or stand_in(rows, row)
        work = server_work(
            shape,
            dtype=str(precision),
            gpus=gpus,
            dispatched=bool(dispatched),
            replicated=bool(replicated),
            kernel="fitted" if gpu == "b200" and "DeepSeek" in str(rows.model[row]) else None,
        )
        servers.append((work, get_gpu(gpu)))
    # Energy is counted from when `max_num_seqs` requests have begun until as many are left: by simulations of answers
    # whose lengths vary by 0.6, few rounds of requests see the first parts of answers only, and fewer new prompts.
    rounds = _prompts(rows) * rows.repeats / rows.max_num_seqs
    inputs = np.array([INPUT_TOKENS.get(task, ANY_INPUT_TOKENS) for task in rows.task])
    server = np.array([index[kind] for kind in kinds])
    return Steps(
        servers=tuple(servers),
        server=server,
        batch=rows.batch,
        requests=rows.batch / rows.output_tokens * np.maximum(0.3, 1.0 - 0.45 / rounds),
        inputs=inputs,
        position=0.68 * rows.output_tokens * np.maximum(0.3, 1.0 - 0.75 / rounds),
        graphs=np.minimum(LARGEST_GRAPH, 2 * rows.max_num_seqs),
        fresh=1.0 - _cached(rows, inputs, np.array([_cache_tokens(work, gpu) for work, gpu in servers])[server]),
    )


def _prompts(rows: Rows) -> Column:
    return np.array([PROMPTS.get(str(task), 1024.0) for task in rows.task])


def _cache_tokens(work: ServerWork, gpu: Gpu) -> float:
    """Tokens whose keys and values fit."""
    weights = work.weight_bytes
    if work.experts is not None:
        weights = weights / (work.gpus if work.experts.replicated else 1) + work.experts.routed_bytes
    left = MEMORY_SHARE * gpu.memory_bytes * work.gpus - weights
    return max(0.0, left) / max(1.0, work.attention.write_bytes)


def _cached(rows: Rows, inputs: Column, capacity: Column) -> Column:
    """The share of prompts that the prefix cache has: of those sent again, what fits beside the requests that run."""
    prompts = _prompts(rows)
    counted = np.maximum(1.0, prompts * rows.repeats - rows.max_num_seqs)
    again = np.where(rows.repeats > 1, 1.0 - np.clip((prompts - rows.max_num_seqs) / counted, 0.0, 1.0), 0.0)
    running = rows.batch * (inputs + rows.output_tokens / 2)
    # Replicas have caches of their own, and a request goes to any.
    return np.asarray(again * np.minimum(1.0, capacity / (running + prompts * inputs)) / rows.data_parallel)


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
            layers=layers,
        )
    return ModelShape(
        name=str(rows.model[place]),
        layers=layers,
        hidden=hidden,
        vocabulary=128_000,
        tied=False,
        attention=AttentionShape(heads=heads, kv_heads=8, head_dim=128, value_dim=128),
        attention_layers=layers,
        mlp=MlpShape(intermediate=round(2.7 * hidden), layers=0 if experts else layers),
        checkpoint=Checkpoint(architecture="stand-in"),
        experts=experts,
    )


def columns_of(rates: Sequence[Rates], rows: np.ndarray[Any, np.dtype[np.int64]]) -> Rates:
    """Rates of several servers as columns of shape (k, rows).

    Args:
        rates: Of each server, from constants of one shape, (k, 1).
        rows: For each row the index of its server.
    """
    columns: Rates = _joined(rates, rows)
    return columns


def _joined(parts: Sequence[Any], rows: Any) -> Any:
    if is_dataclass(parts[0]):
        kind: Any = type(parts[0])
        return kind(**{f.name: _joined([getattr(part, f.name) for part in parts], rows) for f in fields(kind)})
    if all(part is None for part in parts):
        return None
    # No window beside those of other servers: a finite one, since 0 decodes x infinity is no number.
    values = [np.atleast_2d(NO_WINDOW if part is None else part) for part in parts]
    return np.hstack(np.broadcast_arrays(*values))[:, rows]
