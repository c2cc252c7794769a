"""The studies of the paper, and the figures that measured cells allow for each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from infergy.estimates.servers import DEFAULT_MODEL
from infergy.records import DEFAULT_DTYPE, GREEDY
from infergy.records.agreement import IDENTITY, MUST, key_of
from infergy.records.plan import GIVEN
from infergy.report.advice_figures import draw_advice
from infergy.report.charts import FEWEST_ON_LINE, INTERVALS_NOTE, Figure, dot_figure, sweep_figure
from infergy.report.evidence import Evidence
from infergy.report.points import Point, group_by
from infergy.report.run_figures import draw_mixed_tasks, draw_online, draw_phases, draw_weights
from infergy.report.trace_figures import draw_traces
from infergy.units import count_of
from infergy.workload.tasks import tasks

LONGEST_BATCH_S = 20.0
"""A line of largest batches takes only those that end within this time, the limit of the shipped grids."""

BATCHES_NOTE = (
    "Each point is the largest batch measured at its lengths that ended within "
    f"{LONGEST_BATCH_S:g} s, so batches differ along a line: hover, or see the table. {INTERVALS_NOTE}"
)


class Study(NamedTuple):
    """One study.

    Attributes:
        name: As its claims name it.
        paper: Where the paper has it; empty if it is infergy's own.
        draw: Its figures from evidence and a rule for mixed environments; nothing where there are no rows.
        grids: The shipped grids that it draws (`infergy list studies`).
    """

    name: str
    title: str
    paper: str
    draw: Callable[[Evidence, str], Iterable[Figure]]
    grids: tuple[str, ...]

    @property
    def measure(self) -> str:
        """The commands that measure its cells."""
        run = f"infergy measure {' '.join(self.grids or ('paper-bins',))}"
        return f"{run}, then infergy report FILE --trace TRACE" if self.name in ("traces", "advice") else run


def _sequences(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        for axis, (x, other) in enumerate((("input", "output"), ("output", "input"))):
            title = f"{model}: energy per request by {x} length"
            largest = _lines_of_largest(points, axis)
            if largest:
                yield sweep_figure(_file(f"sequences-{x}", model), title, BATCHES_NOTE, largest, mixed, x, other)
            fixed = _lines_of_fixed(points, axis)
            if not {id(point) for point in fixed} <= {id(point) for point in largest}:
                title += f" at fixed batches, {fixed[0].lengths[1 - axis]:,} tokens {'in' if axis else 'out'}"
                name = _file(f"sequences-{x}-batch", model)
                yield sweep_figure(name, title, INTERVALS_NOTE, fixed, mixed, x, "batch")
    yield from draw_phases(evidence)


def _lines_of_fixed(points: Sequence[Point], axis: int) -> list[Point]:
    """Lines of one batch each along `axis` (0 input, 1 output), at the other length with most such points."""
    lines = group_by(filter(_is_plain, points), lambda point: (point.lengths[1 - axis], point.label, point.batch))
    long = [line for line in lines.values() if len({point.lengths for point in line}) >= FEWEST_ON_LINE]
    sweeps = group_by((point for line in long for point in line), lambda point: point.lengths[1 - axis])
    kept = max(sweeps.values(), key=len, default=[])
    return sorted(kept, key=lambda point: (point.label, point.batch, point.lengths))


def _lines_of_largest(points: Sequence[Point], axis: int) -> list[Point]:
    """Lines of largest batches along `axis` of at least `FEWEST_ON_LINE` values, in the order of drawing."""
    batches = Counter((label, lengths) for label, lengths, _ in {(p.label, p.lengths, p.batch) for p in points})
    lines = group_by(_largest_in_time(points), lambda point: (point.label, point.lengths[1 - axis])).values()
    kept = [_without_dents(line, axis, batches) for line in lines]
    counts = [len({point.lengths[axis] for point in line}) for line in kept]
    # An axis of many lengths at few of the other is that sweep; a full grid of both would be drawn twice.
    fewest = max(FEWEST_ON_LINE, max(counts, default=0) // 2 + 1)
    drawn = [point for line, count in zip(kept, counts, strict=True) if count >= fewest for point in line]
    return sorted(drawn, key=lambda point: (point.label, point.lengths[1 - axis], point.lengths[axis]))


def _without_dents(line: Sequence[Point], axis: int, batches: Mapping[tuple[str, tuple[int, int]], int]) -> list[Point]:
    """A line without cells of another study, which were not asked for as the largest batch.

    That is, the only batch at its lengths that was not chosen as the largest, and one that is smaller than that of
    longer requests, as a GPU that fits a batch of these fits it of shorter ones too.
    """
    if len({point.batch for point in line}) > 1:
        line = [p for p in line if p.row.batch_choice != GIVEN or batches[p.label, p.lengths] > 1]
    return [
        point
        for point in line
        if all(other.batch <= point.batch for other in line if other.lengths[axis] > point.lengths[axis])
    ]


def _largest_in_time(points: Iterable[Point]) -> Iterator[Point]:
    """Of the batches at one length of one engine config, the largest in time; where none was, the smallest."""
    groups = group_by(
        points, lambda point: (key_of(point.row, (*IDENTITY, *MUST)), point.setup, point.label, point.lengths)
    )
    for group in groups.values():
        timely = [point.batch for point in group if point.duration_s <= LONGEST_BATCH_S]
        batch = max(timely) if timely else min(point.batch for point in group)
        # All repetitions of it, to show how GPUs differ.
        yield from (point for point in group if point.batch == batch)


def _engines(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    for model, points in _by_model(evidence.points):
        single = [point for point in points if _is_single(point) and point.setup.dtype == DEFAULT_DTYPE]
        yield from _batches(single, "engines", f"{model}: energy per request by engine and batch", model, mixed)


def _comparison(
    name: str, what: str, is_changed: Callable[[Point], bool], usual: Callable[[Point], object], plain: bool = True
) -> Callable[[Evidence, str], Iterator[Figure]]:
    """Figures of `is_changed` cells, and of others of the same `usual` config."""

    def draw(evidence: Evidence, mixed: str) -> Iterator[Figure]:
        for model, points in _by_model(evidence.points):
            asked = {usual(point) for point in points if is_changed(point)}
            compared = [point for point in points if usual(point) in asked and (_is_plain(point) or not plain)]
            yield from _batches(compared, name, f"{model}: energy per request by {what} and batch", model, mixed)

    return draw


def _experts(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    names = {"olmoe-1b-7b", "olmo-1b"}
    kept = [point for point in evidence.points if point.model in names and _is_plain(point)]
    if {point.model for point in kept} == names:
        title = "Mixture of experts against dense: energy per request by batch"
        yield from _batches(kept, "mixture-of-experts", title, DEFAULT_MODEL, mixed, with_model=True)


def _tasks(evidence: Evidence, mixed: str) -> Iterator[Figure]:
    """Cells as long as tasks, at the batch at which most were measured."""
    titles = {(round(task.mean), task.output_tokens): task.title for task in tasks().values()}
    places = {lengths: f"{title}: {lengths[0]} in, {lengths[1]} out" for lengths, title in titles.items()}
    for model, points in _by_model(evidence.points):
        asked = [point for point in points if point.lengths in titles and _is_single(point)]
        batches = [point.batch for point in asked]
        kept = [point for point in asked if point.batch == max(batches, key=batches.count)]
        # A cell of another study may happen to be as long as one task.
        if len({point.lengths for point in kept}) > 1:
            kept.sort(key=lambda point: (list(titles).index(point.lengths), point.label))
            title = f"{model}: energy per request by task, {count_of(kept[0].batch, 'request')} at once"
            note = f"Every prompt has the mean length of its task, so that nothing is padded. {INTERVALS_NOTE}"
            yield dot_figure(_file("tasks", model), title, note, kept, mixed, lambda point: places[point.lengths])
    yield from draw_mixed_tasks(evidence, mixed)


def _batches(
    points: Sequence[Point], name: str, title: str, model: str, mixed: str, *, with_model: bool = False
) -> Iterator[Figure]:
    """Energy over batches, at the lengths with most cells of several series; dots where batches are few."""
    lengths = group_by(sorted(points, key=lambda point: point.lengths), lambda point: point.lengths).values()
    several = [here for here in lengths if len({(p.label, p.model if with_model else "") for p in here}) > 1]
    if not several:
        return
    best = max(several, key=len)
    has_line = len({point.batch for point in best}) >= FEWEST_ON_LINE
    best.sort(key=lambda point: (0 if has_line else point.batch, point.model, point.label, point.batch))
    title += f", {best[0].lengths[0]:,} tokens in, {best[0].lengths[1]:,} out"
    label: Callable[[Point], str] = (lambda p: f"{p.label} {p.model}") if with_model else (lambda p: p.label)
    name = _file(name, model)
    if has_line:
        yield sweep_figure(name, title, INTERVALS_NOTE, best, mixed, "batch", label=label)
    else:
        yield dot_figure(name, title, INTERVALS_NOTE, best, mixed, lambda p: f"batch of {p.batch:,}", label=label)


def _by_model(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """The cells of each model, with its most frequent weight initialisation."""
    for model, own in group_by(points, lambda point: point.model).items():
        weights = [point.setup.weights for point in own]
        usual = max(dict.fromkeys(weights), key=weights.count)
        yield model, [point for point in own if point.setup.weights == usual]


def _is_plain(point: Point) -> bool:
    """Whether it decodes greedily, without a draft model."""
    return point.load.decoding == GREEDY and point.setup.speculation is None


def _is_single(point: Point) -> bool:
    """Whether it is plain, on one GPU."""
    return _is_plain(point) and point.setup.tensor_parallel == 1


def _file(name: str, model: str) -> str:
    """A file's name; that of a model other than the default may be anything."""
    if model == DEFAULT_MODEL:
        return name
    kept = "".join(letter for letter in model.lower() if letter.isascii() and (letter.isalnum() or letter in ".-"))
    return f"{name}-{kept.strip('.-')[:40] or 'model'}"


