"""Our own rows, each model, kind of GPU and host left out in turn: what the fit of the others says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from infergy.catalog.models import shipped_model
from infergy.cost.constants import Fit, prior_fit, published_fit
from infergy.cost.fit import fit, fit_row
from infergy.cost.fit_rows import entries_of, run_rows
from infergy.cost.model import UNSEEN_GPU_SD, unseen_sd
from infergy.cost.rates import rates_of
from infergy.cost.table import ServedBy, TableEntry, shipped_table
from infergy.estimates.build import entries_of_rows
from scoreboard.fit import fit_served, own_entries, own_fit
from scoreboard.rows import backbone_of, read_rows

Column = np.ndarray[Any, np.dtype[np.float64]]

QUICK = Path(__file__).parents[1] / "quick"
"""Rows of `infergy measure quick`, which the shipped table does not have."""
MANY, EVERY = 20, 4
Z90 = 1.645
SHIFT = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScore:
    """How far rows of ours are off whose model, GPU or host was left out; errors as fractions of the measured value.

    Attributes:
        split: ``model``, ``family``, ``gpu`` or ``host``: what was left out.
        group: Engine and kind of model, or a server.
        coverage: Shares of rows inside the 90 % intervals of energy and of time.
    """

    split: str
    group: str
    rows: int
    energy_median: float
    energy_p90: float
    time_median: float
    time_p90: float
    coverage: tuple[float, float]


def entries_to_leave_out() -> tuple[TableEntry, ...]:
    """Entries of the shipped table, and those of the quick studies, by engine."""
    quick = entries_of_rows(sorted(QUICK.glob("*.jsonl")), shipped_table().fits)[0]
    return (*few_of_each(own_entries("transformers")), *few_of_each(own_entries("vllm")), *quick)


def few_of_each(entries: Sequence[TableEntry]) -> list[TableEntry]:
    """Of a server with many rows every fourth, which say nearly as much: a fit of all takes ten seconds and more."""
    count, seen = Counter(entry.served_by for entry in entries), Counter[ServedBy]()
    kept = []
    for entry in entries:
        if count[entry.served_by] <= MANY or seen[entry.served_by] % EVERY == 0:
            kept.append(entry)
        seen[entry.served_by] += 1
    return kept


SPLITS: Mapping[str, Callable[[TableEntry], str]] = {
    "model": lambda entry: backbone_of(entry.served_by.model),
    "family": lambda entry: shipped_model(entry.served_by.model).checkpoint.architecture or entry.served_by.model,
    "gpu": lambda entry: entry.served_by.gpu,
    "host": lambda entry: entry.origin.unit,
}


def folds(entries: Sequence[TableEntry], split: str) -> Iterator[tuple[list[TableEntry], list[TableEntry]]]:
    """Seen and left-out entries; none where nothing would be seen."""
    names = [SPLITS[split](entry) for entry in entries]
    for left in sorted(set(names)):
        seen = [entry for entry, name in zip(entries, names, strict=True) if name != left]
        if seen:
            yield seen, [entry for entry, name in zip(entries, names, strict=True) if name == left]


def left_out(entries: Sequence[TableEntry], split: str) -> Iterator[tuple[TableEntry, Column, Column]]:
    """Each entry, with predicted over measured energy and time as logarithms, and their standard deviations."""
    for engine in sorted({entry.served_by.engine for entry in entries}):
        own = [entry for entry in entries if entry.served_by.engine == engine]
        for seen, unseen in folds(own, split):
            known = fit(engine, [fit_row(entry) for entry in seen], _published(engine, split, seen, unseen))[0]
            servers = {replace(entry.served_by, is_api=False) for entry in seen}
            groups: dict[Any, list[TableEntry]] = {}
            for entry in unseen:
                groups.setdefault((entry.served_by, entry.origin.unit), []).append(entry)
            for members in groups.values():
                error, sd = predict(members, known, servers)
                yield from zip(members, error, sd, strict=True)


def _published(engine: str, split: str, seen: Sequence[TableEntry], unseen: Sequence[TableEntry]) -> Fit:
    """What the benchmark's rows say, those of the networks or GPUs left out among them left out too."""
    if split == "host" or engine != "vllm":
        return published_fit(engine)
    rows, energy_j = read_rows()
    networks = {backbone_of(entry.served_by.model) for entry in unseen} if split != "gpu" else set()
    gpus = {entry.served_by.gpu for entry in unseen} if split == "gpu" else set()
    kept = np.flatnonzero(~np.isin(rows.backbone.astype(str), [*networks]) & ~np.isin(rows.gpu.astype(str), [*gpus]))
    return fit_served(rows.take(kept), energy_j[kept], own_fit(seen)).published or prior_fit(engine)


