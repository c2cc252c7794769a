"""Studies: grids that ship, each for a figure or table of arXiv 2504.17674; what each would take to measure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from infergy.errors import InfergyError, UsageError
from infergy.measure.forecast import total_j, total_s
from infergy.records import Cell, Plan

STUDIES_SCHEMA = "infergy.studies/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySize:
    """What measuring a study takes, by the forecasts of its plan (`infergy.measure.planner`).

    Attributes:
        cells: Distinct cells.
        setups: Engine configs, each loaded once.
        gpus: GPUs of the engine config that needs most.
        forecast_s: Seconds of measuring, loading included.
        forecast_energy_j: Energy of all GPUs while measuring.
        measured: How many of the cells have a row in the shipped tables of this GPU.
    """

    cells: int
    setups: int
    gpus: int
    forecast_s: float
    forecast_energy_j: float
    measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A shipped study.

    Attributes:
        title: What it shows, in a few words.
        figure: Which figure or table of the paper it stands beside; empty for one of our own.
        claims: Groups of the paper's claims that it is compared with.
        model: Its model, several with commas between, and `gpu` the GPU for which its sizes are.
        needs: What infergy lacks to measure it; empty if nothing.
        full: All of it; None with `reason` where it cannot be measured.
        quick: Its smaller grid; None where it has none, and with `quick_reason` where it cannot be measured.
    """

    name: str
    title: str
    figure: str
    claims: tuple[str, ...]
    model: str
    gpu: str
    needs: tuple[str, ...]
    full: StudySize | None
    quick: StudySize | None
    reason: str | None = None
    quick_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyList:
    """All shipped studies."""

    studies: tuple[Study, ...]
    schema: str = STUDIES_SCHEMA


def study_names() -> tuple[str, ...]:
    """Names of the shipped studies, in alphabetical order."""
    return tuple(sorted(file.stem for file in _folder().glob("*.toml")))


def study_path(name: str) -> Path:
    """Where the grid of a shipped study lies.

    Raises:
        UsageError: There is none of that name; the message gives the nearest.
    """
    if name not in study_names():
        hint = "A file of your own: give its path, ending in .toml or .json"
        raise UsageError.unknown("study", name, study_names(), hint, code="unknown-name")
    return _folder() / f"{name}.toml"


def describe_study(name: str, changes: Mapping[str, Any], measured: Mapping[str, Collection[str]]) -> Study:
    """A study and its sizes.

    Args:
        name: Of a shipped study.
        changes: `gpu` or `model` in place of the grid's own.
        measured: Ids of the cells that have a row, by the catalog's name of the GPU.

    Raises:
        UsageError: There is no such study.
        DataError: Its file is no grid.
    """
    from infergy.measure.grid import make_plan, parse_grid, read_toml, shrink

    def size(data: Mapping[str, Any]) -> tuple[StudySize | None, str | None]:
        try:
            plan = make_plan(parse_grid(data, "the study"))
        except InfergyError as error:
            return None, str(error)
        return size_of(plan, measured.get(plan.gpu, ())), None

    path = study_path(name)
    data = read_toml(path) | dict(changes)
    grid = parse_grid(data, str(path))
    full, reason = size(data)
    quick, quick_reason = size(shrink(data, name)) if grid.quick else (None, None)
    return Study(
        name=name,
        title=grid.title,
        figure=grid.figure,
        claims=tuple(grid.claims),
        model=", ".join(dict.fromkeys(axis.model or grid.model for axis in grid.engines)),
        gpu=grid.gpu,
        needs=tuple(grid.needs),
        full=full,
        quick=quick,
        reason=reason,
        quick_reason=quick_reason,
    )


def study_cells(gpu: str) -> dict[str, tuple[Cell, ...]]:
    """The cells of each study's full grid on a GPU of the catalog; none of one that cannot be measured there."""
    from infergy.measure.grid import make_plan, parse_grid, read_toml

    cells: dict[str, tuple[Cell, ...]] = dict.fromkeys(study_names(), ())
    for name in cells:
        with suppress(InfergyError):
            plan = make_plan(parse_grid(read_toml(study_path(name)) | {"gpu": gpu}, name))
            cells[name] = tuple({planned.cell.id: planned.cell for planned in plan.cells}.values())
    return cells


def size_of(plan: Plan, measured: Collection[str] = ()) -> StudySize:
    """What measuring `plan` takes; `measured` are ids of cells that have a row."""
    groups = plan.by_setup()
    cells = {planned.cell.id for planned in plan.cells}
    return StudySize(
        cells=len(cells),
        setups=len(groups),
        gpus=max(setup.tensor_parallel for setup in groups),
        forecast_s=total_s(groups.items(), plan.options),
        forecast_energy_j=total_j(plan),
        measured=len(cells & set(measured)),
    )


def _folder() -> Path:
    return Path(str(resources.files("infergy"))) / "data" / "studies"
