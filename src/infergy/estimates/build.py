"""Rows of measurements as entries of the energy table: each with the steps that its engine's scheduler makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from infergy.catalog import catalog_name, find_gpu_by_driver_name, get_gpu, model_names
from infergy.catalog.models import shipped_model
from infergy.cost.constants import Fit, prior_fit
from infergy.cost.fit import make_table
from infergy.cost.model import Server, StepCost
from infergy.cost.step import compress
from infergy.cost.table import Origin, ServedBy, Table, TableEntry
from infergy.errors import DataError, MeterError
from infergy.records import GREEDY, Measurement, PlannedCell, result_of
from infergy.records.check import find_idle_power
from infergy.records.store import StoreContents, read_store
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.visits import join_visits
from infergy.serving.config import EngineConfig, EngineOptions, StaticConfig, resolve
from infergy.serving.run import Run
from infergy.serving.simulate import requests_of_lengths, simulate
from infergy.units import count_of, parse_count
from infergy.workload.requests import Requests

LEAST_SD = 0.004
"""Standard deviation of the logarithm of a measured energy, at least: whole processes differ by so much
(docs/uncertainty.md)."""
ENTRIES = 40
"""Of steps, of a table's entry, at most some more: sums over them are those of all steps within 0.3 %."""
SERVED = ("vllm", "transformers")
GPU_SCOPES = ("gpu-board", "gpu-module")
"""Scopes of meters that have a counter for each GPU."""


def build_table(paths: Iterable[Path], prior: Table | None = None, *, allow_simulated: bool = False) -> Table:
    """The table of stores of rows.

    Args:
        paths: The stores.
        prior: What earlier rows showed; None takes the datasheet's priors, and then builds twice: the steps of runs
            under arrivals depend on what steps take.
        allow_simulated: Whether rows of the simulated GPU may be used.

    Raises:
        DataError: As for `entries_of_rows`.
    """
    files, read = tuple(paths), cache(read_store)
    fits = {} if prior is None else prior.fits
    for _ in range(2 if prior is None else 1):
        entries, environments = entries_of_rows(files, fits, allow_simulated=allow_simulated, read=read)
        table = make_table(entries, environments, prior)
        fits = table.fits
    torn = (path for path in files if read(path).torn is not None)
    return replace(table, notes=tuple(f"{path}: its last line is half-written and left out" for path in torn))


def entries_of_rows(
    paths: Iterable[Path],
    fits: Mapping[str, Fit],
    *,
    allow_simulated: bool = False,
    read: Callable[[Path], StoreContents] = read_store,
) -> tuple[tuple[TableEntry, ...], dict[str, Mapping[str, Any]]]:
    """Entries of stores of rows, their steps by the constants of `fits`, and their environments by id.

    Failed rows, speculation, beams, sampling, static batches that transformers compiled, servers of another make than
    vLLM's, and GPUs whose power limit or clock was set are left out: the cost model does not know them.

    Raises:
        DataError: A file is missing, damaged or empty, its rows are simulated, or no row of all files can be used.
    """
    files = tuple(paths)
    entries: list[TableEntry] = []
    environments: dict[str, Mapping[str, Any]] = {}
    for path in files:
        joined = join_visits(_usable_rows(path, read(path).rows, allow_simulated=allow_simulated))
        for row, uncertainty in zip(joined, find_uncertainties(joined), strict=True):
            environment = environment_of(row)
            identity = environment_id(environment)
            environments[identity] = environment
            fit = fits.get(row.cell.setup.engine) or prior_fit(row.cell.setup.engine)
            entries.append(_entry(row, path.name, identity, _energy_sd(row, uncertainty), fit))
    if not entries:
        message = (
            f"{', '.join(map(str, files)) or 'no file'}: no row that can be used; expected measured rows of vllm or "
            "transformers, greedy, without speculation. Make some: infergy measure GRID.toml -o FILE.jsonl"
        )
        raise DataError(message, code="no-rows", files=list(map(str, files)))
    return tuple(entries), environments


def _usable_rows(path: Path, stored: Sequence[Measurement], *, allow_simulated: bool) -> list[Measurement]:
    """Rows of a store that the cost model knows, each checked."""
    if not stored:
        message = f"{path}: no measurement in it. Make one: infergy measure GRID.toml -o FILE.jsonl"
        raise DataError(message, code="no-rows", path=str(path))
    rows = [row for row in stored if row.is_ok]
    simulated = next((row for row in rows if row.simulated), None)
    if simulated is not None and not allow_simulated:
        raise simulated_rows(path, simulated.cell_id, str(simulated.cell))
    usable = [row for row in rows if _is_usable(row)]
    for row in usable:
        _check_row(row, f"{path}, cell {row.cell_id} ({row.cell})")
    return usable


def simulated_rows(path: Path, cell_id: str, cell: str) -> DataError:
    """The error of rows, or of a table of rows, that the simulated GPU made, by the first of them."""
    message = (
        f"{path}, cell {cell_id} ({cell}): rows of the simulated GPU say nothing about real ones. To use them all the "
        "same: --allow-simulated"
    )
    return DataError(message, code="simulated-rows", path=str(path), cell=cell_id)


