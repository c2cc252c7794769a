"""A grid of cells as a human writes it: grid.toml ─▶ Grid ─▶ axes multiplied, batches chosen, forecasts ─▶ Plan."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from infergy import files
from infergy.catalog import Gpu, ModelShape, canonical_name, get_gpu, model_config, read_shape
from infergy.catalog.models import find_draft
from infergy.errors import DataError, UsageError
from infergy.measure.control_cells import CONTROL_CELLS, choose_control_cells
from infergy.measure.planner import Planner, Run, online_sizes, resolve_arrivals
from infergy.measure.validation import Problems, batch_errors, draft_errors, length_errors, setup_errors
from infergy.records import (
    END_VISIT,
    RANDOM_WEIGHTS,
    START_VISIT,
    Arrivals,
    Decoding,
    EngineSetup,
    Load,
    MeasureOptions,
    Plan,
    PlannedCell,
    grid_visit,
)
from infergy.records.cell import GAMMA
from infergy.records.engine_setup import Speculation
from infergy.records.plan import GIVEN

FEWEST_FOR_CONTROLS = 8

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MOST_VISITS = 10_000
"""Of a cell, and batches of a window: more are a slip of the pen."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _known(parse: Callable[[str], object]) -> AfterValidator:
    """A validator of labels that `parse` understands."""

    def check(label: str) -> str:
        try:
            parse(label)
        except UsageError as error:
            # Pydantic reports ValueError.
            raise ValueError(str(error)) from error
        return label

    return AfterValidator(check)


class SpeculationAxis(_Strict):
    """Speculative decoding; see `infergy.records.engine_setup.Speculation`."""

    draft: str
    look_ahead: int
    acceptance: float | None = None
    weights: str | None = None


class EngineAxis(_Strict):
    """One engine config of a grid, of the grid's model unless `model` is given; see `infergy.records.EngineSetup`.

    Attributes:
        power_limit_w: Limits of the GPUs, an engine config for each; `sm_clock_mhz` the same of clocks.
    """

    engine: str
    model: str | None = None
    dtype: Literal["bfloat16", "float16", "fp8"] = "bfloat16"
    cuda_graphs: bool | None = None
    weights: str = RANDOM_WEIGHTS
    tensor_parallel: PositiveInt = 1
    compiled: bool = False
    speculation: SpeculationAxis | None = None
    max_sequences: PositiveInt | None = None
    usage_context: Literal["llm", "server"] = "llm"
    max_batched_tokens: PositiveInt | None = None
    prefix_caching: bool = False
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_model_len: PositiveInt | None = None
    power_limit_w: Positive | Annotated[list[Positive], Field(min_length=1)] | None = None
    sm_clock_mhz: PositiveInt | Annotated[list[PositiveInt], Field(min_length=1)] | None = None

    def setups(self, model: str) -> Iterator[EngineSetup]:
        """The engine configs that serve `model`: one for each power limit and clock.

        Raises:
            UsageError: A look-ahead or an acceptance that cannot be.
        """
        plain, drafting = self.model_dump(exclude={"speculation", "model"}), self.speculation
        if drafting is not None:
            named = drafting.model_dump() | {"draft": canonical_name(drafting.draft)}
            plain["speculation"] = Speculation(**named)
        axes = [plain.pop(name) for name in ("power_limit_w", "sm_clock_mhz")]
        for limit_w, clock_mhz in product(*(axis if isinstance(axis, list) else [axis] for axis in axes)):
            yield EngineSetup(model=model, **plain, power_limit_w=limit_w, sm_clock_mhz=clock_mhz)


