"""One cell measured: the raw facts of its windows, and the figures that follow from them.

History of the row's schema:
    1   one window a row, its batches beside it; still read
    2   several windows a row, each with its batches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infergy.errors import DataError, MeterError
from infergy.records.cell import GRID_VISIT, Cell, visit_key
from infergy.records.codec import from_json, to_json
from infergy.records.environment import Environment, GpuState, Rescaled
from infergy.records.latency import (
    Latency,
    find_latency,
    mean_first_token_s,
    mean_per_output_token_s,
)
from infergy.records.row_checks import reject_impossible
from infergy.records.timeline import PowerTimeline
from infergy.records.window import Window, sum_drafts

SCHEMA = "infergy.measurement/2"
FIRST_SCHEMA = "infergy.measurement/1"

STATUS_OK = "ok"
STATUS_FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a cell has no number, in the engine's words.

    Attributes:
        code: ``out_of_memory``, ``engine``, ``died``, ``died_loading``, ``hung``, ``meter``, ``gpu_lost``, ``tokens``,
            ``node_lost``.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row of a store: a cell, and either its window or the reason there is none.

    Attributes:
        cell_id: `cell.id`, written out so that any tool can join on it.
        visit: ``grid``, or ``start`` and ``end`` of a control cell (`infergy.records.PlannedCell`).
        measured_utc: ISO 8601 instant at which the first window opened.
        seed: Seed of the prompts and of random weights.
        prompt_sha256: Hash of the token ids handed to the engine, equal across engines for a fair comparison.
        arrival_s: When each request of an online run was to arrive, in seconds after the first; empty offline.
        arrival_sha256: Hash of these times; None offline.
        lengths: Input and output tokens of each request of a replay; empty where all are alike.
        loaded_idle: A window over the idle, loaded GPU: the power of idle tails that have no settled tick.
        bare_idle: A window over the GPU before the engine was loaded; None if it was not taken.
        before: State of each GPU just before the first window opened.
        after: State of each GPU just after the last batch.
        warmup_s: Seconds of warm-up that preceded the first window.
        experts_touched: Mean share of a layer's routed experts that a decode step of the whole batch visited in the
            warm-up, 0 to 1; None of a dense model, if the engine does not report it, and where the warm-up was smaller.
        timeline: Instant power, a timeline a GPU; empty if none was taken.
        watched: The window over which it was taken, whose energy does not count: sampling power can slow an engine
            down. None if none was taken, and in older rows, whose timeline is over all windows.
        timeline_reason: Why none was taken; None if one was, and in older rows.
        interrupted: What ended the cell before its interval was narrow enough; None if nothing did.
        rescaled: The factor by which its energy was multiplied to stand for another GPU; None if they were not.
        result: The figures below, as they follow from the raw facts, for readers without this code.
    """

    cell_id: str
    cell: Cell
    status: str
    batch_choice: str
    measured_utc: str
    seed: int
    simulated: bool
    environment: Environment
    prompt_sha256: str | None = None
    windows: tuple[Window, ...] = ()
    loaded_idle: Window | None = None
    before: tuple[GpuState, ...] = ()
    after: tuple[GpuState, ...] = ()
    warmup_s: float | None = None
    experts_touched: float | None = None
    failure: Failure | None = None
    result: Result | None = None
    visit: str = GRID_VISIT
    bare_idle: Window | None = None
    interrupted: Failure | None = None
    timeline: tuple[PowerTimeline, ...] = ()
    timeline_reason: str | None = None
    watched: Window | None = None
    rescaled: Rescaled | None = None
    arrival_s: tuple[float, ...] = ()
    arrival_sha256: str | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    schema: str = SCHEMA

    @property
    def key(self) -> str:
        """Identifies this visit of the cell in a store."""
        return visit_key(self.cell_id, self.visit)

    @property
    def is_ok(self) -> bool:
        """Whether the cell was measured."""
        return self.status == STATUS_OK

    @property
    def seen_windows(self) -> tuple[Window, ...]:
        """The windows over which its timeline was taken, if there is one."""
        return self.windows if self.watched is None else (self.watched,)

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return dict(to_json(self))

    @classmethod
    def from_json(cls, data: Any, place: str = "") -> Measurement:
        """Read a row.

        Raises:
            DataError: Not a row of a schema this release reads, or a field is missing or wrong.
        """
        if not isinstance(data, Mapping) or not str(data.get("schema", "")).startswith("infergy.measurement/"):
            message = (
                f'{place}: not an infergy measurement (no "schema": "{SCHEMA}"). '
                "Rows are made by: infergy measure GRID.toml -o FILE.jsonl"
            )
            raise DataError(
                message,
                code="wrong-schema",
                place=place,
                found=data.get("schema") if isinstance(data, Mapping) else None,
                expected=SCHEMA,
            )
        if data["schema"] == FIRST_SCHEMA:
            data = _from_first(data)
        if data["schema"] != SCHEMA:
            message = (
                f"{place}: schema {data['schema']!r} is newer than this release reads ({SCHEMA}). "
                "Upgrade: pip install -U infergy"
            )
            raise DataError(message, code="newer-schema", place=place, found=data["schema"], expected=SCHEMA)
        row = from_json(cls, data, place)
        reject_impossible(row, place)
        return row


