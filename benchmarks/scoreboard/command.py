"""`python benchmarks/scoreboard`: the error of estimators of energy, ours and the published ones, on the same rows.

Each of 690 measured rows of served models is predicted by an estimator that has not seen it; a minute or two, no GPU.
docs/scoreboard.md explains what is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from infergy.cli.output import DRAW_HELP, check_picture, save_picture
from infergy.cost.table import SHIPPED_TABLE
from infergy.errors import InfergyError, UsageError
from scoreboard.board import (
    ESTIMATORS,
    NEW_ROWS,
    TASKS,
    TEXT,
    GroupError,
    Score,
    group_errors,
    score_all,
    score_new,
)
from scoreboard.figure import draw_scoreboard
from scoreboard.fit import published_json
from scoreboard.left_out import SPLITS as OWN_SPLITS
from scoreboard.left_out import OwnScore, score_own
from scoreboard.rows import Rows, read_rows
from scoreboard.splits import SPLITS

TITLES = {
    "batch": "Held-out batch: inner points of each series",
    "backbone": "Held-out model: all variants of one network left out",
    "gpu": "Held-out GPU: all rows of one kind left out",
    NEW_ROWS: "Your rows, by estimators fitted to the rows of the benchmark",
}
PUBLISHED = SHIPPED_TABLE.with_name("published_fit.json")
OWN_FIGURES = ("energy", "p90", "time", "p90", "inside", "time")
WIDTH = 120
COLUMNS = tuple(name for name in Rows.__dataclass_fields__ if name != "shapes")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    try:
        run(parse(arguments))
    except InfergyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, validated.

    Raises:
        UsageError: Options contradict each other, or one names what is not there.
    """
    parser = argparse.ArgumentParser("python benchmarks/scoreboard", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rows", type=Path, help="score your own rows (.csv with the columns of mlenergy_v3.csv)")
    parser.add_argument("--configs", type=Path, help="folder with the config.json of models that infergy does not ship")
    parser.add_argument(
        "--split", action="append", choices=tuple(SPLITS), help="repeat for several [default: all three]"
    )
    parser.add_argument("--tasks", choices=TASKS, default=TEXT, help="tasks of the rows that are scored")
    parser.add_argument(
        "--by",
        type=lambda text: tuple(text.split(",")),
        metavar="COLUMN[,COLUMN…]",
        help="errors of infergy's estimator for each group of held-out rows, such as backbone or gpu,precision",
    )
    parser.add_argument(
        "--ours",
        action="append",
        choices=tuple(OWN_SPLITS),
        help="leave each of these out of our own rows in turn, and score energy, time and their intervals; minutes",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write what the benchmark's rows say of the constants, which infergy ships",
    )
    parser.add_argument("-o", "--output-file", type=Path, help=DRAW_HELP)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    options = parser.parse_args(arguments)
    check_picture(options.output_file)
    if options.rows is not None and (options.split or options.by):
        raise UsageError("--split and --by divide the rows of the benchmark; leave them out with --rows")
    if options.by and options.output_file:
        raise UsageError("--by prints groups of rows of one estimator; leave out -o")
    for name in options.by or ():
        if name not in COLUMNS:
            raise UsageError.unknown("column", name, COLUMNS, "Give some with --by")
    if options.configs is not None and not options.configs.is_dir():
        raise UsageError(
            f"--configs {options.configs}: no such folder. Expected one with OWNER/NAME/config.json or NAME.json in it"
        )
    return options


def run(options: argparse.Namespace) -> None:
    """Score what the options ask for, and print or draw it."""
    if options.publish:
        PUBLISHED.write_text(json.dumps(published_json(), separators=(",", ":")) + "\n", encoding="utf-8")
        return
    if options.ours:
        own = [score for split in options.ours for score in score_own(split)]
        _print_json(own) if options.json else print_own(own)
        return
    known, energy_j = read_rows()
    splits = options.split or tuple(SPLITS)
    if options.by:
        errors = [
            error
            for split in splits
            for error in group_errors(
                ESTIMATORS[0], known, energy_j, split=split, columns=options.by, tasks=options.tasks
            )
        ]
        _print_json(errors) if options.json else print_groups(errors, options.by, options.tasks)
        return
    if options.rows is None:
        scores = score_all(known, energy_j, splits=splits, tasks=options.tasks, progress=_report_progress)
    else:
        new, new_energy_j = read_rows(options.rows, options.configs, _warn)
        seen = sum(name in set(known.backbone) for name in new.backbone)
        if seen:
            _warn(f"{seen} of {len(new)} rows are of models in the benchmark: fitted estimators have seen those")
        scores = score_new(known, energy_j, new, new_energy_j, progress=_report_progress)
    if options.output_file is not None:
        save_picture(lambda: draw_scoreboard(scores, TITLES), options.output_file)
    if options.json:
        _print_json(scores)
    elif options.output_file is None:
        print_scores(scores)


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)