class CellAxes(_Strict):
    """A block of cells: all inputs × all outputs × all batches.

    Attributes:
        batch: Sizes, or ``largest``: the largest that the memory of the GPU takes, at most `max_batch` and
            `max_batch_s`.
        max_batch_s: Never more than this many seconds of forecast GPU work a batch (launch overhead not counted, so
            that a slow host does not shrink the batch).
        decoding: How tokens are chosen, a cell for each: ``greedy``, ``beam4``, ``t0.8``, ``t0.8-p0.95-k50``
            (`infergy.records.Decoding`).
        arrivals: When the requests come, a cell for each: ``offline`` (all at once), ``poisson4``, ``gamma4-b0.5``,
            ``trace:azure-conv-2023`` (`infergy.records.Arrivals`); but offline, `batch` is the requests of one run.
            ``replay:azure-conv-2023``: all at once, each with its own lengths instead of the given ones.
            ``replay:azure-conv-2023@1x+600s/75s``: those of a window, whose number replaces `batch`.
        rate: Requests per second, the same as ``poissonRATE`` in `arrivals`, or as ``gammaRATE-bBURSTINESS`` with
            `burstiness`; with rates alone, nothing is served offline.
        paired: Whether each of them is also measured with one output token, at the same input and batch: its prefill
            alone, by which `infergy.quality.phases` separates the phases.
    """

    input_tokens: list[PositiveInt] = Field(min_length=1)
    output_tokens: list[PositiveInt] = Field(min_length=1)
    batch: Annotated[list[PositiveInt], Field(min_length=1)] | Literal["largest"] = "largest"
    max_batch: PositiveInt | None = None
    max_batch_s: Positive | None = None
    decoding: list[Annotated[str, _known(Decoding.parse_label)]] = Field(default=["greedy"], min_length=1)
    arrivals: list[Annotated[str, _known(Arrivals.parse_label)]] = []
    rate: list[Positive] = []
    burstiness: Positive = 1.0
    paired: bool = False

    def all_arrivals(self) -> list[Arrivals | None]:
        """Those by name and those by rate; offline where there are none."""
        rated = [Arrivals(law=GAMMA, rate_per_s=rate, burstiness=self.burstiness) for rate in self.rate]
        return [*map(Arrivals.parse_label, self.arrivals), *rated] or [None]


_DEFAULTS = MeasureOptions()


class Options(_Strict):
    """How each cell is measured; see `infergy.records.MeasureOptions`.

    Attributes:
        shuffle: Whether cells of an engine config are measured in random order, drawn from the seed, so that no axis
            of the grid follows the time of day or the temperature of the GPU.
        anchors: How many cells of each engine config are measured at its start and again at its end, so that drift
            shows; none in one of fewer than `FEWEST_FOR_CONTROLS` cells.
    """

    seed: int = _DEFAULTS.seed
    shuffle: bool = True
    anchors: Annotated[int, Field(ge=0)] = CONTROL_CELLS
    target: Annotated[float, Field(gt=0, lt=1)] = _DEFAULTS.target
    max_time_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _DEFAULTS.max_time_s
    min_window_s: Positive = _DEFAULTS.min_window_s
    min_batches: Annotated[int, Field(ge=1, le=MOST_VISITS)] = _DEFAULTS.min_batches
    long_batch_s: Positive = _DEFAULTS.long_batch_s
    warmup_s: Positive = _DEFAULTS.warmup_s
    idle_s: Positive = _DEFAULTS.idle_s
    hang_s: Positive = _DEFAULTS.hang_s
    timeline_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _DEFAULTS.timeline_s
    repeats: Annotated[int, Field(ge=1, le=MOST_VISITS)] = _DEFAULTS.repeats


class Quick(_Strict):
    """A smaller grid that shows the same: what is given here replaces the grid's own.

    Those of the shipped studies hold cells of the full grid only, so that a store of theirs can be continued.
    """

    engines: list[EngineAxis] | None = Field(default=None, min_length=1)
    cells: list[CellAxes] | None = Field(default=None, min_length=1)


