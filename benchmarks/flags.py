"""Which flags and facts of a row predict that its energy is wrong by more than its interval: by replicates and by a fit.

    python benchmarks/flags.py              all rows that ship and those of benchmarks/rows; the fit takes a minute
    python benchmarks/flags.py --no-fit     replicates alone

A cell that was measured more than once has replicates: another session or process on the same GPU, or another GPU. Each
row is compared with the median of the other rows of its cell:

    z = 1.96 ln(E / E_others) / √(w² + w_others² + (1 + 1 / n) (1.96 s)²)

with the half-widths w of the 95 % intervals (of the others their median), n others, and s = 0.4 % between processes of
one GPU, of other GPUs 2 % more in quadrature. A row lies outside where |z| > 1.96: 5 % are expected if intervals are
right. The same for what the step-cost model leaves of a cell's energy, its GPU's offset taken out, in place of the
logarithm, with the standard deviation of the row and of the fit.

For each flag and fact: rows that have it, how many of them lie outside, and the median |z|; the same of the other rows;
and p, one-sided, by Fisher's exact test. Rows of one session are not independent, so p is a guide and no proof.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scipy.stats import fisher_exact

import infergy
from infergy.cost.fit import UNIT_ENERGY_SD, fit
from infergy.cost.table import SHIPPED_TABLE, read_table
from infergy.quality.compare import BETWEEN_PROCESSES
from infergy.records import Measurement
from infergy.records.agreement import IDENTITY, MUST, key_of
from infergy.records.check import CheckedRow, check_rows
from infergy.records.store import read_store

TABLES = Path(infergy.__file__).parent / "data" / "tables"
BESIDE = Path(__file__).parent / "rows"
Z = 1.96
"""Of the 95 % interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured row; `source` names its file, `half_width` is None where the interval is unknown."""

    source: str
    row: Measurement
    checked: CheckedRow
    gpus: tuple[str, ...]

    @property
    def half_width(self) -> float | None:
        """As a fraction of the energy; None where it is unknown."""
        return None if self.checked.uncertainty is None else self.checked.uncertainty.half_width

    @property
    def log_j(self) -> float:
        """Logarithm of joules per request."""
        assert self.checked.energy_j is not None
        return math.log(self.checked.energy_j / self.row.cell.load.batch)

    @property
    def cell(self) -> tuple[object, ...]:
        """Equal for replicates."""
        return self.row.cell_id, self.row.arrival_sha256, key_of(self.row, (*IDENTITY, *MUST))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How far a row lies from what others report, in standard deviations."""

    row: Row
    z: float


Condition = Callable[[Row], bool]


def above(read: Callable[[Row], float | None], limit: float) -> Condition:
    """Whether the size of a value is known and above a limit."""
    return lambda row: abs(read(row) or 0.0) > limit


def fact(name: str, limit: float) -> Condition:
    return above(lambda row: getattr(row.checked.facts, name), limit)


def wide(row: Row) -> float | None:
    return row.half_width


CONDITIONS: dict[str, Condition] = {
    "interval wider than 2 %": above(wide, 0.02),
    "interval wider than 2 %, 1 or 2 windows": lambda row: above(wide, 0.02)(row) and len(row.row.windows) < 3,
    "energy drift over 2 %": fact("energy_drift", 0.02),
    "batch time drift over 5 %": fact("batch_time_drift", 0.05),
    "batch time drift over 5 %, interval within 2 %": lambda row: (
        fact("batch_time_drift", 0.05)(row) and not above(wide, 0.02)(row)
    ),
    "first batch over 1.2 × the others": fact("first_batch_ratio", 1.2),
    "temperature change over 10 °C": fact("temperature_change_c", 10.0),
    "counter over 3 % from the sampler": above(lambda row: (row.checked.timeline_ratio or 1.0) - 1, 0.03),
    "another GPU or host than most rows": lambda row: bool(row.checked.facts and row.checked.facts.differs),
    "a window under 3 s": lambda row: bool(row.checked.facts and row.checked.facts.shortest_window_s < 2.99),
    "backlog grew": lambda row: bool(row.checked.backlog and row.checked.backlog.grows),
}