def _from_first(data: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the first schema as one of the present: its batches go into its only window."""
    others = {key: value for key, value in data.items() if key not in ("window", "batches", "flags")}
    window = data.get("window")
    windows = [] if window is None else [{**window, "batches": data.get("batches", [])}]
    return {**others, "windows": windows, "schema": SCHEMA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What follows from a row's raw facts, per batch and in total.

    Figures of requests are means over all of them; they are None if the engine does not report them, and in older rows.

    Attributes:
        energy_j: Energy per batch of all GPUs in the windows less the idle tails.
        duration_s: Seconds per batch, from handing over to the last token.
        power_w: Mean power while batches ran.
        energy_per_output_token_j: With a draft model, per token that was accepted and returned.
        batches: Batches in the windows.
        idle_s: Seconds in the windows when no batch ran (mostly last token to closing tick); the longest of all GPUs.
        idle_energy_j: What was subtracted for them, at the power of the settled tail, or at loaded-idle power.
        idle_bound_j: How far that may be off in windows without a settled tail: idle time × (mean power − loaded-idle
            power).
        time_to_first_token_s: From arrival to first token.
        time_per_output_token_s: From first token to last over the tokens after the first; None for one output token.
        requests_per_s: Requests finished per second, online the throughput that was reached.
        latency: Percentiles over the requests of online runs; None offline.
        accepted_share: Of a draft model's tokens, those that were accepted; None without one.
        tokens_per_round: Tokens per round of drafting, the model's own one included; None without a draft model.
    """

    energy_j: float
    energy_by_gpu_j: Mapping[str, float]
    duration_s: float
    power_w: float
    energy_per_request_j: float
    energy_per_output_token_j: float
    output_tokens_per_s: float
    batches: int
    idle_s: float
    idle_energy_j: float
    idle_bound_j: float
    power_by_gpu_w: Mapping[str, float] = field(default_factory=dict)
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None
    requests_per_s: float | None = None
    latency: Latency | None = None
    accepted_share: float | None = None
    tokens_per_round: float | None = None


def derive(windows: Sequence[Window], loaded_idle: Window, lengths: Sequence[tuple[int, int]] = ()) -> Result:
    """The figures of a row from its raw facts; a pure function, so that old rows can be checked again.

    `lengths` are the input and output tokens of each request of a replay; empty where all are alike.

        open tick            last token       settled      close tick
            |....■■■■■■■■■|■■■■■■■■■|...........|............|
            <idle><---- batches ----><------- idle ---------->

    Idle time counts at the power between the settled and the closing tick of the same window. The joules that a
    counter shows late are counted by then, whatever its delay: the first tick after the last token would miss some.

    Online a batch is a run from its first arrival to its last token: the energy of the gaps in which nothing was served
    are among its own, its seconds and its power are over both.

    A window without a settled tick closes on that first one. Its idle time counts at loaded-idle power. Clocks fall
    only some time after the last kernel, so its true power lies between loaded idle and the mean: the bound.

    Raises:
        MeterError: A counter or a clock stood still or ran backwards.
    """
    batches = [batch for window in windows for batch in window.batches]
    busy_s = sum(batch.duration_s for batch in batches)
    if busy_s <= 0:
        message = f"batches took {busy_s:.3f} s by the clock, expected more than 0. Measure again"
        raise MeterError(message, code="clock-wrong", busy_s=busy_s)
    totals = _joules_of(windows, loaded_idle)
    energy_j = totals.energy_j
    drafts = sum_drafts(batch.drafts for batch in batches)
    return Result(
        energy_j=energy_j / len(batches),
        energy_by_gpu_j={uuid: joules / len(batches) for uuid, joules in totals.busy_by_gpu_j.items()},
        duration_s=busy_s / len(batches),
        power_w=energy_j / busy_s,
        energy_per_request_j=energy_j / sum(batch.requests for batch in batches),
        energy_per_output_token_j=energy_j / sum(batch.output_tokens for batch in batches),
        output_tokens_per_s=sum(batch.output_tokens for batch in batches) / busy_s,
        batches=len(batches),
        idle_s=max(totals.idle_s.values()),
        idle_energy_j=sum(totals.idle_j.values()),
        idle_bound_j=sum(max(0.0, joules) for joules in totals.bound_j.values()),
        power_by_gpu_w={uuid: joules / busy_s for uuid, joules in totals.busy_by_gpu_j.items()},
        time_to_first_token_s=mean_first_token_s(batches),
        time_per_output_token_s=mean_per_output_token_s(batches),
        requests_per_s=sum(batch.requests for batch in batches) / busy_s,
        latency=find_latency(batches, [tokens for _, tokens in lengths]),
        accepted_share=None if drafts is None else drafts.accepted_share,
        tokens_per_round=None if drafts is None else drafts.tokens_per_round,
    )


def batch_energy_j(windows: Sequence[Window], loaded_idle: Window) -> float:
    """Energy per batch as of `derive`, without its other figures.

    Raises:
        MeterError: A counter stood still or ran backwards.
    """
    return _joules_of(windows, loaded_idle).energy_j / sum(len(window.batches) for window in windows)


@dataclass(frozen=True, slots=True)
class _Joules:
    """Energy of all windows by GPU: between the edges, of these while idle, and how far the idle ones may be off."""

    used_j: dict[str, float]
    idle_s: dict[str, float]
    idle_j: dict[str, float]
    bound_j: dict[str, float]

    @property
    def energy_j(self) -> float:
        return sum(self.used_j.values()) - sum(self.idle_j.values())

    @property
    def busy_by_gpu_j(self) -> dict[str, float]:
        return {uuid: used_j - self.idle_j[uuid] for uuid, used_j in self.used_j.items()}


def _joules_of(windows: Sequence[Window], loaded_idle: Window) -> _Joules:
    idle_power_w = loaded_idle.power_by_gpu_w
    used_j = dict.fromkeys(windows[0].open, 0.0)
    idle_s, idle_j, bound_j = dict(used_j), dict(used_j), dict(used_j)
    for window in windows:
        tail_w, busy_s = window.tail_power_by_gpu_w, window.busy_s
        duration_s = window.duration_by_gpu_s
        for uuid, energy_j in window.energy_by_gpu_j.items():
            seconds = max(0.0, duration_s[uuid] - busy_s)
            used_j[uuid] += energy_j
            idle_s[uuid] += seconds
            idle_j[uuid] += seconds * tail_w.get(uuid, idle_power_w[uuid])
            if uuid not in tail_w:
                bound_j[uuid] += seconds * (energy_j / duration_s[uuid] - idle_power_w[uuid])
    return _Joules(used_j, idle_s, idle_j, bound_j)


def result_of(row: Measurement) -> Result:
    """The figures of a measured row that count: `derive`, and if the row is rescaled, its joules times the factor.

    The only place where the factor is applied to joules. Seconds and tokens stay.

    Raises:
        MeterError: A counter or a clock stood still or ran backwards, or the row holds no windows.
    """
    if not row.windows or row.loaded_idle is None:
        message = f"cell {row.cell_id} ({row.cell}) has no windows, and so no energy. Measure it again"
        raise MeterError(message, code="no-window", cell=row.cell_id)
    result = derive(row.windows, row.loaded_idle, row.lengths)
    if row.rescaled is None:
        return result
    factor = row.rescaled.factor
    return replace(
        result,
        energy_j=result.energy_j * factor,
        energy_by_gpu_j={uuid: joules * factor for uuid, joules in result.energy_by_gpu_j.items()},
        power_by_gpu_w={uuid: watts * factor for uuid, watts in result.power_by_gpu_w.items()},
        power_w=result.power_w * factor,
        energy_per_request_j=result.energy_per_request_j * factor,
        energy_per_output_token_j=result.energy_per_output_token_j * factor,
        idle_energy_j=result.idle_energy_j * factor,
        idle_bound_j=result.idle_bound_j * factor,
    )
