"""An ordered list of cells, resolved and forecast: the file that a bare GPU node can execute.

History of the plan's schema:
    1   first release
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infergy.errors import DataError, UsageError
from infergy.files import parse_json, read_text, write_file
from infergy.records.cell import GRID_VISIT, Cell, Links, request_misfits, visit_key
from infergy.records.codec import from_json, to_json
from infergy.records.endpoint import Endpoint
from infergy.records.engine_setup import DTYPES, ENGINES, EngineSetup
from infergy.units import parse_count

PLAN_SCHEMA = "infergy.plan/1"

GIVEN = "given"
"""How a row says that its batch was given, not searched for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A cell to be measured.

    Attributes:
        batch_choice: How its batch was chosen, in words.
        forecast_prefill_s: Seconds of the prefill of one batch.
        forecast_batch_s: Seconds of one batch.
        forecast_batch_j: Energy of one batch on all GPUs; None in plans of releases that did not forecast it.
        visit: ``grid``, and where cells are visited several times ``grid-2`` and so on; a control cell is measured at
            the ``start`` and at the ``end`` of its engine config, so that drift shows.
        arrival_s: When each request of a run arrives, in seconds after the first; empty offline.
        lengths: Input and output tokens of each request of a replay; empty where all are alike.
        links: How the requests of a replay depend on each other; None if they do not.
    """

    cell: Cell
    batch_choice: str
    forecast_prefill_s: float
    forecast_batch_s: float
    visit: str = GRID_VISIT
    arrival_s: tuple[float, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    forecast_batch_j: float | None = None
    links: Links | None = None

    @property
    def key(self) -> str:
        """Identifies this visit in a store."""
        return visit_key(self.cell.id, self.visit)

    @property
    def round(self) -> int:
        """Which visit in the grid it is, from 1 on; 1 of a control cell."""
        return parse_count(self.visit.removeprefix(f"{GRID_VISIT}-")) or 1

    def check_requests(self) -> None:
        """Reject arrival times and lengths that are not those of its requests: a bare node cannot draw them.

        Raises:
            DataError: There are others than its load asks for.
        """
        for name, found, expected in request_misfits(self.cell.load, self.arrival_s, self.lengths, self.links):
            message = (
                f"the plan holds {found!r:.80} as {name} of {self.cell}; expected {expected}. "
                "Make it again with: infergy measure GRID --plan FILE"
            )
            raise DataError(message, code="plan-incomplete", cell=self.cell.id, missing=name, found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How each cell is measured.

    Attributes:
        seed: Seed of prompts and random weights.
        target: Windows repeat until the 95 % interval of the joules is within ± this fraction.
        max_time_s: No further window once the batches of a cell have taken so many seconds; 0 takes one window.
        min_window_s: Shortest window, in seconds.
        min_batches: Fewest batches in a window, unless one batch takes `long_batch_s`.
        long_batch_s: Above this many seconds, one batch is enough.
        warmup_s: Most seconds of warm-up before a window (one short batch runs in any case).
        idle_s: Seconds over which idle power is measured, bare and loaded, once for each engine config.
        bare_idle_s: Seconds of the bare one, where that differs; 0 takes none.
        timeline_s: Time between two looks at instant power; 0 takes no timeline.
        repeats: Visits of each cell of the grid, each in a round of all cells in an order of its own; its windows are
            spread over them.
        hang_s: An engine that loads or measures a cell for so many seconds more than ten times its forecast is ended.
    """

    seed: int = 0
    target: float = 0.02
    max_time_s: float = 60.0
    min_window_s: float = 3.0
    min_batches: int = 2
    long_batch_s: float = 5.0
    warmup_s: float = 2.0
    idle_s: float = 2.0
    hang_s: float = 600.0
    timeline_s: float = 0.02
    repeats: int = 1
    bare_idle_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_window_s", "min_batches", "long_batch_s", "warmup_s", "idle_s", "hang_s", "repeats"):
            if not getattr(self, name) > 0:
                raise UsageError.bad_value(name, getattr(self, name), "more than 0")
        if self.seed < 0:
            raise UsageError.bad_value("seed", self.seed, "at least 0")
        if not 0 < self.target < 1:
            raise UsageError.bad_value("target", self.target, "a share above 0 and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Cells in the order of measuring, and all that a node without the catalog needs to run them.

    Attributes:
        gpu: Catalog name of the GPU for which batches and forecasts were resolved.
        models: Hugging Face `config.json` objects by the names that engine configs use, also of draft models.
        endpoint: The server that runs already and serves all cells; None where engines are started for them.
    """

    name: str
    gpu: str
    cells: tuple[PlannedCell, ...]
    models: Mapping[str, Mapping[str, Any]]
    options: MeasureOptions = field(default_factory=MeasureOptions)
    endpoint: Endpoint | None = None
    schema: str = PLAN_SCHEMA

    def by_setup(self) -> dict[EngineSetup, list[PlannedCell]]:
        """The cells grouped by engine config, both in the plan's order."""
        groups: dict[EngineSetup, list[PlannedCell]] = {}
        for planned in self.cells:
            groups.setdefault(planned.cell.setup, []).append(planned)
        return groups

    def draft_config(self, setup: EngineSetup) -> Mapping[str, Any] | None:
        """The configuration of an engine config's draft model; None if it has none."""
        return None if setup.speculation is None else self.models[setup.speculation.draft]

    def save(self, path: Path) -> None:
        """Write the plan as JSON.

        Raises:
            UsageError: The file cannot be written, or holds something else than a plan, which would be lost.
        """
        write_file(path, json.dumps(to_json(self), indent=1) + "\n", "plan", f'"{PLAN_SCHEMA.partition("/")[0]}/')

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan.

        Raises:
            DataError: The file is no plan of a schema this release reads, or has values that cannot be meant.
        """
        hint = f"Make a plan with: infergy measure GRID.toml --plan {path}"
        data = parse_json(read_text(path, hint), path, hint, finite=False)
        if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA:
            message = f'{path}: not a plan (expected "schema": "{PLAN_SCHEMA}"). {hint}'
            raise DataError(message, code="wrong-schema", path=str(path), expected=PLAN_SCHEMA)
        plan = from_json(cls, data, str(path))
        if not plan.cells:
            raise DataError.bad_field(path, "cells", [], f"one at least. {hint}")
        for index, planned in enumerate(plan.cells):
            planned.check_requests()
            for name, known in (("engine", ENGINES), ("dtype", DTYPES)):
                if (value := getattr(planned.cell.setup, name)) not in known:
                    expected = f"one of {', '.join(known)}. {hint}"
                    raise DataError.bad_field(path, f"cells[{index}].cell.setup.{name}", value, expected)
        return plan
