"""The studies of the paper, and what measured rows let each of them draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from infergy.estimates.servers import DEFAULT_MODEL
from infergy.records import DEFAULT_DTYPE, GREEDY, EngineSetup, Load
from infergy.records.agreement import IDENTITY, MUST, key_of
from infergy.records.plan import GIVEN
from infergy.report.advice import draw_advice
from infergy.report.dots import draw_dots, place_values
from infergy.report.figures import ENERGY_TITLE, TABLE_HEAD, Figure, draw_sweep, table_row
from infergy.report.mixed import draw_mixed
from infergy.report.online import draw_online
from infergy.report.ours import Evidence
from infergy.report.parts import draw_phases, draw_weights
from infergy.report.points import Point, name_series
from infergy.report.traces import draw_traces
from infergy.units import count_of
from infergy.workload.tasks import tasks

LONGEST_BATCH_S = 20.0
"""A line of largest batches takes only those that end within this time, the limit of the shipped grids."""

FEWEST = 3
"""Values along an axis from which on a line is drawn."""

SEQUENCES = (("input", "output", "input length"), ("output", "input", "output length"))
"""What a sweep is along, what else parts its lines, and how it is called."""

BATCHES_NOTE = (
    "Each point is the largest batch measured at its lengths whose requests had their answers within "
    f"{LONGEST_BATCH_S:g} s, so batches differ along a line: hover, or see the table."
)
INTERVALS_NOTE = (
    "Upright lines: 95 % intervals, where they are longer than the marks. Hollow marks: interval unknown, or down to 0."
)
MARKS_NOTE = INTERVALS_NOTE.replace("Upright lines", "Thin lines")


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study.

    Attributes:
        name: As its claims name it.
        title: In words.
        paper: Where the paper has it; empty if it is infergy's own.
        measure: How its rows are made, for a reader who misses them.
        grids: The shipped grids that it draws (`infergy list studies`).
        draw: Its figures from rows; nothing where there are none.
    """

    name: str
    title: str
    paper: str
    measure: str
    grids: tuple[str, ...] = ()
    draw: Callable[[Evidence, str], Iterable[Figure]] = field(repr=False)


