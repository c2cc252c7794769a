"""`infergy plan`, `infergy measure`, `infergy grid`: from a grid to rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.progress import run_sweep
from infergy.errors import DataError, InfergyError, UsageError
from infergy.records import GRID_VISIT, EngineSetup
from infergy.records.codec import to_json
from infergy.units import count_of, format_duration

if TYPE_CHECKING:
    from infergy.measure.grid import Grid
    from infergy.records import Plan

EXIT_SOME_FAILED = 4

GridArg = Annotated[
    str | None,
    typer.Argument(
        metavar="GRID",
        help="A grid (.toml), a plan (.json), or the name of a shipped study: paper-bins. "
        "Leave it out to give the grid by options.",
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Model shape; instead of the grid's.")]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", "-g", help="GPU to plan for [default: the one here, else the grid's]")
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        "-e",
        help="transformers, vllm, vllm-eager, vllm-float16-tp2 …; repeat for more, instead of the grid's",
    ),
]
InputOption = Annotated[str | None, typer.Option("--input", help="Input tokens: 512,2048")]
OutputOption = Annotated[str | None, typer.Option("--output", help="Output tokens: 8,64,512")]
BatchOption = Annotated[str | None, typer.Option("--batch", help="Batch sizes, 1,8,32, or 'largest'")]
DecodingOption = Annotated[
    str | None, typer.Option("--decoding", help="greedy, beam4, t0.8, t0.8-p0.95-k50; several with commas between")
]
ArrivalsOption = Annotated[
    str | None,
    typer.Option("--arrivals", help="offline, poisson4, gamma4-b0.5, trace:azure-conv-2023@4; several with commas"),
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="random, random-uniform, or folder or hub name of real ones [default: random]"),
]
MinWindowOption = Annotated[float | None, typer.Option("--min-window", help="Shortest window, in seconds")]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="Repeat windows until the joules are certain to ± this [default: 2%]")
]
MaxTimeOption = Annotated[
    float | None, typer.Option("--max-time", help="No further window of a cell after so many seconds [default: 60]")
]
TimelineOption = Annotated[
    float | None, typer.Option("--timeline", help="Seconds between two looks at power; 0 takes none [default: 0.02]")
]
RepeatsOption = Annotated[
    int | None,
    typer.Option("--repeats", min=1, help="Visits of each cell, among those of all others [default: 1]"),
]
MeterOption = Annotated[
    str, typer.Option("--meter", help="Who reads joules: nvml, or a plug-in such as zeus-gpu or zeus-cpu.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of prompts and random weights")]


def plan(
    grid: GridArg = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="Write the plan here [default: stdout]")
    ] = None,
    model: ModelOption = None,
    gpu: GpuOption = None,
    engine: EngineOption = None,
    input_tokens: InputOption = None,
    output_tokens: OutputOption = None,
    batch: BatchOption = None,
    decoding: DecodingOption = None,
    arrivals: ArrivalsOption = None,
    weights: WeightsOption = None,
    min_window: MinWindowOption = None,
    target: TargetOption = None,
    max_time: MaxTimeOption = None,
    seed: SeedOption = None,
    timeline: TimelineOption = None,
    repeats: RepeatsOption = None,
    part: Annotated[
        str | None, typer.Option("--shard", help="Only this part of so many, 2/5; put rows together: infergy merge.")
    ] = None,
) -> None:
    """Resolve a grid into a plan: a JSON file that a bare GPU node can measure.

    Example: infergy plan paper-bins -o plan.json
    """
    resolved = resolve(
        grid,
        model=model,
        gpu=gpu,
        engines=engine,
        input=input_tokens,
        output=output_tokens,
        batch=batch,
        decoding=None if decoding is None else decoding.split(","),
        arrivals=None if arrivals is None else arrivals.split(","),
        weights=weights,
        min_window=min_window,
        target=None if target is None else fraction("--target", target),
        max_time=max_time,
        seed=seed,
        timeline=timeline,
        repeats=repeats,
    )
    if part is not None:
        from infergy.measure.shards import parse_shard, shard

        resolved = shard(resolved, *parse_shard(part))
    if output is None:
        from infergy.records.codec import to_json

        typer.echo(json.dumps(to_json(resolved), indent=1))
    else:
        resolved.save(output)
        typer.echo(f"{output}: {_count(resolved)}, about {_forecast(resolved)}", err=True)


def measure(
    grid: GridArg = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help="The store: one JSON row a cell; resumed if it exists.")
    ] = None,
    model: ModelOption = None,
    gpu: GpuOption = None,
    engine: EngineOption = None,
    input_tokens: InputOption = None,
    output_tokens: OutputOption = None,
    batch: BatchOption = None,
    decoding: DecodingOption = None,
    arrivals: ArrivalsOption = None,
    weights: WeightsOption = None,
    min_window: MinWindowOption = None,
    target: TargetOption = None,
    max_time: MaxTimeOption = None,
    seed: SeedOption = None,
    timeline: TimelineOption = None,
    repeats: RepeatsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its forecast time; measure nothing.")
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Use a simulated GPU; its rows are marked and say nothing of real ones.")
    ] = False,
    meter: MeterOption = "nvml",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try cells again that failed before.")] = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Measure on a Ray cluster: auto, or HOST:6379 (extra ray)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each finished row on stdout as it comes.")] = False,
) -> None:
    """Measure the joules of each cell of a grid; interrupted, the same command resumes.

    Or of any program: infergy measure [--runs N] [-o FILE] -- COMMAND (all options: infergy measure-command --help).

    Example: infergy measure --engine vllm --model llama-3.1-8b --input 512 --output 64 --batch 1,8 -o mine.jsonl
    """
    is_resolved = grid is not None and grid.endswith(".json")
    gpu = gpu if gpu or simulate or is_resolved or ray else gpu_here()
    resolved = resolve(
        grid,
        model=model,
        gpu=gpu,
        engines=engine,
        input=input_tokens,
        output=output_tokens,
        batch=batch,
        decoding=None if decoding is None else decoding.split(","),
        arrivals=None if arrivals is None else arrivals.split(","),
        weights=weights,
        min_window=min_window,
        target=None if target is None else fraction("--target", target),
        max_time=max_time,
        seed=seed,
        timeline=timeline,
        repeats=repeats,
    )
    measure_plan(
        resolved,
        output,
        dry_run=dry_run,
        simulate=simulate,
        meter=meter,
        retry_failed=retry_failed,
        as_json=as_json,
        ray=ray,
    )


def measure_plan(
    resolved: Plan,
    output: Path | None,
    *,
    dry_run: bool,
    simulate: bool,
    meter: str,
    retry_failed: bool,
    as_json: bool,
    ray: str | None = None,
) -> None:
    """Print a plan, or measure it into `output`.

    Raises:
        UsageError: Options that do not go together.
        Exit: Some cells failed.
    """
    if dry_run:
        _print_plan(resolved, as_json=as_json)
        return
    if output is None:
        message = "measure needs a store to write to: -o FILE.jsonl (or --dry-run to see the plan)"
        raise UsageError(message, code="option-missing", option="-o")
    if simulate and meter != "nvml":
        raise UsageError.conflict({"--simulate": True, "--meter": meter}, "leave out --meter, for one is simulated")
    failed = run_sweep(
        resolved, output, simulate=simulate, retry_failed=retry_failed, meter=meter, as_json=as_json, ray=ray
    )
    if failed:
        typer.echo(f"{count_of(failed, 'cell')} failed; their rows say why. Try them again: --retry-failed", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


def grid(name: Annotated[str, typer.Argument(help="Name of a shipped study")] = "paper-bins") -> None:
    """Print a shipped grid, to run or to start your own from.

    Example: infergy grid paper-bins > mine.toml
    """
    from infergy.measure.studies import study_path

    typer.echo(study_path(name).read_text(encoding="utf-8"), nl=False)


def gpu_here() -> str | None:
    """Catalogue name of the first GPU that CUDA would use; None without one, or if the catalogue lacks it."""
    from infergy.hardware import find_gpu_by_driver_name
    from infergy.meters import open_meter

    try:
        meter = open_meter("nvml", 1)
    except InfergyError:
        # Whoever measures is told by the sweep; a dry run needs no GPU.
        return None
    known = find_gpu_by_driver_name(meter.gpus[0].name)
    meter.close()
    return None if known is None else known.name


def resolve(sources: str | Sequence[str] | None, **asked: Any) -> Plan:
    """The plan that files, studies' names or options ask for; options, None where not given, win over the files.

    Several make one plan, in which what they share is loaded and measured once.

    Raises:
        UsageError: Nothing is named, or it cannot be measured.
        DataError: A file is no grid and no plan.
    """
    given = {key: value for key, value in asked.items() if value is not None and value != []}
    names = [sources] if isinstance(sources, str) else list(sources or ())
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
    if "weights" in given:
        data["engines"] = [axis | {"weights": given["weights"]} for axis in data["engines"]]
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
    seconds = {f"{name}_s": name for name in ("min_window", "max_time", "timeline")}
    options = {name: key for key, name in (seconds | {name: name for name in ("target", "seed", "repeats")}).items()}
    data["options"] = data.get("options", {}) | {options[key]: given[key] for key in options if key in given}
    return data


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError.bad_value(option, text, "whole numbers with commas between, as 512,2048") from error


def fraction(option: str, text: str) -> float:
    """``2%`` or ``0.02``."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UsageError.bad_value(option, text, "a share, as 2% or 0.02") from error