def _check_row(row: Measurement, where: str) -> None:
    """Reject a row whose raw facts give no energy.

    Raises:
        DataError: Windows are missing, still or of other GPUs than the cell's, or the energy is not above zero.
    """

    def bad(fault: str, reason: str, advice: str = ". Remove the row and measure the cell again") -> DataError:
        return DataError(f"{where}: {fault}{advice}", code="bad-row", place=where, reason=reason)

    if not row.windows or row.loaded_idle is None:
        raise bad("status is ok, but its windows or its loaded-idle window are missing", "windows missing")
    uuids = frozenset(row.windows[0].open)
    edges = {frozenset(edge) for window in row.windows for edge in (window.open, window.close)}
    if edges != {uuids} or not uuids <= set(row.loaded_idle.open):
        raise bad("the edges of its windows are not of the same GPUs", "different GPUs")
    wanted = row.cell.setup.tensor_parallel
    if row.environment.scope in GPU_SCOPES and len(uuids) != wanted:
        raise bad(f"counters of {count_of(len(uuids), 'GPU')}, expected tensor_parallel = {wanted}", "tensor_parallel")
    try:
        result = result_of(row)
    except MeterError as error:
        raise bad(str(error), error.code, "") from error
    except ZeroDivisionError as error:
        raise bad("a window, or all of its batches, last zero seconds", "zero seconds") from error
    if not result.energy_j > 0:
        raise bad(f"{result.energy_j:g} J per batch, expected more than 0", "zero energy")


def _energy_sd(row: Measurement, uncertainty: Uncertainty | None) -> float:
    """Standard deviation of the logarithm of a row's energy; of its rescaling alone where no other part is known."""
    if uncertainty is None:
        half_width = 0.0 if row.rescaled is None else row.rescaled.half_width
    else:
        half_width = (uncertainty.high_j - uncertainty.low_j) / 2 / result_of(row).energy_j
    return max(LEAST_SD, half_width / 1.96)


def environment_of(row: Measurement) -> dict[str, Any]:
    """Host, driver and packages of a row."""
    environment = row.environment
    return {
        "platform": environment.platform,
        "cpu": environment.cpu,
        "gpus": sorted({gpu.name for gpu in environment.gpus}),
        "power_limits_w": sorted({gpu.power_limit_w for gpu in environment.gpus if gpu.power_limit_w}),
        "driver": environment.driver,
        "cuda": environment.cuda,
        "packages": dict(environment.packages),
    }


def environment_id(environment: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of its content."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:12]


def _is_usable(row: Measurement) -> bool:
    setup = row.cell.setup
    return (
        setup.engine in SERVED
        and setup.model in model_names()
        and setup.speculation is None
        and not setup.compiled
        and not setup.gpu_settings
        and row.environment.engine.get("software", "vllm") == "vllm"
        and row.cell.load.decoding == GREEDY
        and bool(row.environment.gpus)
        and find_gpu_by_driver_name(catalog_name(row.environment.gpus[0].name)) is not None
    )


def _entry(row: Measurement, source: str, environment: str, energy_sd: float, fit: Fit) -> TableEntry:
    is_api = row.environment.engine.get("usage_context") == "server"
    by = ServedBy.of(row.cell.setup, catalog_name(row.environment.gpus[0].name), is_api=is_api)
    result = result_of(row)
    is_timed = requests_of(row).is_timed
    run, idle_w = simulate_row(row, by, fit)
    return TableEntry(
        served_by=by,
        origin=Origin(
            source=source,
            cell=str(row.cell),
            cell_id=row.cell_id,
            unit="+".join(sorted(gpu.uuid for gpu in row.environment.gpus)),
            environment=environment,
            measured_utc=row.measured_utc,
            weights=row.environment.weights,
            simulated=row.simulated,
        ),
        requests=row.cell.load.batch,
        energy_j=result.energy_j,
        energy_sd=energy_sd,
        duration_s=None if is_timed else result.duration_s,
        idle_w=idle_w,
        idle_s=run.idle_s if is_timed else 0.0,
        calls=0 if is_timed or by.is_api else 1,
        steps=compress(run.steps, ENTRIES),
    )


def simulate_row(row: Measurement, by: ServedBy, fit: Fit) -> tuple[Run, float]:
    """The run that a row's engine makes, by its recorded options, and the idle watts of its GPUs."""
    shape, gpu = shipped_model(by.model), get_gpu(by.gpu)
    idle_w = find_idle_power(row).loaded_w or 0.0
    cost = StepCost(Server.of(by, shape, gpu, idle_w), fit)
    requests = requests_of(row)
    if by.engine == "transformers":
        size = row.cell.setup.max_sequences or len(requests)
        config = StaticConfig(max_num_seqs=size, max_model_len=None, has_graphs=by.has_graphs)
        return simulate(requests, config, cost), idle_w
    return simulate(requests, config_of_row(row, by), cost), idle_w


def requests_of(planned: PlannedCell | Measurement) -> Requests:
    """The requests of a planned or measured cell, at their arrival times if it has any."""
    load = planned.cell.load
    lengths = planned.lengths or (load.lengths,) * load.batch
    return requests_of_lengths(str(planned.cell), lengths, planned.arrival_s, planned.links)


def config_of_row(row: Measurement, by: ServedBy) -> EngineConfig:
    """The options that vLLM recorded in a row; its version's defaults for what an old row lacks."""
    facts = row.environment.engine
    options = EngineOptions(
        max_num_seqs=parse_count(facts.get("max_num_seqs")),
        max_num_batched_tokens=parse_count(facts.get("max_num_batched_tokens")),
        num_gpu_blocks=parse_count(facts.get("kv_cache_blocks")),
        block_size=parse_count(facts.get("kv_block_size")) or 16,
        enable_prefix_caching=facts.get("prefix_caching", str(row.cell.setup.prefix_caching)) == "True",
        tensor_parallel_size=by.gpus,
        enforce_eager=not by.has_graphs,
    )
    model, gpu = shipped_model(by.model), get_gpu(by.gpu)
    return resolve(model, gpu, options, dtype=by.dtype, usage_context="server" if by.is_api else "llm")
