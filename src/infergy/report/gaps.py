"""What the grids of a study ask for and no row holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from infergy.records import RANDOM_WEIGHTS, Cell

GAPS_HEAD = ("Grid", "GPU", "Set-up", "Measured", "Not measured")
GAPS_TITLE = "Not measured yet"
NO_GAPS = "Every cell of its grids is measured."


def find_gaps(
    grid: str, gpu: str, cells: Iterable[Cell], measured: Collection[str], failed: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """A line under `GAPS_HEAD` for each set-up of a grid of which cells have no row.

    Args:
        grid: Its name.
        gpu: In words.
        cells: Of the whole grid.
        measured: Ids of cells that have a row.
        failed: Why, in a word, of those that were tried and failed, by id.
    """
    setups: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        law = "" if cell.setup.weights == RANDOM_WEIGHTS else f", weights {cell.setup.weights}"
        setups.setdefault(f"{cell.label} {cell.setup.model}{law}", {})[cell.id] = cell
    for name, asked in sorted(setups.items()):
        lacking = {key: cell for key, cell in asked.items() if key not in measured}
        if lacking:
            done = f"{len(asked) - len(lacking)} of {len(asked)}"
            yield grid, gpu, name, done, "; ".join(_in_words(lacking, failed))


def _in_words(lacking: Mapping[str, Cell], failed: Mapping[str, str]) -> Iterator[str]:
    """By lengths, the batches of each: ``512→64 × 1, 8``; a replay has lengths of its own."""
    batches: dict[tuple[int, int], list[str]] = {}
    for key, cell in sorted(lacking.items(), key=lambda item: _order(item[1])):
        lengths = (0, 0) if cell.load.is_replay else (cell.load.input_tokens, cell.load.output_tokens)
        why = f" ({failed[key].replace('_', ' ')})" if key in failed else ""
        batches.setdefault(lengths, []).append(f"{cell.load.batch:,}{why}")
    for (input_tokens, output_tokens), found in batches.items():
        head = f"{input_tokens:,}→{output_tokens:,} " if input_tokens else ""
        yield f"{head}× {', '.join(found)}"


def _order(cell: Cell) -> tuple[int, int, int]:
    return cell.load.input_tokens, cell.load.output_tokens, cell.load.batch