def _sequences(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        for x, lines, what in SEQUENCES:
            kept = _lined(_in_time(points), x, _tried(points))
            if kept:
                title = f"{model}: energy a request by {what}"
                series = name_series(kept, _labels(kept), title=title, mixed=mixed)
                note = f"{BATCHES_NOTE} {INTERVALS_NOTE}"
                yield draw_sweep(_file(f"sequences-{x}", model), title, note, kept, series, x=x, lines=lines)
            yield from _fixed_batches(model, points, x, what, mixed, drawn=kept)
    yield from draw_phases(evidence)


def _fixed_batches(
    model: str, points: Sequence[Point], x: str, what: str, mixed: str, *, drawn: Sequence[Point]
) -> Iterator[Figure]:
    """The same sweep at one batch along a line, at the other length where most were; nothing if all are `drawn`."""
    other = 1 if x == "input" else 0
    sweeps: dict[int, dict[tuple[str, int], list[Point]]] = {}
    for point in (one for one in points if _is_plain(one)):
        sweeps.setdefault(point.lengths[other], {}).setdefault((point.label, point.batch), []).append(point)
    kept: list[Point] = []
    tokens = 0
    for at, lines in sweeps.items():
        found = [one for line in lines.values() if len({p.lengths for p in line}) >= FEWEST for one in line]
        if len(found) > len(kept):
            kept, tokens = found, at
    if all(any(point is other for other in drawn) for point in kept):
        return
    kept.sort(key=lambda point: (point.label, point.batch, point.lengths))
    title = f"{model}: energy a request by {what} at fixed batches, {tokens:,} tokens {'out' if other else 'in'}"
    series = name_series(kept, _labels(kept), title=title, mixed=mixed)
    yield draw_sweep(_file(f"sequences-{x}-batch", model), title, INTERVALS_NOTE, kept, series, x=x, lines="batch")


def _engines(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        alone = [point for point in points if _is_alone(point) and point.row.cell.setup.dtype == DEFAULT_DTYPE]
        yield from _batches(alone, "engines", f"{model}: energy a request by engine and batch", model, mixed)


def _decoding(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        if any(not _is_plain(point) for point in points):
            engines = {_undrafted(point) for point in points if not _is_plain(point)}
            kept = [point for point in points if _undrafted(point) in engines]
            yield from _batches(kept, "decoding", f"{model}: energy a request by decoding and batch", model, mixed)


def _tensor_parallel(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        if any(point.row.cell.setup.tensor_parallel > 1 for point in points):
            wide = {_on_one(point) for point in points if point.row.cell.setup.tensor_parallel > 1}
            kept = [point for point in points if _on_one(point) in wide and _is_plain(point)]
            yield from _batches(kept, "tensor-parallel", f"{model}: energy a request by GPUs and batch", model, mixed)


def _experts(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    names = ("olmoe-1b-7b", "olmo-1b")
    kept = [point for point in evidence.points if point.model in names and _is_plain(point)]
    if {point.model for point in kept} == set(names):
        title = "Mixture of experts against dense: energy a request by batch"
        yield from _batches(kept, "mixture-of-experts", title, DEFAULT_MODEL, mixed, with_model=True)


def _precision(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        alone = [point for point in points if _is_alone(point)]
        narrow = {_widened(point) for point in alone if point.row.cell.setup.dtype != DEFAULT_DTYPE}
        kept = [point for point in alone if _widened(point) in narrow]
        yield from _batches(kept, "precision", f"{model}: energy a request by precision and batch", model, mixed)


def _tasks(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    """At the batch at which most were measured."""
    titles = {(round(task.mean), task.output_tokens): task.title for task in tasks().values()}
    for model, points in _by_model(evidence.points):
        asked = [point for point in points if point.lengths in titles and _is_alone(point)]
        batches = [point.batch for point in asked]
        kept = [point for point in asked if point.batch == max(batches, key=batches.count)]
        # A cell of another study may happen to be as long as one task.
        if len({point.lengths for point in kept}) > 1:
            kept.sort(key=lambda point: (list(titles).index(point.lengths), point.label))
            title = f"{model}: energy a request by task, {count_of(kept[0].batch, 'request')} at once"
            series = name_series(kept, _labels(kept), title=title, mixed=mixed)
            places = [f"{titles[one.lengths]}: {one.lengths[0]} in, {one.lengths[1]} out" for one in kept]
            note = f"Every prompt as long as the mean of its task, so that nothing is padded. {MARKS_NOTE}"
            yield _dots(_file("tasks", model), title, note, kept, series, places)
    yield from draw_mixed(evidence, mixed)


def _dots(
    name: str, title: str, note: str, points: Sequence[Point], series: Sequence[str], places: Sequence[str]
) -> Figure:
    return draw_dots(
        name,
        title,
        note,
        place_values(points, series, places),
        x_title=ENERGY_TITLE,
        head=TABLE_HEAD,
        table=[table_row(point, label) for point, label in zip(points, series, strict=True)],
        points=points,
    )


def _advice(evidence: Evidence, _mixed: str) -> Iterable[Figure]:
    return draw_advice(evidence)


def _weights(evidence: Evidence, _mixed: str) -> Iterable[Figure]:
    return draw_weights(evidence.points)


def _traces(evidence: Evidence, _mixed: str) -> Iterable[Figure]:
    return draw_traces(evidence)


def _batches(
    points: Sequence[Point], name: str, title: str, model: str, mixed: str, *, with_model: bool = False
) -> Iterator[Figure]:
    """Joules over batches, at the lengths where most batches of several series were measured.

    A line of few batches says nothing of those between: its cells stand below each other instead.
    """
    best: list[Point] = []
    for _, group in groupby(sorted(points, key=lambda point: point.lengths), key=lambda point: point.lengths):
        here = list(group)
        series = {(point.label, point.model if with_model else "") for point in here}
        if len(series) > 1 and len(here) > len(best):
            best = here
    if not best:
        return
    best.sort(key=lambda point: (point.model, point.label, point.batch))
    tokens_in, tokens_out = best[0].lengths
    names = {p.row.cell_id: f"{p.label} {p.model}" for p in best} if with_model else _labels(best)
    whole = f"{title}, {tokens_in:,} tokens in, {tokens_out:,} out"
    series_names = name_series(best, names, title=whole, mixed=mixed)
    if len({point.batch for point in best}) >= FEWEST:
        yield draw_sweep(_file(name, model), whole, INTERVALS_NOTE, best, series_names, x="batch")
        return
    paired = sorted(zip(best, series_names, strict=True), key=lambda one: one[0].batch)
    places = [f"batch of {point.batch:,}" for point, _ in paired]
    yield _dots(_file(name, model), whole, MARKS_NOTE, [one for one, _ in paired], [one for _, one in paired], places)


def _by_model(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """The points of each model, those of the law of weights that most of them have."""
    found: list[tuple[str, list[Point]]] = []
    for model in dict.fromkeys(point.model for point in points):
        own = [point for point in points if point.model == model]
        laws = [point.row.cell.setup.weights for point in own]
        usual = max(dict.fromkeys(laws), key=laws.count)
        found.append((model, [point for point in own if point.row.cell.setup.weights == usual]))
    return found


def _in_time(points: Iterable[Point]) -> list[Point]:
    """Of the batches at one length of one set-up, the largest in time; where none was, the smallest."""
    groups: dict[object, list[Point]] = {}
    for point in points:
        key = (key_of(point.row, (*IDENTITY, *MUST)), point.row.cell.setup, point.label, point.lengths)
        groups.setdefault(key, []).append(point)
    kept = []
    for group in groups.values():
        timely = [point for point in group if point.duration_s <= LONGEST_BATCH_S]
        choose = max if timely else min
        batch = choose(point.batch for point in timely or group)
        # All repetitions of it: what another chip took shows.
        kept += [point for point in group if point.batch == batch]
    return kept


def _largest(points: Sequence[Point], axis: int) -> Iterator[Point]:
    """Of a line along `axis`, 0 for inputs, 1 for outputs, what may be a largest batch.

    A GPU that takes a larger batch of longer requests takes it of these too, so that what was measured in a smaller one
    was asked for by another study, and would dent the line.
    """
    for point in points:
        longer = [one for one in points if one.lengths[axis] > point.lengths[axis]]
        if all(one.batch <= point.batch for one in longer):
            yield point


def _tried(points: Iterable[Point]) -> dict[tuple[str, tuple[int, int]], int]:
    """How many batches each set-up was measured at, by its label and lengths."""
    batches: dict[tuple[str, tuple[int, int]], set[int]] = {}
    for point in points:
        batches.setdefault((point.label, point.lengths), set()).add(point.batch)
    return {key: len(found) for key, found in batches.items()}


def _sought(line: Sequence[Point], tried: Mapping[tuple[str, tuple[int, int]], int]) -> list[Point]:
    """Of a line of several batches, those that were chosen as the largest, or are the largest of several."""
    if len({point.batch for point in line}) == 1:
        return list(line)
    return [one for one in line if one.row.batch_choice != GIVEN or tried[one.label, one.lengths] > 1]


def _lined(points: Sequence[Point], x: str, tried: Mapping[tuple[str, tuple[int, int]], int]) -> list[Point]:
    """Points on lines along `x` of at least `FEWEST` values, in the order in which they are drawn."""
    axis, other = (0, 1) if x == "input" else (1, 0)
    by_line: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        by_line.setdefault((point.label, point.lengths[other]), []).append(point)
    points = [point for line in by_line.values() for point in _largest(_sought(line, tried), axis)]
    counts: dict[tuple[str, int], set[int]] = {}
    for point in points:
        counts.setdefault((point.label, point.lengths[other]), set()).add(point.lengths[axis])
    kept = [point for point in points if len(counts[point.label, point.lengths[other]]) >= FEWEST]
    # An axis of many lengths at few of the other is that sweep; a full grid of both would be drawn twice.
    most = max((len(found) for found in counts.values()), default=0)
    kept = [point for point in kept if len(counts[point.label, point.lengths[other]]) * 2 > most]
    return sorted(kept, key=lambda point: (point.label, point.lengths[other], point.lengths[axis]))


def _labels(points: Iterable[Point]) -> dict[str, str]:
    return {point.row.cell_id: point.label for point in points}


def _is_plain(point: Point) -> bool:
    """Whether it decodes greedily, without a draft model."""
    return point.row.cell.load.decoding == GREEDY and point.row.cell.setup.speculation is None


def _is_alone(point: Point) -> bool:
    """Whether it is plain, on one GPU."""
    return _is_plain(point) and point.row.cell.setup.tensor_parallel == 1


def _widened(point: Point) -> tuple[EngineSetup, Load]:
    """What it would be in the default precision."""
    return replace(point.row.cell.setup, dtype=DEFAULT_DTYPE), point.row.cell.load


def _on_one(point: Point) -> EngineSetup:
    return replace(point.row.cell.setup, tensor_parallel=1)


def _undrafted(point: Point) -> EngineSetup:
    return replace(point.row.cell.setup, speculation=None)


def _file(name: str, model: str) -> str:
    """A file's name; models other than the default, whose names may be anything, are told by their place alone."""
    if model == DEFAULT_MODEL:
        return name
    kept = "".join(letter for letter in model.lower() if letter.isascii() and (letter.isalnum() or letter in ".-"))
    return f"{name}-{kept.strip('.-')[:40] or 'model'}"


STUDIES = (
    Study(
        name="traces",
        title="Request traces: joules, gap to an ideal, and saving",
        paper="Figure 1, Table 4",
        measure="infergy measure paper-bins, then infergy report FILE --trace TRACE",
        grids=("paper-bins",),
        draw=_traces,
    ),
    Study(
        name="sequences",
        title="Input and output length, prefill and decode",
        paper="Figures 2, 10, 11",
        measure="infergy measure input-lengths, output-lengths and batches",
        grids=("input-lengths", "output-lengths", "batches"),
        draw=_sequences,
    ),
    Study(
        name="decoding",
        title="Decoding: beams, sampling, speculation",
        paper="Figure 3",
        measure="infergy measure decoding, decoding-vllm and speculative",
        grids=("decoding", "decoding-vllm", "speculative"),
        draw=_decoding,
    ),
    Study(
        name="mixture-of-experts",
        title="Mixture of experts against dense",
        paper="Figure 4",
        measure="infergy measure mixture-of-experts",
        grids=("mixture-of-experts",),
        draw=_experts,
    ),
    Study(
        name="engines",
        title="Engines, compiling and graphs",
        paper="Figure 5",
        measure="infergy measure engines",
        grids=("engines",),
        draw=_engines,
    ),
    Study(
        name="tensor-parallel",
        title="Tensor parallel",
        paper="Figure 6",
        measure="infergy measure tensor-parallel, with four GPUs tensor-parallel-4",
        grids=("tensor-parallel", "tensor-parallel-4"),
        draw=_tensor_parallel,
    ),
    Study(
        name="tasks",
        title="Tasks",
        paper="Figure 8",
        measure="infergy measure tasks and tasks-mixed",
        grids=("tasks", "tasks-mixed"),
        draw=_tasks,
    ),
    Study(
        name="online",
        title="Online against offline serving",
        paper="Figure 9",
        measure="infergy measure online",
        grids=("online",),
        draw=draw_online,
    ),
    Study(
        name="precision",
        title="Arithmetic in 16 and 8 bits",
        paper="",
        measure="infergy measure precision",
        grids=("precision",),
        draw=_precision,
    ),
    Study(
        name="weights",
        title="What the law of random weights does to joules",
        paper="",
        measure="infergy measure weights-law",
        grids=("weights-law",),
        draw=_weights,
    ),
    Study(
        name="advice",
        title="Which configuration to choose",
        paper="",
        measure="infergy measure paper-bins, then infergy report FILE --trace TRACE",
        draw=_advice,
    ),
)
