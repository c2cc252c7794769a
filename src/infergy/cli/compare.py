"""`infergy compare`: the energy of two stores, cell by cell, or of this GPU and a table; a gate for CI."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infergy.cli.measure import check_meter, gpu_here
from infergy.cli.options import JsonOption, MeterOption, SimulateOption, argument, flag, fraction, option, with_options
from infergy.cli.output import UNKNOWN, print_json, print_table
from infergy.errors import UsageError
from infergy.units import count_of, format_percent, format_si

if TYPE_CHECKING:
    from infergy.quality.compare import Comparison, Ratio
    from infergy.records import Measurement

EXIT_WORSE = 5
SUGGESTED = "rescaled.jsonl"


@with_options
def compare(
    files: list[Path] | None = argument(
        "Rows to compare with, and rows of the same cells (.jsonl). With one file A is what ships of its GPU",
        "[A] [B]",
        default=None,
    ),
    measure: bool = flag("Measure three cells of A on this GPU now, as B [A: what ships of it]", "--measure"),
    engine: str = option("With --measure: engine config of the cells in A", "--engine", "-e", default="vllm"),
    output: Path | None = option("With --measure: keep B here [default: compare-TIME.jsonl]", "-o", "--output-file"),
    meter: MeterOption = "nvml",
    simulate: SimulateOption = False,
    rescale: Path | None = option("Write a table for the GPU of B: energy of A times the ratio, each row marked"),
    fail_if_worse: str | None = option("Exit with 5 if B takes significantly more energy than A, by over 3%"),
    as_json: JsonOption = False,
) -> None:
    """Compare the energy of two files of measurements, cell by cell, each with its 95 % interval.

    Example: infergy compare before.jsonl after.jsonl --fail-if-worse 3%

    This GPU and the shipped table: infergy compare --measure --rescale here.jsonl
    """
    from infergy.quality.compare import compare as run_compare

    given = list(files or ())
    _check(given, rescale, measure=measure, output=output)
    limit = None if fail_if_worse is None else 1 + fraction("--fail-if-worse", fail_if_worse, least=0.0)
    if measure:
        check_meter(meter, simulate=simulate)
        a = _read(given, None if simulate else gpu_here(known_only=False))
        path = _measure(a, engine, output, meter=meter, simulate=simulate)
        b = _read([path])
    else:
        *others, path = given
        b = _read([path])
        a = _read(others, _gpu_of(b))
    is_table = measure or len(given) == 1
    of_b = {row.cell_id for row in b}
    found = run_compare([row for row in a if row.cell_id in of_b or not is_table], b)
    if as_json:
        print_json([found])
    else:
        _print(found, path if measure else None)
    if rescale is not None:
        _rescale(a, b, rescale, as_json=as_json)
    elif is_table and not as_json:
        _advise(found, a, b, [*(given if measure else ()), path])
    if limit is not None:
        _judge(found.overall, limit)


def _check(given: Sequence[Path], rescale: Path | None, *, measure: bool, output: Path | None) -> None:
    """Reject before anything is measured what would fail after it."""
    if rescale is not None and rescale.exists():
        message = f"{rescale}: there is such a file already. Name a new one: --rescale OTHER.jsonl"
        raise UsageError(message, code="file-exists", path=str(rescale))
    if len(given) > 1 + (not measure) or not (given or measure):
        what = "one file, A, beside --measure" if measure else "one or two files of rows, or --measure"
        message = f"{len(given)} files given; expected {what}"
        raise UsageError(message, code="bad-value", option="A B", value=len(given), expected=what)
    if output is not None and not measure:
        raise UsageError(
            "-o keeps what --measure measures", code="option-missing", option="--measure", needed_by=["-o"]
        )


def _read(files: Sequence[Path], gpu: str | None = None) -> Sequence[Measurement]:
    """The rows of a file; of none, what ships of a GPU."""
    from infergy.records.store import read_store, shipped_store

    return read_store(files[0] if files else shipped_store(gpu)).rows


def _gpu_of(rows: Sequence[Measurement]) -> str | None:
    """Catalog name of the GPU that rows were measured on; None if they do not say."""
    from infergy.catalog import catalog_name

    names = [gpu.name for row in rows for gpu in row.environment.gpus]
    return catalog_name(names[0]) if names else None


def _advise(found: Comparison, a: Sequence[Measurement], b: Sequence[Measurement], files: Sequence[Path]) -> None:
    """Say how to scale A, where its rows of the configs of B are of one GPU, or one group: else no factor holds."""
    setups = {row.cell.setup for row in b}
    gpus = {tuple(gpu.uuid for gpu in row.environment.gpus) for row in a if row.cell.setup in setups}
    if found.overall.is_significant and len(gpus) == 1:
        typed = shlex.join(["infergy", "compare", *map(str, files), "--rescale", SUGGESTED])
        typer.echo(f"To make a table for this GPU, its energy scaled and marked: {typed}")


def _measure(stored: Sequence[Measurement], engine: str, output: Path | None, *, meter: str, simulate: bool) -> Path:
    """Measure the control cells; returns where their rows are."""
    from infergy.cli.progress import run_sweep
    from infergy.measure.control_cells import plan_control_cells

    path = output or Path(f"compare-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl")
    run_sweep(
        plan_control_cells(stored, engine), path, simulate=simulate, meter=meter, retry_failed=True, as_json=False
    )
    return path


def _rescale(stored: Sequence[Measurement], measured: Sequence[Measurement], path: Path, *, as_json: bool) -> None:
    """Write the rescaled table, and say what is in it and how to use it."""
    from infergy.quality.rescale import rescale
    from infergy.records.store import create_store

    made = rescale(stored, measured)
    create_store(path, made.rows)
    for setup, mark in made.factors:
        rows = sum(row.cell.setup == setup for row in made.rows)
        typer.echo(f"{path}: {count_of(rows, 'row')} of {setup.label} {setup.model} {mark}", err=as_json)
    if made.left_out:
        typer.echo(
            f"{count_of(made.left_out, 'row')} of other configs are left out: measure each with --engine", err=as_json
        )
    simulated = " --allow-simulated" if any(row.simulated for row in made.rows) else ""
    typer.echo(f"To estimate with it: infergy estimate TRACE --table {shlex.quote(str(path))}{simulated}", err=as_json)


def _judge(ratio: Ratio, limit: float) -> None:
    """End with `EXIT_WORSE` if B takes significantly more energy than the limit allows."""
    if ratio.value <= limit:
        return
    if ratio.low is None:
        typer.echo(
            f"not judged: {format_percent(ratio.value - 1, signed=True)}, over {format_percent(limit - 1)}, but the "
            "interval is unknown; measure with more windows: --max-time 120",
            err=True,
        )
    elif ratio.is_significant:
        worse = format_percent(ratio.value - 1, signed=True)
        typer.echo(f"worse: {worse} energy, over {format_percent(limit - 1)}", err=True)
        raise typer.Exit(EXIT_WORSE)


def _print(found: Comparison, stored: Path | None) -> None:
    """The answer, a table of all compared cells and their mean, what else to know, and where rows of B are `stored`."""
    cells = count_of(len(found.cells), "cell")
    if found.overall.is_significant:
        more = format_percent(abs(found.overall.value - 1))
        typer.echo(f"B takes {more} {'more' if found.overall.value > 1 else 'less'} energy than A, over {cells}.")
    else:
        typer.echo(f"A and B do not differ significantly, over {cells}.")
    _print_cells(found)
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            typer.echo(f"Only in {name}: {count_of(len(only), 'cell')}, such as {only[0]}")
    if found.same:
        typer.echo(
            f"Left out: {count_of(len(found.same), 'cell')}, such as {found.same[0]}: both files hold the very same row"
        )
    for difference in found.differences:
        typer.echo(f"Different: {difference}")
    if stored is not None:
        typer.echo(f"The rows of B are in {stored}")


def _print_cells(found: Comparison) -> None:
    models = {cell.model for cell in found.cells}
    # One model stands in the title, not in each line.
    common = models.pop() if len(models) == 1 else None
    rows = [
        (
            cell.cell if common is None else cell.cell.replace(f" {common} ", " "),
            format_si(cell.a_j, "J"),
            format_si(cell.b_j, "J"),
            *_ratio(cell.ratio),
        )
        for cell in found.cells
    ]
    overall = (f"mean of {count_of(len(found.cells), 'cell')}", "", "", *_ratio(found.overall))
    title = "Energy per request" + ("" if common is None else f", {common}")
    heads = ("Cell", "A", "B", "B compared with A", "95 % interval", "")
    print_table(heads, [*rows, None, overall], title=title)


def _ratio(ratio: Ratio) -> tuple[str, str, str]:
    """A ratio, its interval, and what may be said of it."""
    value = format_percent(ratio.value - 1, signed=True)
    if ratio.low is None or ratio.high is None:
        return value, UNKNOWN, "interval unknown"
    between = f"{format_percent(ratio.low - 1, signed=True)} .. {format_percent(ratio.high - 1, signed=True)}"
    verdict = "B takes more" if ratio.value > 1 else "B takes less"
    return value, between, verdict if ratio.is_significant else "no significant difference"