def _existing(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise DataError.not_found(Path(source), "A shipped study: infergy measure paper-bins -o FILE.jsonl")
    return path


def _count(resolved: Plan) -> str:
    """How many cells, and how many visits of them, if there are more."""
    cells = len({planned.cell.id for planned in resolved.cells})
    return count_of(cells, "cell") + (
        f" in {count_of(len(resolved.cells), 'visit')}" if len(resolved.cells) > cells else ""
    )


def _forecast(resolved: Plan) -> str:
    from infergy.measure.forecast import total_s

    return format_duration(total_s(resolved.by_setup().items(), resolved.options))


def _print_plan(resolved: Plan, *, as_json: bool) -> None:
    from infergy.measure.forecast import cell_s, setup_s
    from infergy.measure.sweep import name_visit

    if as_json:
        from infergy.records.codec import to_json

        typer.echo(json.dumps(to_json(resolved), indent=1))
        return
    typer.echo(f"{resolved.name} on {resolved.gpu}: {_count(resolved)}, about {_forecast(resolved)}")
    for setup, cells in resolved.by_setup().items():
        seconds = setup_s(setup, resolved.options)
        typer.echo(f"\n{setup.label} {setup.model} {setup.dtype} (load: {format_duration(seconds)})")
        heads = f"{'cell':12} {'input':>6} {'output':>6} {'batch':>6} {'batch time':>11} {'cell time':>10}"
        typer.echo(f"  {heads}  how the batch was chosen")
        for planned in cells:
            load = planned.cell.load
            typer.echo(
                f"  {planned.cell.id} {load.input_tokens:6} {load.output_tokens:6} {load.batch:6} "
                f"{format_duration(planned.forecast_batch_s):>11} "
                f"{format_duration(cell_s(planned, resolved.options)):>10}  {planned.batch_choice}"
                f"{f', {load.arrivals.label}' if load.arrivals else ''}"
                f"{'' if planned.visit == GRID_VISIT else f' ({name_visit(planned.visit)})'}"
            )