class Grid(_Strict):
    """What to measure: a model on a GPU, engine configs, and blocks of cells.

    Attributes:
        title: What it shows, in a few words.
        figure: The figure or table of arXiv 2504.17674 that it corresponds to; empty for one of our own.
        claims: Groups of the paper's claims that it is compared with (docs/studies.md).
        needs: What infergy lacks to measure it; such a grid is rejected before anything runs.
    """

    name: str
    gpu: str
    model: str
    engines: list[EngineAxis] = Field(min_length=1)
    cells: list[CellAxes] = Field(min_length=1)
    options: Options = Options()
    description: str = ""
    title: str = ""
    figure: str = ""
    claims: list[str] = []
    needs: list[str] = []
    quick: Quick | None = None

    @property
    def models(self) -> list[str]:
        """The models of its engine configs, those of drafts too, each once."""
        drafts = [axis.speculation.draft for axis in self.engines if axis.speculation is not None]
        return list(dict.fromkeys([*(axis.model or self.model for axis in self.engines), *drafts]))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a grid's file.

    Raises:
        DataError: The file is missing, cannot be read, or is no TOML.
    """
    return files.read_toml(path, "An example: infergy list studies paper-bins")


def parse_grid(data: Mapping[str, Any], place: str) -> Grid:
    """Validate a grid; `place` names its file.

    Raises:
        DataError: A key is missing, unknown or of another type.
    """
    try:
        return Grid.model_validate(data)
    except ValidationError as error:
        problems = [{"key": ".".join(map(str, one["loc"])), "reason": one["msg"]} for one in error.errors()]
        lines = "".join(f"\n  {one['key'] or 'grid'}: {one['reason']}" for one in problems)
        message = f"{place}: not a grid:{lines}\nAn example of a grid: infergy list studies paper-bins"
        raise DataError(message, code="bad-grid", place=place, problems=problems) from error


def shrink(data: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The grid `data` with the engines and cells of its quick grid.

    Raises:
        DataError: It has none.
    """
    if "quick" not in data:
        raise DataError.missing_field(place, ["quick"], "leave out --quick, or add [[quick.cells]] to it")
    return {key: value for key, value in data.items() if key != "quick"} | dict(data["quick"])


def make_plan(first: Grid, *others: Grid) -> Plan:
    """Resolve grids: multiply the axes, choose the batches, forecast the times, order by engine config.

    Of several grids a shared engine config is loaded once, and a shared cell measured once.

    Raises:
        UsageError: infergy lacks what a grid needs; a GPU, model or engine is unknown, an engine lacks an option, a
            request is too long, or no batch of a cell fits: all reasons of a grid at once. Several grids are for
            different GPUs, measure in different ways, or call two models the same.
        DataError: A model's file is no configuration.
    """
    gpus: set[str] = set()
    configs: dict[str, Mapping[str, Any]] = {}
    setups: dict[EngineSetup, dict[str, PlannedCell]] = {}
    for grid in (first, *others):
        if grid.options != first.options:
            message = f"{first.name} and {grid.name} have other [options]: measure them one after the other"
            raise UsageError(message, code="grids-differ", grids=[first.name, grid.name])
        gpu, models, cells_of = _resolve(grid)
        gpus.add(gpu.name)
        for name in models.keys() & configs.keys():
            if models[name] != configs[name]:
                message = f"two models go by the name {name} in these grids: measure them one after the other"
                raise UsageError(message, code="grids-differ", model=name)
        configs |= models
        for setup, cells in cells_of.items():
            for planned in cells.values():
                _add(setups.setdefault(setup, {}), planned)
    if len(gpus) > 1:
        message = f"the grids are for {', '.join(sorted(gpus))}; a plan is for one GPU: --gpu {min(gpus)}"
        raise UsageError(message, code="several-gpus", gpus=sorted(gpus))
    return Plan(
        name=" + ".join(dict.fromkeys(grid.name for grid in (first, *others))),
        gpu=gpus.pop(),
        cells=tuple(one for cells in setups.values() if cells for one in _order(list(cells.values()), first.options)),
        models=configs,
        options=MeasureOptions(**first.options.model_dump(exclude={"shuffle", "anchors"})),
    )


def _add(cells: dict[str, PlannedCell], planned: PlannedCell) -> None:
    """Add a cell; of two with the same batch, one given and one chosen, the chosen one stays, for it says why."""
    if planned.key not in cells or cells[planned.key].batch_choice == GIVEN:
        cells[planned.key] = planned


def _choose_controls(cells: list[PlannedCell], options: Options) -> list[PlannedCell]:
    """None of prefill alone or online, if there is anything else: they say little of a machine."""
    full = [one for one in cells if one.cell.load.output_tokens > 1 and not one.cell.load.is_online] or cells
    return choose_control_cells(full, options.anchors if len(cells) >= FEWEST_FOR_CONTROLS else 0)


