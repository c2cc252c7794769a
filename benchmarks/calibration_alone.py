"""Measured cells told by a GPU's calibration alone, beside its datasheet alone: no measured cell of any model is used.

    python benchmarks/calibration_alone.py [CALIBRATION]

CALIBRATION is a shipped one (h100-sxm) or a file of `infergy calibrate`. Then what the errors are made of, the two
replays (docs/replay.md), and rows of served models of a GPU that is left out (docs/scoreboard.md). Half a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Read when numpy loads: threads stall each other over matrices this small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np

from infergy.energy.calibration import Calibration, find_calibration, load_calibration
from infergy.energy.cell_model import VLLM, CellModel, Server
from infergy.energy.demand import prefill_demand
from infergy.energy.load import SHIPPED, load_table
from infergy.energy.physics import CONSTANTS, Physics
from infergy.energy.posterior import LEAST_NOISE, Posterior
from infergy.energy.replay import predict_replay
from infergy.energy.table import EnergyTable, TableCell
from infergy.energy.values import server_for
from infergy.hardware.gpus import catalogue_name
from infergy.records import EngineSetup, Measurement, result_of
from infergy.records.calibration import read_calibration_file
from infergy.records.store import read_store
from infergy.score.ours import InfergyCalibrated, InfergyPhysics
from infergy.score.rows import TEXT_TASKS, read_rows
from infergy.units import format_si

WIDTH = 34
BASES = ("datasheet", "calibration")
SQUARE = "product 8192 x 8192 x 8192 bfloat16"
READERS = ("product 16 x 8192 x 28672 bfloat16", "product 64 x 8192 x 28672 bfloat16", "attention 128 x 2048")
BATCHES = (1, 16, 64, 256, 10_000)


@dataclass(frozen=True)
class Group:
    """Attributes: `servers` by datasheet and by calibration; `cells` measured of one model and engine set-up."""

    name: str
    engine: str
    servers: tuple[Server, Server]
    cells: tuple[TableCell, ...]

    @property
    def lengths(self) -> Any:
        """Rows of input tokens, output tokens and batch."""
        return np.array([[c.input_tokens, c.output_tokens, c.batch] for c in self.cells], dtype=float)

    def only(self, words: str, which: Callable[[TableCell], bool]) -> Group:
        """Those of its cells."""
        cells = tuple(cell for cell in self.cells if which(cell))
        return Group(name=f"  {words}", engine=self.engine, servers=self.servers, cells=cells)


def main() -> None:
    """Print all of it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "h100-sxm"
    calibration = load_calibration(name)
    groups = list(groups_of(load_table(with_shipped=True), calibration))
    print(f"{calibration.title}, calibrated on {', '.join(calibration.uuids)}: {calibration.windows} windows\n")
    show_groups(groups)
    show_waits(groups)
    show_prefill(groups, name)
    show_plain(name)
    show_replays(calibration)
    show_held_out(calibration)


def groups_of(table: EnergyTable, calibration: Calibration) -> Iterator[Group]:
    """The measured set-ups of the GPU that the model applies to, greedy decoding alone."""
    # One table for each law of random weights, which `find` puts together.
    setups = {(setup.model, setup.label): setup for setup in table.setups if setup.gpu == calibration.gpu}
    for setup in setups.values():
        if setup.label != setup.setup.label:
            continue
        servers = [server_for(setup.setup, setup.gpu, known) for known in (None, calibration)]
        if servers[0] is None or servers[1] is None:
            continue
        cells = Posterior(servers[0], table.find(setup.gpu, setup.model, setup.label).cells).cells
        yield Group(
            name=f"{setup.model} {setup.label}",
            engine=setup.setup.engine,
            servers=(servers[0], servers[1]),
            cells=cells,
        )


def show_groups(groups: Sequence[Group]) -> None:
    """How far joules and seconds a request are off, and whether 90 % intervals hold."""
    print(f"{'predicted / measured - 1':{WIDTH + 18}}|{'joules':^24}|{'seconds':^24}|{'watts':^7}|{'inside':^7}")
    three = f"{'median':>7}{'largest':>9}{'mean':>7} "
    print(f"{'':{WIDTH}}{'cells':>5}{'':13}|{three}|{three}|{'mean':^7}|{'90 %':^7}")
    for group in groups:
        show_group(group)
        if group.name == "llama-3.1-8b vllm":
            show_group(group.only("up to 8 tokens out", lambda cell: cell.output_tokens <= 8))
            show_group(group.only("one request at a time", lambda cell: cell.batch == 1 and cell.output_tokens > 8))
            show_group(group.only("the others", lambda cell: cell.batch > 1 and cell.output_tokens > 8))
    print("median: of |error|; largest and mean: with their sign; inside 90 %: cells within the intervals\n")