def read_rows() -> list[Row]:
    """Measured rows of all files, each once."""
    paths = [
        *sorted(TABLES.glob("*.jsonl")),
        *sorted(TABLES.glob("replicates/*.jsonl")),
        *sorted(BESIDE.glob("*.jsonl")),
    ]
    found: dict[tuple[object, ...], Row] = {}
    for path in paths:
        if "calibration" in path.stem:
            continue
        rows = read_store(path).rows
        for row, checked in zip(rows, check_rows(rows), strict=True):
            if checked.energy_j:
                gpus = tuple(gpu.uuid for gpu in row.environment.gpus)
                one = Row(source=path.name, row=row, checked=checked, gpus=gpus)
                found.setdefault((row.key, row.measured_utc, *gpus), one)
    return list(found.values())


def compare_replicates(rows: Iterable[Row], *, same_gpu: bool) -> list[Outcome]:
    """Each row compared with the other rows of its cell, on the same GPUs or on others."""
    cells: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.half_width is not None:
            cells[row.cell].append(row)
    sd = BETWEEN_PROCESSES if same_gpu else math.hypot(BETWEEN_PROCESSES, UNIT_ENERGY_SD)
    found = []
    for members in cells.values():
        for row in members:
            others = [other for other in members if other is not row and (other.gpus == row.gpus) == same_gpu]
            if others:
                away = row.log_j - median(other.log_j for other in others)
                width = math.hypot(row.half_width or 0.0, median(other.half_width or 0.0 for other in others))
                scale = math.hypot(width, Z * sd * math.sqrt(1 + 1 / len(others)))
                found.append(Outcome(row=row, z=Z * away / scale))
    return found


def compare_fit(rows: Iterable[Row], engine: str) -> list[Outcome]:
    """Each row of an engine compared with the step-cost model, fitted to all entries of the shipped table."""
    entries = [entry for entry in read_table(SHIPPED_TABLE, entries=True).entries if entry.served_by.engine == engine]
    fitted, left = fit(engine, [entry.fit_row() for entry in entries])
    known = {
        (entry.origin.source, entry.origin.cell_id, entry.origin.unit): away
        / math.hypot(entry.energy_sd, fitted.energy_sd)
        for entry, away in zip(entries, left[:, 0], strict=True)
    }
    keys = {id(row): (row.source, row.row.cell_id, "+".join(sorted(row.gpus))) for row in rows}
    return [Outcome(row=row, z=known[keys[id(row)]]) for row in rows if keys[id(row)] in known]


def show(title: str, outcomes: Sequence[Outcome], conditions: Mapping[str, Condition]) -> None:
    print(f"\n{title}, {len(outcomes)} rows")
    print(
        f"{'':46} {'rows':>4} {'outside':>8} {'median |z|':>10} | {'others':>6} {'outside':>8} {'median |z|':>10} {'p':>6}"
    )
    for name, condition in conditions.items():
        having = [abs(one.z) for one in outcomes if condition(one.row)]
        others = [abs(one.z) for one in outcomes if not condition(one.row)]
        if having and others:
            outside, rest = (sum(z > Z for z in group) for group in (having, others))
            p = fisher_exact([[outside, len(having) - outside], [rest, len(others) - rest]], alternative="greater")[1]
            print(
                f"{name:46} {len(having):4} {outside / len(having):8.1%} {median(having):10.2f} | {len(others):6} "
                f"{rest / len(others):8.1%} {median(others):10.2f} {p:6.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-fit", action="store_true", help="compare replicates alone")
    asked = parser.parse_args()
    rows = read_rows()
    codes = sorted({flag.code for row in rows for flag in row.checked.flags})
    flags = {
        f"flag {code}": lambda row, code=code: any(flag.code == code for flag in row.checked.flags) for code in codes
    }
    conditions: dict[str, Condition] = {**flags, **CONDITIONS}
    print(f"{len(rows)} rows, {sum(bool(row.checked.flags) for row in rows)} flagged")
    for name, condition in conditions.items():
        print(f"  {name:46} {sum(map(condition, rows)):4}")
    show("Replicates on the same GPU", compare_replicates(rows, same_gpu=True), conditions)
    show("Replicates on other GPUs", compare_replicates(rows, same_gpu=False), conditions)
    if not asked.no_fit:
        for engine in ("vllm", "transformers"):
            show(f"Step-cost model, {engine}", compare_fit(rows, engine), conditions)


if __name__ == "__main__":
    main()
