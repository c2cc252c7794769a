"""Rows with their intervals, flags and facts. A pure function of rows. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infergy.records.facts import IdlePower, RowFacts, find_facts, find_idle_power, net_energy_j
from infergy.records.flags import Flag, find_flags
from infergy.records.latency import Backlog, Latency, backlog_of, describe_serving
from infergy.records.measurement import Measurement
from infergy.records.result import result_of
from infergy.records.timeline import ratio
from infergy.records.uncertainty import Uncertainty, each_uncertainty
from infergy.records.unlike import find_unlike

CHECK_SCHEMA = "infergy.check/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    """A row, its interval, its flags and its facts.

    Attributes:
        cell: The cell in words.
        energy_j: Energy per batch, gross; None if the cell failed.
        net_energy_j: Energy per batch above loaded idle; None if the cell failed.
        idle: Idle power, taken three ways.
        uncertainty: Its 95 % interval; None if unknown.
        flags: Why its figures may be wrong by more than the interval.
        facts: How it was measured; None if the cell failed.
        failure: Why the cell has no number; None if it has one.
        energy_by_gpu_j: Energy per batch of each GPU, by UUID in the engine's order; empty if the cell failed.
        power_by_gpu_w: Mean power of each while batches ran.
        timeline_ratio: Energy of the counters over those of the power timelines; None where there are none.
        imbalance: Largest less smallest energy of a GPU, over their mean; None with one GPU. No flag: GPUs differ, and
            so do their shares of the work.
        requests_per_s: Requests finished per second; None if the cell failed.
        latency: Percentiles over the requests of an online cell; None offline, and if the engine did not report it.
        backlog: Requests left over halfway through its arrivals and at the last; None then too.
        serving: What an online cell reached, in words; None offline.
    """

    cell_id: str
    cell: str
    energy_j: float | None
    net_energy_j: float | None
    idle: IdlePower
    uncertainty: Uncertainty | None
    flags: tuple[Flag, ...]
    facts: RowFacts | None
    failure: str | None
    energy_by_gpu_j: Mapping[str, float]
    power_by_gpu_w: Mapping[str, float]
    imbalance: float | None
    timeline_ratio: float | None
    requests_per_s: float | None = None
    latency: Latency | None = None
    backlog: Backlog | None = None
    serving: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """All rows of a store, in its order."""

    file: str
    rows: tuple[CheckedRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `infergy check --json` prints."""

    files: tuple[CheckedFile, ...]
    schema: str = CHECK_SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggedRow:
    """A row, its 95 % interval (None if unknown), its flags, and in what it differs from its engine config's rows."""

    row: Measurement
    uncertainty: Uncertainty | None
    flags: tuple[Flag, ...]
    differs: tuple[str, ...]

    @property
    def is_flagged_or_failed(self) -> bool:
        """Whether it is flagged, or failed."""
        return bool(self.flags) or self.row.failure is not None


def flag_rows(rows: Sequence[Measurement], *, target: float | None = None) -> list[FlaggedRow]:
    """Flags of rows, in their order, each compared with the rows of its engine config.

    `target` is the widest half-width wanted, as a fraction; wider rows are flagged ``uncertain``.

    Raises:
        MeterError: A counter stood still.
    """
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.cell.setup, row.environment.weights), []).append(place)
    compared: dict[int, tuple[tuple[Flag, ...], tuple[str, ...]]] = {}
    for places in groups.values():
        compared |= zip(places, find_unlike([rows[place] for place in places]), strict=True)
    found = []
    # Rows of other weights count too: the intervals are those that estimates carry.
    for place, (row, uncertainty) in enumerate(zip(rows, each_uncertainty(rows), strict=True)):
        unlike, differs = compared[place]
        flags = (*find_flags(row, uncertainty, target=target), *unlike)
        found.append(FlaggedRow(row=row, uncertainty=uncertainty, flags=flags, differs=differs))
    return found


def check_rows(rows: Sequence[Measurement], *, target: float | None = None) -> tuple[CheckedRow, ...]:
    """As `flag_rows`, with figures and facts of each row.

    Raises:
        MeterError: A counter stood still.
    """
    return tuple(map(describe_row, flag_rows(rows, target=target)))


def describe_row(flagged: FlaggedRow) -> CheckedRow:
    """A row with its figures and facts.

    Raises:
        MeterError: A counter stood still.
    """
    row = flagged.row
    return CheckedRow(
        cell_id=row.cell_id,
        cell=str(row.cell),
        net_energy_j=net_energy_j(row),
        idle=find_idle_power(row),
        uncertainty=flagged.uncertainty,
        flags=flagged.flags,
        facts=find_facts(row, flagged.differs),
        failure=None if row.failure is None else f"{row.failure.code}: {row.failure.message}",
        timeline_ratio=ratio(row),
        backlog=backlog_of(row),
        serving=describe_serving(row) or None,
        **_figures(row),
    )


def _figures(row: Measurement) -> dict[str, Any]:
    """The fields of a `CheckedRow` that follow from the row's result."""
    if not row.windows or row.loaded_idle is None:
        return {"energy_j": None, "energy_by_gpu_j": {}, "power_by_gpu_w": {}, "imbalance": None}
    result = result_of(row)
    # Windows list the GPUs in the order in which they ticked.
    order = {gpu.uuid: index for index, gpu in enumerate(row.environment.gpus)}
    uuids = sorted(result.energy_by_gpu_j, key=lambda uuid: order.get(uuid, len(order)))
    energies_j = result.energy_by_gpu_j.values()
    mean_j = sum(energies_j) / len(energies_j)
    return {
        "energy_j": result.energy_j,
        "energy_by_gpu_j": {uuid: result.energy_by_gpu_j[uuid] for uuid in uuids},
        "power_by_gpu_w": {uuid: result.power_by_gpu_w[uuid] for uuid in uuids},
        "imbalance": (max(energies_j) - min(energies_j)) / mean_j if len(energies_j) > 1 else None,
        "requests_per_s": result.requests_per_s,
        "latency": result.latency,
    }
