"""A line for each request: its tokens, times and energy, by the names of OpenTelemetry where it has some.

Energy is that of its part of the steps (`infergy.serving.shares`). What was used while nothing was served stands apart,
in proportion to it. Of a measured run both are scaled, so that all lines add up to what the counter showed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infergy.cost.table import Table
from infergy.errors import UsageError
from infergy.estimates.replay import measured, requests_of_parts, spec_of
from infergy.estimates.servers import OpenServer, open_server
from infergy.files import write_file
from infergy.records import Measurement, PlannedCell
from infergy.serving.run import Run
from infergy.workload.requests import Sample

LOG_KIND, LOG_SIGN = "log of requests", '"infergy.energy_j"'
LATENCIES = ("infergy.time_to_first_token_s", "infergy.duration_s")
NANOJOULE_DIGITS, MICROSECOND_DIGITS = 9, 6


def log_of_sample(sample: Sample, server: OpenServer) -> Iterator[dict[str, Any]]:
    """Each request of a trace as it is served in simulation, at its arrival time if it has one.

    Raises:
        UsageError: The trace is longer than can be simulated whole.
    """
    if not sample.is_whole:
        message = (
            f"{sample.source}: only windows of it are simulated, so that requests of it have no energy of their own. "
            "Choose a part: --from and --for, or --requests"
        )
        raise UsageError(message, code="not-supported", trace=sample.source, reason="windows", option="--request-log")
    run = server.serve(sample.windows[0].requests, shares=True)
    yield from _lines(server, run, run.energy_j, _times_of(run), "simulated")


def log_of_replay(
    parts: Sequence[PlannedCell] | Sequence[Measurement], gpu: str, table: Table
) -> Iterator[dict[str, Any]]:
    """Each request of a replay, of all its replicas; of a measured one shares of the counter's energy.

    Raises:
        UsageError: As for `infergy.estimates.replay.predict`.
    """
    requests, cell = requests_of_parts(parts), parts[0].cell
    server = open_server(replace(spec_of(cell.setup, gpu, len(requests)), replicas=len(parts)), table)
    run = server.serve(requests, shares=True)
    rows = [part for part in parts if isinstance(part, Measurement)]
    energy_j = measured(rows).energy_j if rows else None
    times = _times_of(run)
    if rows:
        known = rows[0].windows[0].batches[0].times if len(rows) == 1 else None
        measured_s = (None, None) if known is None else (known.first_token_s, known.finished_s)
        times |= zip(LATENCIES, measured_s, strict=True)
    method = "simulated" if not rows else "simulated GPU" if rows[0].simulated else "measured"
    for line in _lines(server, run, run.energy_j if energy_j is None else energy_j, times, method):
        yield {"infergy.cell": cell.id, **line}


def _times_of(run: Run) -> dict[str, Any]:
    served = run.requests
    latencies = served.first_token_s - served.arrival_s, served.finished_s - served.arrival_s
    return {"infergy.arrival_s": served.arrival_s, **dict(zip(LATENCIES, latencies, strict=True))}


def _lines(
    server: OpenServer, run: Run, total_j: float, times: Mapping[str, Any], method: str
) -> Iterator[dict[str, Any]]:
    """A line for each request; a time that there is none of is null."""
    own_j = run.request_energy_j
    assert own_j is not None
    busy_j = float(own_j.sum())
    own_j = own_j * (total_j / run.energy_j) if busy_j else own_j
    idle = (total_j - float(own_j.sum())) / float(own_j.sum()) if busy_j else 0.0
    none = np.full(own_j.size, np.nan)
    columns = {
        "gen_ai.usage.input_tokens": run.requests.input_tokens,
        "gen_ai.usage.output_tokens": np.where(np.isfinite(run.requests.finished_s), run.requests.output_tokens, 0),
        "gen_ai.usage.cache_read.input_tokens": run.requests.hit_tokens,
        **{name: np.round(none if column is None else column, MICROSECOND_DIGITS) for name, column in times.items()},
        "infergy.energy_j": np.round(own_j, NANOJOULE_DIGITS),
        "infergy.idle_energy_j": np.round(own_j * idle, NANOJOULE_DIGITS),
    }
    names = ("infergy.request", "gen_ai.request.model", *columns, "infergy.energy_method")
    for index, values in enumerate(zip(*(column.tolist() for column in columns.values()), strict=True)):
        known = (None if value != value else value for value in values)
        yield dict(zip(names, (index, server.spec.model, *known, method), strict=True))


def write_log(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write them as JSON lines.

    Raises:
        UsageError: The file cannot be written, or holds something else.
    """
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    write_file(path, text, LOG_KIND, LOG_SIGN)