def _report_progress(what: str) -> None:
    print(f"  {what} …", file=sys.stderr)


def print_own(scores: Sequence[OwnScore]) -> None:
    """A table for each split: of engines and kinds of models, then of servers."""
    for split in dict.fromkeys(score.split for score in scores):
        table = _table(f"Our rows, each {split} left out", ["rows of"], ["rows", *OWN_FIGURES])
        for score in (score for score in scores if score.split == split):
            figures = (score.energy_median, score.energy_p90, score.time_median, score.time_p90)
            table.add_row(
                score.group,
                str(score.rows),
                *(f"{value:.1%}" for value in figures),
                *(f"{v:.0%}" for v in score.coverage),
            )
        Console(width=WIDTH).print(table)
    print("|predicted / measured - 1| of energy and time; share of rows inside the 90 % intervals of each")


def _print_json(results: Sequence[Score] | Sequence[GroupError] | Sequence[OwnScore]) -> None:
    print(json.dumps([asdict(result) for result in results], indent=1, allow_nan=False))


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def print_scores(scores: Sequence[Score]) -> None:
    """A table for each split, the smallest median error first."""
    for split in dict.fromkeys(score.split for score in scores):
        own = sorted((score for score in scores if score.split == split), key=_order)
        table = _table(
            f"{TITLES[split]}; {own[0].of_rows} rows, {own[0].tasks} tasks",
            ["Estimator"],
            ["median", "90 % bootstrap interval", "p90", "90 % coverage", "rows"],
        )
        for score in own:
            table.add_row(score.title, *_cells(score))
        Console().print(table)
    for score in {score.estimator: score for score in scores if score.missing}.values():
        print(f"{score.title}: {score.missing}")
    print("|predicted / measured - 1| of the energy per output token, all GPUs. docs/scoreboard.md")


def print_groups(errors: Sequence[GroupError], columns: Sequence[str], tasks: str) -> None:
    """A table for each split, the smallest median error first."""
    for split in dict.fromkeys(error.split for error in errors):
        table = _table(
            f"{TITLES[split]}; {tasks} tasks",
            columns,
            ["rows", "median", "p90", "median error", "lowest", "highest"],
        )
        for error in sorted((error for error in errors if error.split == split), key=lambda error: error.median_ape):
            signed = (f"{value:+.0%}" for value in (error.median_error, error.lowest_error, error.highest_error))
            table.add_row(*error.group, str(error.rows), f"{error.median_ape:.1%}", f"{error.p90_ape:.1%}", *signed)
        Console().print(table)
    print("predicted / measured - 1 of the energy per output token by infergy; median and p90 of absolute values")


def _order(score: Score) -> float:
    return float("inf") if score.median_ape is None else score.median_ape


def _cells(score: Score) -> tuple[str, ...]:
    if score.median_ape is None or score.p90_ape is None:
        return "-", "-", "-", "-", "0"
    coverage = "-" if score.coverage_90 is None else f"{score.coverage_90:.0%}"
    interval = "-"
    if score.median_low is not None and score.median_high is not None:
        interval = f"{score.median_low:.1%} .. {score.median_high:.1%}"
    return f"{score.median_ape:.1%}", interval, f"{score.p90_ape:.1%}", coverage, str(score.rows)
