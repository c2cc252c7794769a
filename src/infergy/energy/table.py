"""Measurements as a table: joules and seconds of one request by input and output length, for each engine set-up.

Rules, in the order in which they apply (1 and 2 in `infergy.energy.load`):

1. Rows of one set-up in one file come from one environment: one driver, one version of each package.
2. Rows of one cell in one file are repetitions: their mean counts, and their spread is kept. Those of one chip are
   visits (`infergy.records.visits`), whose windows count together.
3. Files have a rank, the first file the best: where two measured the same lengths, the better ranked one counts.
4. Of the batch sizes that it measured at these lengths, the largest counts whose requests had their answers in time
   (`MAX_BATCH_S`); where none had, the smallest. The others stay in the table.
5. Lengths that were measured at half or less of the batch at which longer requests were served do not count: they tell
   of small batches, and the table's curves are those of full ones. Files of worse rank cannot do that to a cell.
6. Where the physical model applies, it tells lengths too whose batch was asked for, not sought, if twice that batch was
   served elsewhere with twice as many tokens in all: these were not the full batches of their lengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from infergy.energy.options import MAX_BATCH_S
from infergy.errors import UsageError
from infergy.records import RANDOM_WEIGHTS, EngineSetup, Rescaled
from infergy.records.plan import GIVEN

SHIPPED_PREFIX = "shipped "
"""Before the name of a file inside the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCell:
    """Joules and seconds of one request at fixed lengths and batch.

    Attributes:
        energy_j: Joules a request: mean over the repetitions.
        duration_s: Seconds a request: seconds of a batch over its requests.
        doubt: How far `energy_j` may be off, as a fraction: the 95 % interval over all visits of a chip, plus the
            largest distance of a chip from the mean.
        spread: Largest less smallest repetition over the mean; None where there is only one.
        repetitions: Rows of this cell.
        batch_choice: How the batch was chosen, in words.
        source: Name of the file.
        rank: Place of the file among those loaded, 0 the first.
        loaded_idle_w: Power of the loaded, idle GPUs of the set-up; None where it was not taken.
        time_per_output_token_s: Seconds from one output token to the next; None where the engine did not tell.
        chips: UUIDs of the GPUs that measured it, in order; none where nobody told. A cell that one file holds from
            several chips is of all of them, which the model takes for a chip of its own.
    """

    input_tokens: int
    output_tokens: int
    batch: int
    energy_j: float
    duration_s: float
    doubt: float
    spread: float | None
    repetitions: int
    cell_id: str
    batch_choice: str
    source: str
    rank: int
    time_per_output_token_s: float | None = None
    loaded_idle_w: float | None = None
    chips: tuple[str, ...] = ()

    def order(self) -> tuple[int, int, int, int]:
        """By what cells are sorted in a table."""
        return self.input_tokens, self.output_tokens, self.rank, self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Where the rows of one set-up in one file come from.

    Attributes:
        rows: Measured rows.
        driver: Version of the GPU driver; None where the meter has none.
        cuda: Version of CUDA that the driver supports; None where the meter has none.
        power_limits_w: Of the GPUs, in their order; None where the driver does not tell.
        packages: Versions of the packages that shape the result.
        gpu_uuids: Which chips.
        measured_from: UTC of the first row, ISO 8601.
        measured_to: UTC of the last row, ISO 8601.
        environment: Equal for rows of two files that may be repetitions of each other
            (`infergy.records.agreement.MUST`).
        rescaled: The mark of its rows if their joules are scaled.
    """

    source: str
    rank: int
    rows: int
    driver: str | None
    cuda: str | None
    power_limits_w: tuple[float | None, ...]
    packages: Mapping[str, str]
    gpu_uuids: tuple[str, ...]
    measured_from: str
    measured_to: str
    environment: tuple[str, ...]
    rescaled: Rescaled | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupTable:
    """All cells of one engine set-up on one kind of GPU.

    Attributes:
        gpu: Name in the catalogue; the driver's name of a GPU that the catalogue lacks.
        label: Engine and whatever is not at its default: ``vllm``, ``vllm-eager``, ``vllm-float16``, ``vllm-tp2``.
        weights: The law of the random weights, or where real ones came from.
        cells: All cells, at all batch sizes, ascending by length, rank and batch.
    """

    gpu: str
    label: str
    setup: EngineSetup
    weights: str
    simulated: bool
    cells: tuple[TableCell, ...]
    sources: tuple[SourceFacts, ...]

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.setup.model

    @property
    def rank(self) -> int:
        """Best rank of a file."""
        return min(source.rank for source in self.sources)

    def by_length(self, max_batch_s: float = MAX_BATCH_S) -> dict[tuple[int, int], TableCell]:
        """The cell that counts at each measured (input, output), by rules 3 to 5."""
        lengths: dict[tuple[int, int], list[TableCell]] = {}
        for cell in self.cells:
            lengths.setdefault((cell.input_tokens, cell.output_tokens), []).append(cell)
        # Which lengths tell of small batches does not hang on the bound: past it, few lengths were measured at all.
        usual = [_choose(cells, MAX_BATCH_S) for cells in lengths.values()]
        full = [cell for cell in usual if not any(_outdoes(other, cell) for other in usual)]
        places = [(cell.input_tokens, cell.output_tokens) for cell in full]
        return {place: _choose(lengths[place], max_batch_s) for place in places}

    def full_by_length(self, max_batch_s: float = MAX_BATCH_S) -> dict[tuple[int, int], TableCell]:
        """Those of `by_length` that tell of full batches, by rule 6."""
        counted = self.by_length(max_batch_s)
        cells = counted.values()
        return {place: cell for place, cell in counted.items() if not any(_holds_twice(other, cell) for other in cells)}

    def larger_batches(self, max_batch_s: float = MAX_BATCH_S) -> tuple[tuple[TableCell, TableCell], ...]:
        """Where a batch beyond `max_batch_s` was measured too: the cell that counts, and the largest one."""
        counted = self.by_length(max_batch_s)
        largest = self.by_length(math.inf)
        return tuple((cell, largest[key]) for key, cell in counted.items() if largest[key].batch > cell.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRow:
    """A cell without a number, and why.

    Attributes:
        gpu: On which it was tried, as in `SetupTable`.
        reason: A code, a colon and a message.
    """

    source: str
    gpu: str
    cell_id: str
    cell: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableNote:
    """What was set aside while reading, in words.

    Attributes:
        gpu: Of whose rows alone; None if it is of the whole file.
    """

    text: str
    gpu: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTable:
    """What was measured: one `SetupTable` for each GPU, engine set-up and kind of weights.

    Attributes:
        failed: Cells that were tried and have no number.
        online: Ids of the measured cells whose requests arrived one after the other, by GPU: they are in no
            `SetupTable`, since their joules are not those of a batch.
        notes: What was set aside while reading.
    """

    setups: tuple[SetupTable, ...]
    files: tuple[str, ...]
    failed: tuple[FailedRow, ...] = ()
    online: tuple[tuple[str, str], ...] = ()
    notes: tuple[TableNote, ...] = ()

    def gpus(self) -> tuple[str, ...]:
        """GPUs that have rows."""
        return tuple(sorted({setup.gpu for setup in self.setups}))

    def models(self, gpu: str) -> tuple[str, ...]:
        """Models that have rows on `gpu`."""
        return tuple(sorted({setup.model for setup in self.setups if setup.gpu == gpu}))

    def labels(self, gpu: str, model: str) -> tuple[str, ...]:
        """Engine set-ups that have rows for `model` on `gpu`, in alphabetical order."""
        return tuple(sorted({s.label for s in self.setups if (s.gpu, s.model) == (gpu, model)}))

    def notes_on(self, gpu: str) -> tuple[str, ...]:
        """What was set aside, in words, but for what is of other GPUs alone."""
        return tuple(note.text for note in self.notes if note.gpu in (None, gpu))

    def find(self, gpu: str, model: str, label: str) -> SetupTable:
        """The table of one set-up; of several weights the better ranked, then infergy's own law, counts.

        The others fill in lengths that it lacks, but measured rows never fill in for simulated ones.

        Raises:
            UsageError: Nothing was measured; the message names what was, and how to measure this.
        """
        self._check("GPU", gpu, self.gpus(), f"--gpu {gpu} --model {model}")
        self._check("model", model, self.models(gpu), f"--gpu {gpu} --model {model}")
        self._check("engine", label, self.labels(gpu, model), f"--gpu {gpu} --model {model} --engine {label}")
        found = [s for s in self.setups if (s.gpu, s.model, s.label) == (gpu, model, label)]
        first, *others = sorted(found, key=lambda s: (s.rank, s.setup.weights != RANDOM_WEIGHTS, s.weights))
        return _fill_in(first, [other for other in others if other.simulated == first.simulated])

    def _check(self, what: str, name: str, measured: Sequence[str], options: str) -> None:
        if name not in measured:
            raise UsageError.unknown(
                f"measured {what}",
                name,
                measured,
                f"To measure it: infergy measure paper-bins {options} -o mine.jsonl; "
                "then: infergy estimate … --table mine.jsonl. Without a measurement: --method datasheet",
            )


def _fill_in(table: SetupTable, others: Iterable[SetupTable]) -> SetupTable:
    """`table` with the cells of `others` at lengths that it lacks; its `weights` tells of theirs."""
    for other in others:
        known = {(cell.input_tokens, cell.output_tokens) for cell in table.cells}
        added = [cell for cell in other.cells if (cell.input_tokens, cell.output_tokens) not in known]
        if added:
            table = replace(
                table,
                cells=tuple(sorted([*table.cells, *added], key=TableCell.order)),
                sources=tuple({facts.source: facts for facts in (*other.sources, *table.sources)}.values()),
                weights=f"{table.weights}; {other.weights}: {len(added)} cells",
            )
    return table


def _outdoes(other: TableCell, cell: TableCell) -> bool:
    """Whether `other` shows that requests like those of `cell` fit into twice its batch or more."""
    is_longer = other.input_tokens >= cell.input_tokens and other.output_tokens >= cell.output_tokens
    return is_longer and other.rank <= cell.rank and other.batch >= 2 * cell.batch


def _holds_twice(other: TableCell, cell: TableCell) -> bool:
    """Whether the batch of `cell` was asked for, and `other` served twice as many requests and tokens."""
    served, asked = (one.batch * (one.input_tokens + one.output_tokens) for one in (other, cell))
    is_larger = other.rank <= cell.rank and other.batch >= 2 * cell.batch and served >= 2 * asked
    return is_larger and cell.batch_choice == GIVEN


def _choose(cells: Iterable[TableCell], max_batch_s: float) -> TableCell:
    """Of cells at the same lengths the one that counts, by rules 3 and 4."""
    ranked = sorted(cells, key=lambda cell: (cell.rank, cell.batch))
    best = [cell for cell in ranked if cell.rank == ranked[0].rank]
    in_time = [cell for cell in best if cell.duration_s * cell.batch <= max_batch_s]
    return in_time[-1] if in_time else best[0]
