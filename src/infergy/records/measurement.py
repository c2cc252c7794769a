"""One row: a cell, and the raw facts of its windows; the figures that follow from them are `infergy.records.result`.

History of the row's schema:
    1   one window a row, its batches beside it; still read
    2   several windows a row, each with its batches
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infergy.errors import DataError
from infergy.records.cell import GRID_VISIT, Cell, Links, visit_key
from infergy.records.codec import from_json, to_json
from infergy.records.environment import Environment, GpuState, Rescaled
from infergy.records.result import Result
from infergy.records.row_checks import reject_impossible
from infergy.records.timeline import PowerTimeline
from infergy.records.window import Window

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
        lengths: Input and output tokens of each request of a replay, as they were served: a server that runs already
            may serve others than its cell asks for. Empty where all are alike.
        links: How the requests of a replay depend on each other; None if they do not.
        loaded_idle: A window over the idle, loaded GPU: the power of idle tails that have no settled tick.
        bare_idle: A window over the GPU before the engine was loaded; None if it was not taken.
        loading: A window over the loading of the engine, from a free GPU to its first answer; None in older rows.
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
    links: Links | None = None
    loading: Window | None = None
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
    def waits_for_answers(self) -> bool:
        """Whether some of its requests arrive after answers, not at `arrival_s`."""
        return self.links is not None and bool(self.links.after)

    @property
    def is_of_endpoint(self) -> bool:
        """Whether a server made it that ran already, and counted its own tokens."""
        return any(batch.served is not None for window in self.windows for batch in window.batches)

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

        Args:
            data: What `json.loads` gave.
            place: Where the row stands, for messages.

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
