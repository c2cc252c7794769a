"""`infergy recommend`: which measured configuration serves a trace with the fewest joules, and what to type for it."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.old_estimate import (
    WIDTH,
    BaselineOption,
    GpuOption,
    MaxBatchOption,
    ModelOption,
    SimulatedOption,
    TableOption,
)
from infergy.cli.trace_options import FormatOption, JsonOption, print_json, seconds_of, stdout_console
from infergy.energy.options import BASELINE, MAX_BATCH_S
from infergy.errors import UsageError
from infergy.units import format_duration, format_number, format_percent, format_si

if TYPE_CHECKING:
    from rich.table import Table

    from infergy.energy.recommend import Configuration, Recommendation


def recommend(
    source: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace's name, or a file")],
    model: ModelOption = None,
    gpu: GpuOption = None,
    table: TableOption = None,
    present: Annotated[
        str | None, typer.Option("--present", help="The configuration that serves now, as vllm-eager")
    ] = None,
    tpot: Annotated[str | None, typer.Option("--tpot", help="Bound on the time per output token: 50ms, 0.05s")] = None,
    ttft: Annotated[str | None, typer.Option("--ttft", hidden=True)] = None,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Leave out what changes the model's answers, such as precision.")
    ] = False,
    baseline: BaselineOption = BASELINE,
    max_batch_s: MaxBatchOption = MAX_BATCH_S,
    allow_simulated: SimulatedOption = False,
    format: FormatOption = None,  # noqa: A002 - the option's name
    as_json: JsonOption = False,
) -> None:
    """Rank every measured configuration for a trace by its joules, and say what to change, and by how much.

    Example: infergy recommend azure-conv-2023 --tpot 100ms --present transformers
    """
    from infergy.energy.estimate import PriceOptions
    from infergy.energy.recommend import recommend as rank
    from infergy.workload import open_requests

    if ttft is not None:
        raise UsageError(
            f"--ttft {ttft}: cells are batches that are all there at once, so their time to first token is mostly "
            "queueing, and no bound for a server. Bound the time per output token: --tpot 50ms"
        )
    options = PriceOptions(
        model=model,
        gpu=gpu,
        tables=tuple(table or ()),
        allow_simulated=allow_simulated,
        baseline=baseline,
        max_batch_s=max_batch_s,
    )
    found = rank(
        open_requests(source, format=format),
        options,
        tpot_s=None if tpot is None else seconds_of("--tpot", tpot),
        present=present,
        keep_outputs=keep_outputs,
    )
    if as_json:
        print_json([found])
    else:
        _print(found)


def _print(found: Recommendation) -> None:
    console = stdout_console()
    console.width = min(console.width, WIDTH)
    trace = found.trace
    console.print(
        f"{trace.source}: {trace.requests:,} requests; {found.model} on {found.gpu}; saves against {found.baseline}",
        markup=False,
        soft_wrap=True,
    )
    if trace.lengths_from is not None:
        console.print(fill(trace.lengths_from, console.width), markup=False, soft_wrap=True)
    console.print(_table(found))
    if found.steps:
        console.print(f"From {found.present or found.baseline}, step by step", style="bold")
        for step in found.steps:
            share = step.change_j / (step.energy_j - step.change_j)
            doubt = "" if step.is_significant else ", no significant difference"
            console.print(
                f"  {step.change}: {format_si(step.energy_j, 'J')} ({format_percent(share, signed=True)}{doubt})",
                markup=False,
            )
    console.print(_heading(found), style="bold")
    console.print(f"  {' '.join(found.best.options)}", markup=False, soft_wrap=True)
    for text in found.notes:
        lines = fill(text, console.width, initial_indent="- ", subsequent_indent="  ")
        console.print(lines, markup=False, soft_wrap=True)


def _heading(found: Recommendation) -> str:
    """What to type, and whether it keeps the bound."""
    from infergy.energy.recommend import ENOUGH

    within = found.best.within_bound
    if within is None or within >= ENOUGH:
        return "To type"
    return f"To type, though it keeps the bound for {format_percent(within)} of the requests only"


def _table(found: Recommendation) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("Configuration", no_wrap=True)
    names = ["Energy", "± own", "Saves", *(["Now"] if found.present else []), "GPU-h", "Batch", "takes"]
    names += ["In bound"] if found.tpot_s is not None else []
    names += ["Priced"] if _is_partial(found) else []
    for name in names:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("")
    for one in found.configurations:
        grid.add_row(*_row(one, found))
    return grid


def _row(one: Configuration, found: Recommendation) -> list[str]:
    cap = "any s" if one.max_batch_s is None else f"≤ {one.max_batch_s:g} s"
    cells = [f"{one.engine} {cap}", format_si(one.energy_j, "J"), format_percent(one.own_error), _share(one.saving)]
    cells += [_share(one.saving_vs_present)] if found.present else []
    cells += [format_number(one.gpu_hours), f"≤ {one.largest_batch}", f"≤ {format_duration(one.longest_batch_s)}"]
    cells += [_share(one.within_bound)] if found.tpot_s is not None else []
    cells += [format_percent(one.priced_share)] if _is_partial(found) else []
    remarks = [] if one is found.best or not one.like_best else ["no significant difference from the first"]
    remarks += [f"changes outputs: {one.changes_outputs}"] if one.changes_outputs else []
    return [*cells, "; ".join(remarks)]


def _is_partial(found: Recommendation) -> bool:
    """Whether some requests have no price under some configuration."""
    return any(one.priced_share < 1 for one in found.configurations)


def _share(share: float | None) -> str:
    return "unknown" if share is None else format_percent(share)