def predict(members: Sequence[TableEntry], known: Fit, servers: set[ServedBy]) -> tuple[Column, Column]:
    """Logarithms of predicted over measured energy and time of entries of one server, and their sd; shape (rows, 2)."""
    rows = [fit_row(entry) for entry in members]
    first = rows[0]
    names, _, covariance = known.logs(first.gpu.name)
    values = known.constants(first.gpu.name)
    shifts = np.vstack([np.zeros(len(names)), SHIFT * np.eye(len(names))])
    columns: dict[str, Any] = {
        name: values[name] * np.exp(shifts[:, index])[:, None] for index, name in enumerate(names)
    }
    idle_w = np.array([row.idle_w for row in rows])
    rates = rates_of(first.work, first.gpu, columns, idle_w=idle_w, server=first.server)
    seconds, energy = run_rows(rows, rates, columns["call_s"], entries_of(rows))
    at = np.log(np.stack([energy, np.broadcast_to(seconds, energy.shape)], axis=-1))
    slopes = (at[1:] - at[0]) / SHIFT  # constants, rows, 2
    variance = np.einsum("cri,cd,dri->ri", slopes, covariance, slopes)
    variance += np.array([known.energy_sd**2 + known.unit_energy_sd**2, known.time_sd**2 + known.unit_time_sd**2])
    by, has_experts = members[0].served_by, first.work.experts is not None
    variance += unseen_sd(by, has_experts=has_experts, measured=servers) ** 2
    variance += 0.0 if first.gpu.name in known.rows else UNSEEN_GPU_SD**2
    measured = np.log(np.array([(row.energy_j, row.seconds or np.nan) for row in rows]))
    return at[0] - measured, np.sqrt(variance)


def kind_of(entry: TableEntry) -> str:
    """Engine and kind of model."""
    by = entry.served_by
    kind = "dense" if shipped_model(by.model).experts is None else "experts"
    return f"{by.engine}, {kind}"


def server_name(entry: TableEntry) -> str:
    """A server in words."""
    by = entry.served_by
    return f"{by.engine} {by.model} {by.dtype} {by.gpus} x {by.gpu}{'' if by.has_graphs else ', no graphs'}"


def score_own(split: str) -> list[OwnScore]:
    """Scores of engines and kinds of models, then of servers; each fold's constants are fitted without what it leaves out."""
    results = list(left_out(entries_to_leave_out(), split))
    return [*_scores(results, split, kind_of), *_scores(results, split, server_name)]


def _scores(
    results: Sequence[tuple[TableEntry, Column, Column]], split: str, group: Callable[[TableEntry], str]
) -> list[OwnScore]:
    groups: dict[str, list[tuple[Column, Column]]] = {}
    for entry, error, sd in results:
        groups.setdefault(group(entry), []).append((error, sd))
    made = []
    for name, members in sorted(groups.items()):
        logs, sd = (np.array(column) for column in zip(*members, strict=True))
        size = np.abs(np.expm1(logs))
        median, p90 = np.nanmedian(size, axis=0), np.nanquantile(size, 0.9, axis=0)
        inside = np.nanmean(np.where(np.isfinite(logs), np.abs(logs) <= Z90 * sd, np.nan), axis=0)
        made.append(
            OwnScore(
                split=split,
                group=name,
                rows=len(members),
                energy_median=float(median[0]),
                energy_p90=float(p90[0]),
                time_median=float(median[1]),
                time_p90=float(p90[1]),
                coverage=(float(inside[0]), float(inside[1])),
            )
        )
    return made
