"""`infergy measure`: from grids, studies or a plan to rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.options import MeterOption, SimulateOption, fraction, option, with_options
from infergy.cli.output import print_table
from infergy.cli.progress import run_sweep
from infergy.errors import DataError, InfergyError, UsageError
from infergy.records import GRID_VISIT, EngineSetup
from infergy.records.codec import to_json
from infergy.units import count_of, format_duration

if TYPE_CHECKING:
    from infergy.measure.grid import Grid
    from infergy.records import Plan

EXIT_SOME_FAILED = 4


@with_options
def measure(
    grids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GRID",
            help="Grids (.toml), names of shipped studies (infergy list studies), or one plan (.json); what several "
            "share is measured once. Leave it out to give the grid by options.",
        ),
    ] = None,
    output: Path | None = option("The store: one JSON row per cell; resumed if it exists", "-o", "--output-file"),
    plan: Path | None = option("Measure nothing: write the plan, a JSON file that a bare GPU node can measure"),
    shard: str | None = option("This part of the plan only, 2/5; put rows together with infergy table merge"),
    quick: bool = option("A study's smaller grid; the full one resumes from its store", "--quick", default=False),
    engine: list[str] | None = option(
        "transformers, vllm, vllm-eager, vllm-float16-tp2 …; repeatable", "--engine", "-e"
    ),
    model: str | None = option("Name or config.json", "--model", "-m"),
    gpu: str | None = option("GPU to plan for [default: the one here, else the grid's]", "--gpu", "-g"),
    input_tokens: str | None = option("Input tokens: 512,2048", "--input"),
    output_tokens: str | None = option("Output tokens: 8,64,512", "--output"),
    batch: str | None = option("Batch sizes, 1,8,32, or 'largest'"),
    decoding: str | None = option("greedy, beam4, t0.8, t0.8-p0.95-k50; several with commas"),
    arrivals: str | None = option("offline, poisson4, gamma4-b0.5, trace:azure-conv-2023@4; several with commas"),
    target: str | None = option("Repeat windows until the 95 % interval is within ± this [default: 2%]"),
    max_time: float | None = option("Seconds per cell after which no window starts [default: 60]"),
    min_window: float | None = option("Shortest window, in seconds"),
    repeats: int | None = option("Visits of each cell, in shuffled order [default: 1]", min=1),
    seed: int | None = option("Seed of prompts and random weights"),
    dry_run: bool = option("Print the plan and its forecast time; measure nothing", "--dry-run", default=False),
    simulate: SimulateOption = False,
    meter: MeterOption = "nvml",
    retry_failed: bool = option("Measure cells again that failed before", "--retry-failed", default=False),
    ray: str | None = option("Measure on a Ray cluster: auto, or HOST:6379 (extra ray)", metavar="ADDRESS"),
    as_json: bool = option("Print each finished row; with --dry-run the plan", "--json", default=False),
) -> None:
    """Measure the energy of each cell of a grid; interrupted, the same command resumes.

    Options of the grid (--engine to --seed) replace what the grids say.

    Example: infergy measure --engine vllm --model llama-3.1-8b --input 512 --output 64 --batch 1,8 -o mine.jsonl

    A shipped study: infergy measure engines --quick -o mine.jsonl

    A plan for another machine: infergy measure paper-bins --shard 2/5 --plan part.json
    """
    is_resolved = any(name.endswith(".json") for name in grids or ())
    resolved = resolve(
        grids,
        quick=quick or None,
        model=model,
        gpu=gpu if gpu or simulate or is_resolved or ray else gpu_here(),
        engines=engine,
        input=input_tokens,
        output=output_tokens,
        batch=batch,
        decoding=None if decoding is None else decoding.split(","),
        arrivals=None if arrivals is None else arrivals.split(","),
        target=None if target is None else fraction("--target", target),
        max_time=max_time,
        min_window=min_window,
        repeats=repeats,
        seed=seed,
    )
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
            resolved, output, simulate=simulate, meter=meter, retry_failed=retry_failed, as_json=as_json, ray=ray
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
) -> None:
    """Measure a plan into `output`.

    Raises:
        UsageError: Options that do not go together.
        Exit: Some cells failed.
    """
    if output is None:
        message = "measure needs a store to write to: -o FILE.jsonl (or --dry-run to see the plan)"
        raise UsageError(message, code="option-missing", option="-o")
    check_meter(meter, simulate=simulate)
    failed = run_sweep(
        resolved, output, simulate=simulate, retry_failed=retry_failed, meter=meter, as_json=as_json, ray=ray
    )
    if failed:
        typer.echo(f"{count_of(failed, 'cell')} failed; their rows say why. Try them again: --retry-failed", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


def check_meter(meter: str, *, simulate: bool) -> None:
    """Reject a meter beside a simulated GPU, which has its own."""
    if simulate and meter != "nvml":
        raise UsageError.conflict({"--simulate": True, "--meter": meter}, "leave out --meter, for one is simulated")


def gpu_here() -> str | None:
    """Catalog name of the first GPU that CUDA would use; None without one, or if the catalog lacks it."""
    from infergy.catalog import find_gpu_by_driver_name
    from infergy.meters import open_meter

    try:
        meter = open_meter("nvml", 1)
    except InfergyError:
        # The sweep reports this where it measures; a dry run needs no GPU.
        return None
    known = find_gpu_by_driver_name(meter.gpus[0].name)
    meter.close()
    return None if known is None else known.name


def resolve(sources: Sequence[str] | None, **asked: Any) -> Plan:
    """The plan that files, studies' names or options ask for; options, None where not given, win over the files.

    Several make one plan, in which what they share is loaded and measured once.

    Raises:
        UsageError: Nothing is named, or it cannot be measured.
        DataError: A file is no grid and no plan.
    """
    given = {key: value for key, value in asked.items() if value is not None and value != []}
    names = list(sources or ())
    plans = [name for name in names if name.endswith(".json")]
    if plans and len(names) > 1:
        message = f"{plans[0]} is a plan, already resolved: it stands alone. Name the grids that it came from"
        raise UsageError(message, code="plan-is-resolved", plan=plans[0])
    if plans:
        from infergy.records import Plan

        if given:
            message = f"{plans[0]} is a plan, already resolved; give these to its grid instead: {', '.join(given)}"
            raise UsageError(message, code="plan-is-resolved", plan=plans[0], options=list(given))
        return Plan.load(_existing(plans[0]))

    from infergy.measure.grid import make_plan

    return make_plan(*([_grid(name, given) for name in names] or [_grid(None, given)]))


def _grid(source: str | None, given: dict[str, Any]) -> Grid:
    from infergy.measure.grid import parse_grid, read_toml, shrink
    from infergy.measure.studies import study_path

    data: dict[str, Any]
    if source is None:
        if not {"input", "output", "engines"} <= given.keys():
            message = (
                "nothing to measure: name a grid (infergy measure paper-bins -o FILE), or give --engine, --input and "
                "--output"
            )
            raise UsageError(message, code="option-missing", option="--engine")
        data = {"name": "command-line", "gpu": "h200", "model": "llama-3.1-8b", "cells": [{}]}
    else:
        data = read_toml(_existing(source) if source.endswith(".toml") else study_path(source))
        parse_grid(data, source)
        data = shrink(data, source) if "quick" in given else data
    return parse_grid(_override(data, given), source or "the command line")


def _override(data: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    data |= {key: given[key] for key in ("model", "gpu") if key in given}
    if "engines" in given:
        data["engines"] = [to_json(EngineSetup.parse_label(label)) for label in given["engines"]]
    lengths = {"input": "input_tokens", "output": "output_tokens", "batch": "batch"}
    block: dict[str, Any] = {
        lengths[key]: value if value == "largest" else _integers(f"--{key}", value)
        for key, value in given.items()
        if key in lengths
    }
    if "decoding" in given:
        block["decoding"] = given["decoding"]
    if "arrivals" in given:
        block |= {"arrivals": given["arrivals"], "rate": []}
    if block:
        data["cells"] = [old | block for old in data["cells"]]
    options = {"min_window": "min_window_s", "max_time": "max_time_s", "target": "target", "seed": "seed"}
    options["repeats"] = "repeats"
    data["options"] = data.get("options", {}) | {options[key]: given[key] for key in options if key in given}
    return data


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
