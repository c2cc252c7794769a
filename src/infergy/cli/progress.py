"""A sweep as it goes, shown on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infergy.processes import EndedError
from infergy.units import format_duration, printable

if TYPE_CHECKING:
    from infergy.measure.sweep import SweepEvent
    from infergy.records import Plan


def run_sweep(
    resolved: Plan,
    path: Path,
    *,
    simulate: bool,
    retry_failed: bool,
    meter: str,
    as_json: bool,
    ray: str | None = None,
    may_set: Collection[str] = (),
) -> int:
    """Run the sweep, here or on the Ray cluster at `ray`, showing its progress; returns how many cells failed."""
    from infergy.measure.cluster import sweep_on_ray
    from infergy.measure.sweep import kept_rows, sweep

    progress = Progress(resolved)
    failed = 0
    try:
        events = (
            sweep(resolved, path, simulate=simulate, retry_failed=retry_failed, meter=meter, may_set=may_set)
            if ray is None
            else sweep_on_ray(resolved, path, ray, simulate=simulate, retry_failed=retry_failed, meter=meter)
        )
        for event in events:
            progress.show(event)
            if event.row is not None:
                failed += not event.row.is_ok
                if as_json:
                    typer.echo(json.dumps(event.row.to_json()))
    except (KeyboardInterrupt, EndedError):
        typer.echo(kept_rows(path), err=True)
        raise
    finally:
        progress.stop()
    return failed


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of something are done: a bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, known: bar.update(task, completed=done, total=known)


class Progress:
    """A bar with time left on a terminal, a line for each cell elsewhere; redrawn only between windows."""

    def __init__(self, resolved: Plan) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        from infergy.measure.forecast import cell_s, setup_s

        self._seconds = {planned.key: cell_s(planned, resolved.options) for planned in resolved.cells}
        self._cells = resolved.cells
        self._loading = {setup.id: setup_s(setup, resolved.options) for setup in resolved.by_setup()}
        console = Console(stderr=True)
        # No refreshing thread: it would wake the machine inside a window.
        self._bar = Bar(
            TextColumn("{task.completed:.0f} s of about {task.total:.0f} s"),
            BarColumn(),
            TextColumn("{task.fields[left]} left"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=self._total(frozenset()), left="?")
        self._bar.start()

    def show(self, event: SweepEvent) -> None:
        """Show one event."""
        from infergy.measure.sweep import describe

        if event.kind == "resumed":
            self._bar.update(self._task, total=self._total(event.finished))
        if event.kind == "ready" and event.setup is not None:
            self._move(self._loading[event.setup.id], "")
        elif event.kind == "begin" and event.planned is not None:
            self._move(0.0, str(event.planned.cell))
        elif text := describe(event):
            self._bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
        if event.row is not None:
            self._move(self._seconds.get(event.row.key, 0.0), "")

    def stop(self) -> None:
        """Leave the terminal clean."""
        self._bar.stop()

    def _total(self, finished: frozenset[str]) -> float:
        """Seconds of the cells that are not finished, and of loading their engine configs."""
        left = [planned for planned in self._cells if planned.key not in finished]
        setups = {planned.cell.setup.id for planned in left}
        return sum(self._seconds[one.key] for one in left) + sum(self._loading[setup] for setup in setups)

    def _move(self, seconds: float, text: str) -> None:
        task = self._bar.tasks[0]
        left_s = max(0.0, (task.total or 0.0) - task.completed - seconds)
        self._bar.update(self._task, advance=seconds, description=printable(text), left=format_duration(left_s))
        self._bar.refresh()
