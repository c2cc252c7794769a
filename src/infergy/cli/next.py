"""`infergy next`: which cells to measure next, so that a trace's joules become certain soonest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.datasheet import read_calibration
from infergy.cli.old_estimate import WIDTH, CalibrationOption, ModelOption, SimulatedOption, TableOption
from infergy.cli.measure import fraction, gpu_here
from infergy.cli.trace_options import BinsOption, FormatOption, JsonOption, print_json, seconds_of, stdout_console
from infergy.energy.options import DEFAULT_GPU, DEFAULT_MODEL, MAX_SEQUENCES
from infergy.errors import UsageError
from infergy.records.codec import to_json
from infergy.units import format_duration, format_percent, format_si
from infergy.workload.bins import POWERS_OF_TWO

if TYPE_CHECKING:
    from infergy.energy.calibration import Calibration
    from infergy.energy.next_cells import NextCells, Subject
    from infergy.energy.table import EnergyTable, TableCell
    from infergy.records import EngineSetup, Plan, PlannedCell
    from infergy.workload.bins import BinCount, Histogram

DEFAULT_ENGINE = "vllm"
BATCH_S = 10.0
"""Seconds of forecast GPU work that a batch may take, as in the shipped grid."""


def next_cells(
    source: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace's name, or a file")],
    budget: Annotated[str, typer.Option("--budget", help="GPU time to spend, by forecast: 90s, 5m, 1h")] = "5m",
    target: Annotated[
        str, typer.Option("--target", help="Enough once 90 % of the trace's joules are this certain")
    ] = "1%",
    model: ModelOption = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", "-g", help="GPU to plan for [default: the one here, else h200]")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", "-e", help="vllm, transformers, vllm-fp8 …; of several, what tells them apart"),
    ] = None,
    table: TableOption = None,
    alone: Annotated[
        bool, typer.Option("--own", help="Know only what --table holds, not the shipped rows, which are of other chips")
    ] = False,
    calibration: CalibrationOption = None,
    bins: BinsOption = POWERS_OF_TWO,
    output: Annotated[Path | None, typer.Option("-o", "--output-file", help="Write the plan here, to measure")] = None,
    allow_simulated: SimulatedOption = False,
    format: FormatOption = None,  # noqa: A002 - the option's name
    as_json: JsonOption = False,
) -> None:
    """Choose the cells whose measurement makes a trace's joules certain soonest, the most useful first.

    Example: infergy next azure-code-2023 --engine vllm-fp8 --budget 5m -o next.json
    """
    from infergy.energy.estimate import facts_of, histogram_of
    from infergy.energy.load import load_table
    from infergy.energy.next_cells import choose_next
    from infergy.hardware import get_gpu
    from infergy.workload import open_requests

    budget_s, enough = seconds_of("--budget", budget), fraction("--target", target)
    if not (budget_s > 0 and 0 < enough < 1):
        raise UsageError(f"--budget {budget} --target {target}: both must be above 0, and the target a share like 1%")
    histogram = histogram_of(open_requests(source, format=format), bins)
    facts = facts_of(histogram)
    if not histogram.counts:
        raise UsageError(f"{facts.source}: no request with output, so nothing to measure for")
    chip = get_gpu(gpu or gpu_here() or DEFAULT_GPU).name
    known = load_table(table or (), with_shipped=not alone, allow_simulated=allow_simulated)
    candidates = [_Candidates(label, model or DEFAULT_MODEL, chip, histogram) for label in engine or [DEFAULT_ENGINE]]
    unserved = min(one.unserved for one in candidates)
    calibrated = None if calibration is None else read_calibration(calibration, chip, allow_simulated)
    found = choose_next(
        facts,
        [one.subject(known, calibrated) for one in candidates],
        model=candidates[0].setup.model,
        gpu=chip,
        budget_s=budget_s,
        target=enough,
        unserved_requests=unserved,
    )
    if output is not None and found.cells:
        _plan_of(found, candidates).save(output)
        typer.echo(f"{output}: {len(found.cells)} cells. Next: infergy measure {output} -o mine.jsonl", err=True)
    if as_json:
        print_json([found])
    else:
        _print(found)


class _Candidates:
    """The bins of a trace as cells of one engine set-up."""

    def __init__(self, label: str, model: str, gpu: str, histogram: Histogram) -> None:
        from infergy.hardware.models import canonical_name
        from infergy.records import EngineSetup

        self.label, self.gpu = label, gpu
        self.unserved = 0
        self.plan: Plan | None = None
        self.planned: list[tuple[BinCount, PlannedCell]] = []
        reason = "no bin"
        for count in histogram.counts:
            try:
                plan = _plan_bin(label, model, gpu, count)
            except UsageError as error:
                self.unserved += count.requests
                reason = str(error)
                continue
            self.plan = self.plan or plan
            self.planned.append((count, plan.cells[0]))
        if self.plan is None:
            raise UsageError(f"{label} can serve no bin of this trace: {reason}")
        self.setup: EngineSetup = EngineSetup(model=canonical_name(model), **EngineSetup.parse_label(label))

    def subject(self, table: EnergyTable, calibration: Calibration | None) -> Subject:
        """What is known of the set-up, and what could be."""
        from infergy.energy.next_cells import Candidate, Subject
        from infergy.energy.posterior import Posterior
        from infergy.energy.values import server_for
        from infergy.measure.forecast import cell_s, setup_s

        assert self.plan is not None
        server = server_for(self.setup, self.gpu, calibration)
        if server is None:
            raise UsageError(f"{self.label}: the physical model knows only transformers and vllm, and no speculation")
        options = self.plan.options
        return Subject(
            engine=self.label,
            posterior=Posterior(server, self._known(table)),
            candidates=tuple(
                Candidate(
                    input_tokens=planned.cell.load.input_tokens,
                    output_tokens=planned.cell.load.output_tokens,
                    batch=planned.cell.load.batch,
                    requests=count.requests,
                    cost_s=cell_s(planned, options),
                )
                for count, planned in self.planned
            ),
            load_s=setup_s(self.setup, options),
        )

    def _known(self, table: EnergyTable) -> tuple[TableCell, ...]:
        try:
            return table.find(self.gpu, self.setup.model, self.label).cells
        except UsageError:
            # Nothing is measured yet: the datasheet's priors are where to begin.
            return ()


def _plan_bin(label: str, model: str, gpu: str, count: BinCount) -> Plan:
    from infergy.measure.grid import make_plan, parse_grid
    from infergy.records import EngineSetup

    block: dict[str, Any] = {"max_batch": MAX_SEQUENCES, "max_batch_s": BATCH_S}
    block |= {"input_tokens": [count.bin.input_tokens], "output_tokens": [count.bin.output_tokens]}
    engine = to_json(EngineSetup.parse_label(label))
    grid = {"name": "next", "gpu": gpu, "model": model, "engines": [engine], "cells": [block]}
    return make_plan(parse_grid(grid, "infergy next"))


def _plan_of(found: NextCells, candidates: list[_Candidates]) -> Plan:
    """The chosen cells, the most useful of each engine first."""
    from dataclasses import replace

    known = {
        (one.label, planned.cell.load.input_tokens, planned.cell.load.output_tokens): planned
        for one in candidates
        for _, planned in one.planned
    }
    cells = [known[one.engine, one.input_tokens, one.output_tokens] for one in found.cells]
    plans = [one.plan for one in candidates if one.plan is not None]
    models = {name: config for plan in plans for name, config in plan.models.items()}
    ordered = sorted(cells, key=lambda planned: [plan.cells[0].cell.setup for plan in plans].index(planned.cell.setup))
    return replace(plans[0], cells=tuple(ordered), models=models)


def _print(found: NextCells) -> None:
    from rich import box
    from rich.table import Table

    console = stdout_console()
    console.print(
        f"{found.trace.source}: {found.trace.requests:,} requests; {found.model} on {found.gpu}", markup=False
    )
    for one in found.engines:
        console.print(
            f"{one.engine}: {format_si(one.energy_j, 'J')}, 90 % within ± {format_percent(one.half_width)} by "
            f"{one.measured} measured cells; with the cells below ± {format_percent(one.half_width_after)}",
            markup=False,
            soft_wrap=True,
        )
    if found.cells:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("Engine", "Input", "Output", "Batch", "Requests", "Takes", "Then ±"):
            table.add_column(name, justify="left" if name == "Engine" else "right", no_wrap=True)
        for row in _rows(found):
            table.add_row(*row)
        console.print(table)
    console.print(
        fill(
            f"{len(found.cells)} cells, about {format_duration(found.cost_s)} by forecast, loading included; "
            f"{found.stopped}",
            WIDTH,
        ),
        markup=False,
    )
    if found.unserved_requests:
        console.print(f"{found.unserved_requests:,} requests are too long, or too large for the memory", markup=False)


def _rows(found: NextCells) -> Iterator[tuple[str, ...]]:
    for one in found.cells:
        lengths = (f"{one.input_tokens:,}", f"{one.output_tokens:,}", f"{one.batch}", f"{one.requests:,}")
        yield one.engine, *lengths, format_duration(one.cost_s), format_percent(one.half_width)