def show_group(group: Group) -> None:
    """Two lines: by datasheet, by calibration."""
    energy_j, seconds, doubt = (
        np.array([getattr(cell, name) for cell in group.cells]) for name in ("energy_j", "duration_s", "doubt")
    )
    for basis, server in zip(BASES, group.servers, strict=True):
        posterior = Posterior(server)
        told = posterior.at(group.lengths)
        joules, time = told.energy_j / energy_j - 1, told.duration_s / seconds - 1
        spread = np.hypot(told.spread, np.maximum(LEAST_NOISE, doubt / 1.96))
        held = np.abs(np.log1p(joules)) <= posterior.half_width * spread
        first = basis == BASES[0]
        head = f"{group.name if first else '':{WIDTH}}{len(group.cells) if first else '':>5}  {basis:11}"
        watts = np.mean((1 + joules) / (1 + time) - 1)
        print(f"{head}|{_three(joules)}|{_three(time)}|{watts:>+6.0%} |{np.mean(held):>6.0%}")


def show_waits(groups: Sequence[Group]) -> None:
    """Seconds of a token at batch 1 that are neither bytes nor FLOPs: launches, host, exchanges."""
    print("one request at a time, 512→64: ms a token beside bytes and FLOPs")
    print(f"{'':{WIDTH}}{'measured':>10}{'by calibration':>16}")
    for group in groups:
        alone = group.only("", lambda cell: (cell.input_tokens, cell.output_tokens, cell.batch) == (512, 64, 1))
        if group.engine != VLLM or not alone.cells:
            continue
        model, values = CellModel(alone.servers[1], alone.lengths), _values(alone.servers[1])
        work = values | {name: 0.0 for name in values if name.endswith("_s")}
        told, bare = (float(model.requests(Physics(values=each)).seconds[0]) for each in (values, work))
        measured = alone.cells[0].duration_s
        print(f"{group.name:{WIDTH}}{1e3 * (measured - bare) / 64:>10.2f}{1e3 * (told - bare) / 64:>16.2f}")
    print()


def show_prefill(groups: Sequence[Group], name: str) -> None:
    """Joules of a FLOP in prefill, in the smallest and largest batch of each input, beside those in a large product."""
    (square,) = (one for one in read_calibration_file(find_calibration(name)) if one.workload.name == SQUARE)
    assert square.energy_j is not None
    assert square.power_w is not None
    plain = square.energy_j / square.calls / square.workload.flops
    print(f"{'joules a TFLOP in bfloat16, all of them':42}{'measured':>15}{'by calibration':>19}")
    print(f"  {SQUARE:40}{_dense(plain, square.power_w):>15}")
    for group in (one for one in groups if one.name == "llama-3.1-8b vllm"):
        alone = group.only("", lambda cell: cell.output_tokens == 1)
        of_input: dict[int, list[TableCell]] = {}
        for cell in sorted(alone.cells, key=lambda cell: cell.batch):
            of_input.setdefault(cell.input_tokens, []).append(cell)
        ends = [cell for cells in of_input.values() for cell in (cells[0], cells[-1])]
        one = alone.only("", ends.__contains__)
        inputs, _, batch = one.lengths.T
        demand = prefill_demand(one.servers[1].shape, batch, inputs)
        flops = (demand.linear_flops + demand.attention_flops) / batch
        told = Posterior(one.servers[1]).at(one.lengths)
        for place, cell in sorted(enumerate(one.cells), key=lambda pair: (pair[1].input_tokens, pair[1].batch)):
            measured = _dense(cell.energy_j / flops[place], cell.energy_j / cell.duration_s)
            model = _dense(told.energy_j[place] / flops[place], told.energy_j[place] / told.duration_s[place])
            print(f"  {f'prefill {cell.input_tokens} × {cell.batch}, vllm':40}{measured:>15}{model:>19}")
    print()


def _dense(joules_a_flop: float, power_w: float) -> str:
    return f"{1e12 * joules_a_flop:.2f} at {power_w:.0f} W"


def show_plain(name: str) -> None:
    """What reading the memory draws by what is done with the bytes."""
    windows = {one.workload.name: one for one in read_calibration_file(find_calibration(name))}
    print("reading memory, plain work")
    for words in (one for one in READERS if one in windows):
        one = windows[words]
        print(f"  {words:40}{one.workload.memory_bytes / one.call_s / 1e12:>6.2f} TB/s at {one.power_w:.0f} W")
    print()