def _order(cells: list[PlannedCell], options: Options) -> list[PlannedCell]:
    """The cells of one engine config in order of measuring: control cells, rounds of all others, control cells."""
    controls = _choose_controls(cells, options)
    others = [planned for planned in cells if planned not in controls]
    shuffle = random.Random(f"{options.seed} {cells[0].cell.setup.id}").shuffle
    ordered = [replace(planned, visit=START_VISIT) for planned in controls]
    for number in range(1, options.repeats + 1):
        if options.shuffle:
            shuffle(others)
        ordered += [replace(planned, visit=grid_visit(number)) for planned in others]
    return ordered + [replace(planned, visit=END_VISIT) for planned in controls]


def _resolve(grid: Grid) -> tuple[Gpu, dict[str, Mapping[str, Any]], dict[EngineSetup, dict[str, PlannedCell]]]:
    """The GPU, the configurations of models, and the cells of each engine config by their keys, in the grid's order."""
    if grid.needs:
        message = f"{grid.name} cannot be measured yet: it needs {', '.join(grid.needs)}. Others: infergy list studies"
        raise UsageError(message, code="not-supported", study=grid.name, needs=list(grid.needs))
    problems = Problems(grid.name)
    setups, gpu, configs = _resolve_names(grid, problems)
    cells_of: dict[EngineSetup, dict[str, PlannedCell]] = {}
    for setup in setups:
        shape = read_shape(configs[setup.model], name=setup.model)
        planner = Planner(setup, shape, gpu, find_draft(setup, configs))
        cells = cells_of.setdefault(setup, {})
        for block in grid.cells:
            for load in _loads(block):
                problems.add(length_errors(setup, configs, load.lengths))
                with problems.collect():
                    for planned in _plan_load(block, load, planner, grid.options.seed):
                        problems.add(batch_errors(setup, planned.cell.load))
                        _add(cells, planned)
    problems.report()
    return gpu, configs, cells_of


def _resolve_names(grid: Grid, problems: Problems) -> tuple[list[EngineSetup], Gpu, dict[str, Mapping[str, Any]]]:
    """The engine configs, the GPU that a grid names, and the configurations of models, those of drafts too.

    Raises:
        UsageError: One of them is unknown, or an engine cannot serve an engine config: all reasons at once.
        DataError: A model's file is no configuration.
    """
    gpus: list[Gpu] = []
    with problems.collect():
        gpus.append(get_gpu(grid.gpu))
    setups: list[EngineSetup] = []
    for axis in grid.engines:
        with problems.collect():
            setups += axis.setups(canonical_name(axis.model or grid.model))
    configs: dict[str, Mapping[str, Any]] = {}
    shapes: dict[str, ModelShape] = {}
    for model in grid.models:
        with problems.collect():
            name = canonical_name(model)
            configs[name] = model_config(model)
            shapes[name] = read_shape(configs[name], name=name)
    decodings = dict.fromkeys(Decoding.parse_label(label) for block in grid.cells for label in block.decoding)
    arrivals = {one for block in grid.cells for one in block.all_arrivals() if one is not None}
    for setup in setups:
        with problems.collect():
            problems.add(draft_errors(setup, configs))
        problems.add(setup_errors(setup, shapes.get(setup.model), decodings, arrivals))
    problems.report()
    return setups, gpus[0], configs


def _loads(block: CellAxes) -> Iterator[Load]:
    """Its lengths and decodings, as loads of one request."""
    for lengths in product(block.input_tokens, block.output_tokens, map(Decoding.parse_label, block.decoding)):
        yield Load(input_tokens=lengths[0], output_tokens=lengths[1], batch=1, decoding=lengths[2])


def _plan_load(block: CellAxes, load: Load, planner: Planner, seed: int) -> Iterator[PlannedCell]:
    """The cells of `load` at each batch and all arrivals of its block."""
    for arrivals in block.all_arrivals():
        if arrivals is not None:
            for size in online_sizes(arrivals, block.batch, paired=block.paired):
                run = resolve_arrivals(replace(load, batch=size, arrivals=arrivals), seed)
                yield planner.plan(run, GIVEN)
            continue
        if isinstance(block.batch, str):
            chosen = [planner.choose_batch(load, block.max_batch, block.max_batch_s)]
        else:
            chosen = [(size, GIVEN) for size in block.batch]
        for batch, reason in chosen:
            sized = replace(load, batch=batch)
            yield planner.plan(Run(load=sized), reason)
            if block.paired:
                pair = f"that of the pair with {load.output_tokens} output tokens"
                yield planner.plan(Run(load=replace(sized, output_tokens=1)), pair)
