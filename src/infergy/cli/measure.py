"""`infergy measure`: from grids, studies or a plan to rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.options import (
    MeterOption,
    SimulateOption,
    argument,
    flag,
    fraction,
    option,
    typed_options,
    with_options,
)
from infergy.cli.output import print_table
from infergy.cli.progress import run_sweep
from infergy.errors import EXIT_SOME_FAILED, DataError, InfergyError, UsageError
from infergy.records import GRID_VISIT, EngineSetup
from infergy.records.codec import to_json
from infergy.units import count_of, format_duration

if TYPE_CHECKING:
    from infergy.measure.grid import Grid
    from infergy.records import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOptions:
    """Which cells, in place of what a grid says."""

    engine: list[str] | None = option(
        "transformers, vllm, vllm-eager, vllm-float16-tp2 …; repeatable", "--engine", "-e"
    )
    model: str | None = option("Name or config.json", "--model", "-m")
    gpu: str | None = option("GPU to plan for [default: the one here, else the grid's]", "--gpu", "-g")
    input_tokens: str | None = option("Input tokens: 512,2048", "--input")
    output_tokens: str | None = option("Output tokens: 8,64,512", "--output")
    batch: str | None = option("Batch sizes, 1,8,32, or 'largest'")
    decoding: str | None = option("greedy, beam4, t0.8, t0.8-p0.95-k50; several with commas")
    arrivals: str | None = option("offline, poisson4, gamma4-b0.5, trace:azure-conv-2023@4; several with commas")

    def change(self, grid: dict[str, Any]) -> dict[str, Any]:
        """A grid with these in place of its own.

        Raises:
            UsageError: A number that is none, or an engine config that is unknown.
        """
        texts = {"input": self.input_tokens, "output": self.output_tokens, "batch": self.batch}
        names = {"input": "input_tokens", "output": "output_tokens", "batch": "batch"}
        block: dict[str, Any] = {
            names[name]: text if text == "largest" else _integers(f"--{name}", text)
            for name, text in texts.items()
            if text is not None
        }
        if self.decoding is not None:
            block["decoding"] = self.decoding.split(",")
        if self.arrivals is not None:
            block |= {"arrivals": self.arrivals.split(","), "rate": []}
        changes = {"model": self.model, "gpu": self.gpu, "cells": [cell | block for cell in grid["cells"]]}
        if self.engine:
            changes["engines"] = [to_json(EngineSetup.parse_label(label)) for label in self.engine]
        return grid | {key: value for key, value in changes.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMeasuring:
    """How each cell is measured, in place of what a grid says."""

    target: str | None = option("Repeat windows until the 95 % interval is within ± this [default: 2%]")
    max_time: float | None = option("Seconds per cell after which no window starts [default: 60]")
    min_window: float | None = option("Shortest window, in seconds")
    repeats: int | None = option("Visits of each cell, in shuffled order [default: 1]", min=1)
    seed: int | None = option("Seed of prompts and random weights")

    def change(self, grid: dict[str, Any]) -> dict[str, Any]:
        """A grid with these in place of its own.

        Raises:
            UsageError: The target is no share.
        """
        changes = {
            "target": None if self.target is None else fraction("--target", self.target),
            "max_time_s": self.max_time,
            "min_window_s": self.min_window,
            "repeats": self.repeats,
            "seed": self.seed,
        }
        given = {key: value for key, value in changes.items() if value is not None}
        return grid | {"options": grid.get("options", {}) | given}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSelection:
    """What of the GPUs a grid may set while it is measured; without these, nothing is written to a GPU."""

    set_power_limit: bool = flag("Let a grid set power_limit_w of the GPUs, and restore it (root)", "--set-power-limit")
    set_clocks: bool = flag("Let a grid lock sm_clock_mhz of the GPUs, and unlock it (root)", "--set-clocks")

    def may_set(self, ray: str | None) -> list[str]:
        """Fields of an engine config that may be set.

        Raises:
            UsageError: Of the GPUs of a cluster.
        """
        allowed = {"power_limit_w": self.set_power_limit, "sm_clock_mhz": self.set_clocks}
        names = [name for name, is_allowed in allowed.items() if is_allowed]
        if names and ray is not None:
            option = "--set-power-limit" if self.set_power_limit else "--set-clocks"
            raise UsageError.conflict({option: True, "--ray": ray}, "GPUs are set here only: measure on each node")
        return names


OF_GRIDS = ("quick", *(one.name for group in (CellOptions, CellMeasuring) for one in fields(group)))


@with_options
def measure(
    context: typer.Context,
    grids: list[str] | None = argument(
        "Grids (.toml), names of shipped studies (infergy list studies), or one plan (.json); what several "
        "share is measured once. Leave it out to give the grid by options.",
        "GRID",
        default=None,
    ),
    output: Path | None = option("The store: one JSON row per cell; resumed if it exists", "-o", "--output-file"),
    plan: Path | None = option("Measure nothing: write the plan, a JSON file that a bare GPU node can measure"),
    shard: str | None = option("This part of the plan only, 2/5; put rows together with infergy table merge"),
    quick: bool = flag("A study's smaller grid; the full one resumes from its store", "--quick"),
    *,
    cells: CellOptions,
    measuring: CellMeasuring,
    dry_run: bool = flag("Print the plan and its forecast time; measure nothing", "--dry-run"),
    simulate: SimulateOption = False,
    meter: MeterOption = "nvml",
    retry_failed: bool = flag("Measure cells again that failed before", "--retry-failed"),
    ray: str | None = option("Measure on a Ray cluster: auto, or HOST:6379 (extra ray)", metavar="ADDRESS"),
    setting: SettingSelection,
    as_json: bool = flag("Print each finished row; with --dry-run the plan", "--json"),
) -> None:
    """Measure the energy of each cell of a grid; interrupted, the same command resumes.

    Options of the grid (--engine to --seed) replace what the grids say.

    Example: infergy measure --engine vllm --model llama-3.1-8b --input 512 --output 64 --batch 1,8 -o mine.jsonl

    A shipped study: infergy measure engines --quick -o mine.jsonl

    A plan for another machine: infergy measure paper-bins --shard 2/5 --plan part.json
    """
    has_gpu = cells.gpu or simulate or ray
    resolved = _resolve(grids or [], cells, measuring, typed_options(context), quick=quick, here=not has_gpu)
    if shard is not None:
        from infergy.measure.shards import parse_shard
        from infergy.measure.shards import shard as take_shard

        resolved = take_shard(resolved, *parse_shard(shard))
    if plan is not None:
        resolved.save(plan)
        typer.echo(f"{plan}: {_size(resolved)}. Measure it: python -m infergy.measure {plan} -o ROWS.jsonl", err=True)
    elif dry_run:
        _print_plan(resolved, as_json=as_json)
    else:
        if output is not None:
            typer.echo(f"{resolved.name}: {_size(resolved)} on {resolved.gpu}", err=True)
        measure_plan(
            resolved,
            output,
            simulate=simulate,
            meter=meter,
            retry_failed=retry_failed,
            as_json=as_json,
            ray=ray,
            may_set=setting.may_set(ray),
        )


def measure_plan(
    resolved: Plan,
    output: Path | None,
    *,
    simulate: bool,
    meter: str,
    retry_failed: bool = False,
    as_json: bool = False,
    ray: str | None = None,
    may_set: Collection[str] = (),
) -> None:
    """Measure a plan into `output`.

    Raises:
        UsageError: Options that do not go together.
        Exit: Some cells failed.
    """
    if output is None:
        message = "measure needs a store to write to: -o FILE.jsonl (or --dry-run to see the plan)"
        raise UsageError(message, code="option-missing", option="-o")
    from infergy.measure.replicas import measure_replicas, split_replicas

    check_meter(meter, simulate=simulate)
    parts = [resolved] if ray else split_replicas(resolved, simulate=simulate, meter=meter)
    if len(parts) > 1:
        failed = measure_replicas(parts, output, simulate=simulate, retry_failed=retry_failed, meter=meter)
    else:
        failed = run_sweep(
            resolved,
            output,
            simulate=simulate,
            retry_failed=retry_failed,
            meter=meter,
            as_json=as_json,
            ray=ray,
            may_set=may_set,
        )
    if failed:
        typer.echo(f"{count_of(failed, 'cell')} failed; their rows say why. Try them again: --retry-failed", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


def check_meter(meter: str, *, simulate: bool) -> None:
    """Reject a meter beside a simulated GPU, which has its own."""
    if simulate and meter != "nvml":
        raise UsageError.conflict({"--simulate": True, "--meter": meter}, "leave out --meter, for one is simulated")


def gpu_here(*, known_only: bool = True) -> str | None:
    """Catalog name of the first GPU that CUDA would use; None without one.

    Raises:
        UsageError: The catalog lacks it, and `known_only`; else that is None too.
    """
    from infergy.catalog import find_gpu_by_driver_name, get_gpu
    from infergy.meters import open_meter

    try:
        meter = open_meter("nvml", 1)
    except InfergyError:
        # The sweep reports this where it measures; a dry run needs no GPU.
        return None
    name = meter.gpus[0].name
    meter.close()
    known = find_gpu_by_driver_name(name)
    if known is None and known_only:
        try:
            get_gpu(name)
        except UsageError as error:
            why = f"{name} is not in the catalog" if "nearest" in error.fields else str(error)
            message = (
                f"the GPU here: {why}. Describe one: --gpu MINE.toml (docs/models.md); or name the one to plan for: "
                "--gpu NAME (infergy list gpus)"
            )
            raise UsageError(message, code="unknown-gpu", name=name, option="--gpu") from error
    return None if known is None else known.name


def _resolve(
    names: Sequence[str],
    cells: CellOptions,
    measuring: CellMeasuring,
    typed: Mapping[str, str],
    *,
    quick: bool,
    here: bool,
) -> Plan:
    """The plan that grids, studies or options make, for the GPU `here` or theirs; or the one plan that is named.

    Raises:
        UsageError: Nothing is named, it cannot be measured, or something stands beside a plan.
        DataError: A file is no grid and no plan.
    """
    path = next((name for name in names if name.endswith(".json")), None)
    if path is None:
        from infergy.measure.grid import make_plan

        cells = replace(cells, gpu=gpu_here()) if here else cells
        sources: Sequence[str | None] = names or [None]
        return make_plan(*(_grid(source, cells, measuring, quick=quick) for source in sources))
    from infergy.measure.validation import check_contents, load_plan

    if len(names) > 1:
        message = f"{path} is a plan, already resolved: it stands alone. Name the grids that it came from"
        raise UsageError(message, code="plan-is-resolved", plan=path)
    given = [typed[name] for name in OF_GRIDS if name in typed]
    if given:
        message = f"{path} is a plan, already resolved; give these to its grid instead: {', '.join(given)}"
        raise UsageError(message, code="plan-is-resolved", plan=path, options=given)
    loaded = load_plan(_existing(path))
    # Whether an engine can load its models shows when it is measured.
    check_contents(loaded, simulate=True)
    return loaded


def _grid(source: str | None, cells: CellOptions, measuring: CellMeasuring, *, quick: bool) -> Grid:
    """A file, a shipped study or None for options alone, as a grid with the options in place of its own.

    Raises:
        UsageError: Neither a grid nor options that make one.
        DataError: A file is no grid.
    """
    from infergy.measure.grid import parse_grid, read_toml, shrink
    from infergy.measure.studies import study_path

    data: dict[str, Any]
    if source is None:
        if not (cells.engine and cells.input_tokens and cells.output_tokens):
            message = (
                "nothing to measure: name a grid (infergy measure paper-bins -o FILE), or give --engine, --input and "
                "--output"
            )
            raise UsageError(message, code="option-missing", option="--engine")
        data = {"name": "command-line", "gpu": "h200", "model": "llama-3.1-8b", "cells": [{}]}
    else:
        data = read_toml(_existing(source) if source.endswith(".toml") else study_path(source))
        parse_grid(data, source)
        data = shrink(data, source) if quick else data
    return parse_grid(measuring.change(cells.change(data)), source or "the command line")


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError.bad_value(option, text, "whole numbers with commas between, as 512,2048") from error


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise DataError.not_found(Path(source), "A shipped study: infergy measure paper-bins -o FILE.jsonl")
    return path


def _size(resolved: Plan) -> str:
    """How many cells, how many visits of them if there are more, and the forecast time."""
    from infergy.measure.forecast import total_s

    cells, visits = len({planned.cell.id for planned in resolved.cells}), len(resolved.cells)
    of_visits = f" in {count_of(visits, 'visit')}" if visits > cells else ""
    seconds = format_duration(total_s(resolved.by_setup().items(), resolved.options))
    return f"{count_of(cells, 'cell')}{of_visits}, about {seconds}"


def _print_plan(resolved: Plan, *, as_json: bool) -> None:
    from infergy.measure.forecast import cell_s, setup_s
    from infergy.measure.sweep import name_visit

    if as_json:
        typer.echo(json.dumps(to_json(resolved), indent=1))
        return
    typer.echo(f"{resolved.name} on {resolved.gpu}: {_size(resolved)}")
    for setup, cells in resolved.by_setup().items():
        seconds = setup_s(setup, resolved.options)
        rows = []
        for planned in cells:
            load = planned.cell.load
            remarks = [planned.batch_choice, *([load.arrivals.label] if load.arrivals else [])]
            remarks += [] if planned.visit == GRID_VISIT else [name_visit(planned.visit)]
            lengths = (f"{load.input_tokens:,}", f"{load.output_tokens:,}", f"{load.batch:,}")
            times = (format_duration(planned.forecast_batch_s), format_duration(cell_s(planned, resolved.options)))
            rows.append((planned.cell.id, *lengths, *times, ", ".join(remarks)))
        title = f"{setup.label} {setup.model} {setup.dtype} (load: {format_duration(seconds)})"
        print_table(("Cell", "Input", "Output", "Batch", "Batch time", "Cell time", ""), rows, title=title)