def show_replays(calibration: Calibration) -> None:
    """The replays of the shipped rows, foretold on four bases."""
    rows = [
        row
        for path in sorted(SHIPPED.glob("*.jsonl"))
        for row in read_store(path).rows
        if row.is_ok and row.lengths and catalogue_name(row.environment.gpus[0].name) == calibration.gpu
    ]
    table = load_table(with_shipped=True)
    sums: dict[str, float] = {}
    measured_j = 0.0
    for row in (one for one in rows if one.cell.setup.label == "vllm-s256"):
        measured_j += result_of(row).energy_j
        for words, energy_j in show_replay(row, calibration, table):
            sums[words] = sums.get(words, 0.0) + energy_j
    print(f"both: measured {format_si(measured_j, 'J')}")
    for words, energy_j in sums.items():
        print(f"  {words:34}{format_si(energy_j, 'J'):>8} {energy_j / measured_j - 1:>+7.1%}")
    print()


def show_replay(row: Measurement, calibration: Calibration, table: EnergyTable) -> Iterator[tuple[str, float]]:
    """Print what was foretold of one; what, and joules."""
    measured = result_of(row)
    assert row.cell.load.arrivals is not None
    assert row.lengths is not None
    name = row.cell.load.arrivals.trace
    assert name is not None
    print(f"{name}: measured {format_si(measured.energy_j, 'J')} in {measured.duration_s:.1f} s")
    setup: EngineSetup = row.cell.setup
    for words, known, cells in (
        ("datasheet", None, load_table()),
        ("calibration", calibration, load_table()),
        ("measured cells", None, table),
        ("measured cells and calibration", calibration, table),
    ):
        server = server_for(setup, calibration.gpu, known)
        assert server is not None
        found = predict_replay(name, row.lengths, first=0, setup=setup, server=server, gpu=calibration.gpu, table=cells)
        held = "holds" if found.low_j <= measured.energy_j <= found.high_j else "does not hold"
        print(
            f"  {words:34}{format_si(found.energy_j, 'J'):>8} {found.energy_j / measured.energy_j - 1:>+7.1%}   "
            f"{format_si(found.low_j, 'J')} .. {format_si(found.high_j, 'J')} {held}, in {found.duration_s:.1f} s"
        )
        yield words, found.energy_j


def show_held_out(calibration: Calibration) -> None:
    """Rows of text of served models on this kind of GPU, by constants fitted to all other rows."""
    rows, energy_j = read_rows()
    ours = rows.gpu == calibration.gpu
    train, test = np.flatnonzero(~ours), np.flatnonzero(ours & np.isin(rows.task.astype(str), TEXT_TASKS))
    held, measured_j = rows.take(test), energy_j[test]
    off = [
        one.fit(rows.take(train), energy_j[train]).predict(held).energy_j / measured_j - 1
        for one in (InfergyPhysics(), InfergyCalibrated((calibration,)))
    ]
    three = f"{'median':>8}{'p90':>9}{'bias':>7}"
    print(f"{f'served models on {calibration.gpu}, unseen':37}   {'fitted to other GPUs':^24}|{'and calibrated':^24}")
    print(f"{'':32}{'rows':>5}   {three}|{three}")
    everything = np.ones(len(test), dtype=bool)
    _held_line("all", everything, off)
    dense = (held.architecture == "Dense Transformer") & (held.gpus == 1)
    _held_line("dense models on one GPU", dense, off)
    for low, high in pairwise(BATCHES):
        words = f"batch {low} to {high}" if high < BATCHES[-1] else f"batch from {low}"
        _held_line(words, (held.batch >= low) & (held.batch < high), off)
    for name in sorted(set(held.backbone)):
        _held_line(f"  {name}", held.backbone == name, off)


def _held_line(words: str, which: Any, off: Sequence[Any]) -> None:
    told = [
        f"{np.median(np.abs(one[which])):>8.1%}{np.quantile(np.abs(one[which]), 0.9):>9.1%}{np.median(one[which]):>+7.0%}"
        for one in off
    ]
    print(f"{words:32}{int(which.sum()):>5}   {told[0]}|{told[1]}")


def _three(error: Any) -> str:
    largest = error[np.argmax(np.abs(error))]
    return f"{np.median(np.abs(error)):>7.1%}{largest:>+9.0%}{np.mean(error):>+7.0%} "


def _values(server: Server) -> dict[str, float]:
    known = {one.name for one in CONSTANTS}
    return {one.name: one.value for one in server.constants if one.name in known}


if __name__ == "__main__":
    main()
