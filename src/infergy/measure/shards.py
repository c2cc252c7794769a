"""One plan, several machines: the part of it that each measures. Standard library only.

Which cell goes where follows from the plan's content alone, not from the order in which it was written, so that each
machine can make its own part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from infergy.errors import UsageError
from infergy.measure.forecast import cell_s, setup_s
from infergy.records import END_VISIT, START_VISIT, Plan, PlannedCell

Name = TypeVar("Name", int, str)


def parse_shard(text: str) -> tuple[int, int]:
    """``2/5``: which part, from 1 on, and of how many.

    Raises:
        UsageError: It is no such part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise UsageError.bad_value("--shard", text, "a part of how many, as 1/5 to 5/5")
    return index, count


def shard(plan: Plan, index: int, count: int) -> Plan:
    """Part `index` of `count` (from 1 on), its cells in the plan's order.

    An engine config stays whole while there are at least as many engine configs as parts; else the longest ones
    are divided by cells, each piece with the config's control cells. The longest goes first,
    each to the part that has least to do.

    Raises:
        UsageError: There are fewer cells than parts.
    """
    pieces = _pieces(plan, count)
    if len(pieces) < count:
        raise UsageError.bad_value(
            "--shard", f"{index}/{count}", f"at most {len(pieces)} parts: --shard 1/{len(pieces)}"
        )
    parts = _spread({place: _seconds(piece, plan) for place, piece in enumerate(pieces)}, count)
    mine = {planned.key for place in parts[index - 1] for planned in pieces[place]}
    # Control cells of a divided engine config are in several pieces under the same keys, and in this part once.
    cells = tuple(planned for planned in plan.cells if planned.key in mine)
    models = {name for planned in cells for name in planned.cell.setup.models}
    return replace(
        plan,
        name=f"{plan.name} {index}/{count}",
        cells=cells,
        models={name: config for name, config in plan.models.items() if name in models},
    )


def _pieces(plan: Plan, count: int) -> list[list[PlannedCell]]:
    """At least `count` pieces of whole engine configs or of cells of one, if there are so many cells."""
    groups = sorted(plan.by_setup().items(), key=lambda group: group[0].id)
    # Into how many pieces each engine config is divided: the one with the longest pieces gets one more.
    shares = dict.fromkeys((setup for setup, _ in groups), 1)
    seconds = {setup: _seconds(cells, plan) for setup, cells in groups}
    most = {setup: len(_by_cell(cells)) for setup, cells in groups}
    for _ in range(count - len(groups)):
        divisible = [setup for setup in shares if shares[setup] < most[setup]]
        if not divisible:
            break
        shares[min(divisible, key=lambda setup: (-seconds[setup] / shares[setup], setup.id))] += 1
    pieces: list[list[PlannedCell]] = []
    for setup, cells in groups:
        pieces += [cells] if shares[setup] == 1 else _divide(cells, plan, shares[setup])
    return pieces


def _divide(cells: Sequence[PlannedCell], plan: Plan, count: int) -> list[list[PlannedCell]]:
    """The cells of one engine config in `count` pieces, all visits of a cell in one, its control cells in each."""
    by_cell = _by_cell(cells)
    controls = [planned for planned in cells if planned.visit in (START_VISIT, END_VISIT)]
    parts = _spread({name: sum(cell_s(one, plan.options) for one in visits) for name, visits in by_cell.items()}, count)
    return [[*controls, *(planned for name in part for planned in by_cell[name])] for part in parts]


def _by_cell(cells: Sequence[PlannedCell]) -> dict[str, list[PlannedCell]]:
    """All visits in the grid by the cell's id; of an engine config that has none, its control cells."""
    visits: dict[str, list[PlannedCell]] = {}
    for planned in cells:
        if planned.visit not in (START_VISIT, END_VISIT):
            visits.setdefault(planned.cell.id, []).append(planned)
    return visits or {"": list(cells)}


def _spread(seconds: Mapping[Name, float], count: int) -> list[list[Name]]:
    """Names in `count` parts that take about equally long: the longest first, each to the part with the least to do."""
    parts: list[list[Name]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for name in sorted(seconds, key=lambda one: (-seconds[one], one)):
        # An empty part comes first even where nothing takes any time.
        least = min(range(count), key=lambda place: (loads[place], len(parts[place]), place))
        parts[least].append(name)
        loads[least] += seconds[name]
    return parts


def _seconds(cells: Sequence[PlannedCell], plan: Plan) -> float:
    # Summed by key: the order of a sum changes its last digits.
    ordered = sorted(cells, key=lambda planned: planned.key)
    return setup_s(cells[0].cell.setup, plan.options) + sum(cell_s(planned, plan.options) for planned in ordered)