_decoding = _comparison(
    "decoding",
    "decoding",
    lambda point: not _is_plain(point),
    lambda point: replace(point.setup, speculation=None),
    plain=False,
)
_tensor_parallel = _comparison(
    "tensor-parallel",
    "GPUs",
    lambda point: point.setup.tensor_parallel > 1,
    lambda point: replace(point.setup, tensor_parallel=1),
)
_precision = _comparison(
    "precision",
    "precision",
    lambda point: _is_single(point) and point.setup.dtype != DEFAULT_DTYPE,
    lambda point: (replace(point.setup, dtype=DEFAULT_DTYPE), point.load),
)

STUDIES = (
    Study("traces", "Request traces: energy, gap to an ideal, and saving", "Figure 1, Table 4", draw_traces,
          ("paper-bins",)),
    Study("sequences", "Input and output length, prefill and decode", "Figures 2, 10, 11", _sequences,
          ("input-lengths", "output-lengths", "batches")),
    Study("decoding", "Decoding: beams, sampling, speculation", "Figure 3", _decoding,
          ("decoding", "decoding-vllm", "speculative")),
    Study("mixture-of-experts", "Mixture of experts against dense", "Figure 4", _experts, ("mixture-of-experts",)),
    Study("engines", "Engines, compiling and graphs", "Figure 5", _engines, ("engines",)),
    Study("tensor-parallel", "Tensor parallel", "Figure 6", _tensor_parallel, ("tensor-parallel", "tensor-parallel-4")),
    Study("tasks", "Tasks", "Figure 8", _tasks, ("tasks", "tasks-mixed")),
    Study("online", "Online against offline serving", "Figure 9", draw_online, ("online",)),
    Study("precision", "Arithmetic in 16 and 8 bits", "", _precision, ("precision",)),
    Study("weights", "Effect of the weight initialisation on energy", "", draw_weights, ("weights-law",)),
    Study("advice", "Which configuration to choose", "", draw_advice, ()),
)  # fmt: skip
