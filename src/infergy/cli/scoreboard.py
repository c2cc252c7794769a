"""`infergy scoreboard`: how far estimators of joules are off, ours and the published ones, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.timeline import FORMATS, save_chart
from infergy.cli.trace_options import JsonOption, stdout_console
from infergy.errors import MissingError, UsageError
from infergy.units import count_of

if TYPE_CHECKING:
    from infergy.score.board import Score
    from infergy.score.ours import InfergyCalibrated
    from infergy.score.rows import Rows

TASKS = ("text", "all")
WORDS = {
    "batch": "Held-out batch: inner points of each series",
    "backbone": "Held-out network: all variants of one left out",
    "gpu": "Held-out GPU: all rows of one kind left out",
    "rows": "Your rows, by estimators fitted to the shipped ones",
}


def scoreboard(
    rows: Annotated[
        Path | None, typer.Option("--rows", help="Score your own rows (.csv, the columns of the shipped ones).")
    ] = None,
    configs: Annotated[
        Path | None, typer.Option("--configs", help="Folder with the config.json of models that do not ship.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", help="batch, backbone or gpu; repeat for more [default: all three]")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="NAME|FILE",
            help="A held-out GPU by its own constants: shipped (h100-sxm), or made by infergy calibrate; repeatable.",
        ),
    ] = None,
    tasks: Annotated[str, typer.Option("--tasks", help="Which shipped rows are scored: text or all")] = "text",
    output: Annotated[
        Path | None, typer.Option("-o", "--output-file", help=f"Draw it into a file: {', '.join(FORMATS)}")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score estimators of joules an output token on 690 measured rows of served models, each unseen; a minute or two.

    Example: infergy scoreboard --split backbone -o scoreboard.svg
    """
    import json
    import os
    from dataclasses import asdict

    # Matrices of some hundred rows gain nothing from threads, which stall each other where the machine is busy.
    # Read when numpy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from infergy.score.board import ESTIMATORS, score_all, score_new
    from infergy.score.rows import read_rows
    from infergy.score.splits import SPLITS

    if output is not None and output.suffix not in FORMATS:
        raise UsageError(f"-o {output}: the name must end in one of {', '.join(FORMATS)}")
    if tasks not in TASKS:
        raise UsageError.unknown("tasks", tasks, TASKS, "Give one with --tasks")
    if rows is not None and split:
        raise UsageError("--split divides the shipped rows; those of --rows are predicted whole. Leave one of them out")
    if configs is not None and not configs.is_dir():
        raise UsageError(
            f"--configs {configs}: no such folder. Expected one with OWNER/NAME/config.json or NAME.json in it"
        )
    known, energy_j = read_rows()
    calibrated = _calibrated(calibration or [])
    estimators = (*ESTIMATORS, *calibrated)
    if rows is None:
        splits = split or tuple(SPLITS)
        if calibrated and "gpu" not in splits:
            raise UsageError("--calibration tells of a GPU that is left out: take --split gpu too, or leave it away")
        _refuse_absent(calibrated, set(known.gpu), "among the shipped rows")
        found = score_all(known, energy_j, splits=splits, tasks=tasks, estimators=estimators, progress=_tell)
    else:
        new, new_energy_j = read_rows(rows, configs, _warn)
        _refuse_absent(calibrated, set(new.gpu) - set(known.gpu), f"in {rows} and not among the shipped rows too")
        _warn_of_known(known, new)
        found = score_new(known, energy_j, new, new_energy_j, estimators=estimators, progress=_tell)
    if output is not None:
        save_chart(_chart(found), output)
        typer.echo(f"{output}: {len(found)} scores", err=True)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1, allow_nan=False))
    elif output is None:
        print_scores(found)


def _refuse_absent(calibrated: Sequence[InfergyCalibrated], gpus: set[str], where: str) -> None:
    """Before anything is fitted: a calibration of a GPU that nothing asks for would be silent.

    Raises:
        UsageError: A calibrated GPU is not among `gpus`.
    """
    for one in (one for estimator in calibrated for one in estimator.calibrations):
        if one.gpu not in gpus:
            there = ", ".join(sorted(gpus)) or "none"
            raise UsageError(f"--calibration of {one.title}: no row of it is {where}; GPUs that are: {there}")


def _calibrated(names: Sequence[str]) -> list[InfergyCalibrated]:
    """The estimator that takes calibrations, if there are some.

    Raises:
        UsageError: Two are of one kind of GPU.
    """
    from infergy.cost.calibration import load_calibration
    from infergy.score.ours import InfergyCalibrated

    found = [load_calibration(name) for name in names]
    kinds = [one.gpu for one in found]
    for name, one in zip(names, found, strict=True):
        if kinds.count(one.gpu) > 1:
            raise UsageError(f"--calibration {name}: another one is of {one.title} too. Give one of each kind of GPU")
        if one.simulated:
            _warn(f"{name} is SIMULATED: what it scores says nothing about real hardware")
    return [InfergyCalibrated(tuple(found))] if found else []


def _warn_of_known(known: Rows, new: Rows) -> None:
    """Say how many rows are no test of an unseen network."""
    seen = sum(name in set(known.backbone) for name in new.backbone)
    if seen:
        _warn(
            f"{seen} of {count_of(len(new), 'row')} are of networks among the shipped rows: whatever is fitted has "
            "seen those"
        )


def _chart(scores: Sequence[Score]) -> Any:
    from infergy.report.scoreboard import draw_scoreboard

    try:
        return draw_scoreboard(scores, WORDS)
    except ImportError as error:
        raise MissingError(f"drawing needs altair: pip install 'infergy[report]' ({error})") from error


def _warn(what: str) -> None:
    typer.echo(f"warning: {what}", err=True)


def _tell(what: str) -> None:
    typer.echo(f"  {what} …", err=True)


def print_scores(scores: Sequence[Score]) -> None:
    """A table a split, the best first."""
    from rich import box
    from rich.table import Table

    for split in dict.fromkeys(score.split for score in scores):
        own = sorted((score for score in scores if score.split == split), key=_order)
        title = f"{WORDS[split]}; {count_of(own[0].of_rows, 'row')}, {own[0].tasks} tasks"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("Estimator", no_wrap=True)
        for name in ("median", "90 % of networks drawn again", "p90", "90 % interval holds", "rows"):
            table.add_column(name, justify="right")
        for score in own:
            table.add_row(score.title, *_cells(score))
        stdout_console().print(table)
    for score in {score.estimator: score for score in scores if score.missing}.values():
        typer.echo(f"{score.title}: {score.missing}")
    typer.echo("|predicted / measured - 1| of joules an output token, all GPUs. docs/scoreboard.md")


def _order(score: Score) -> float:
    return float("inf") if score.median_ape is None else score.median_ape


def _cells(score: Score) -> tuple[str, ...]:
    if score.median_ape is None or score.p90_ape is None:
        return "-", "-", "-", "-", "0"
    held = "-" if score.coverage_90 is None else f"{score.coverage_90:.0%}"
    drawn = "-"
    if score.median_low is not None and score.median_high is not None:
        drawn = f"{score.median_low:.1%} .. {score.median_high:.1%}"
    return f"{score.median_ape:.1%}", drawn, f"{score.p90_ape:.1%}", held, str(score.rows)
