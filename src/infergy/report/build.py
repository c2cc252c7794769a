"""A report: for each study its figures, its claims beside ours, where the rows come from and what to distrust."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.errors import UsageError
from infergy.estimates.estimate import estimate, sample_of
from infergy.estimates.paper import estimate_paper
from infergy.estimates.recommend import recommend
from infergy.estimates.servers import DEFAULT_GPU, DEFAULT_MODEL, ServerSpec, load_tables
from infergy.hardware import catalogue_name, get_gpu
from infergy.records import ENGINES, FP8, Cell, Measurement
from infergy.records.agreement import MUST, SHOULD, key_of
from infergy.records.shipped import SHIPPED_ROWS, shipped_rows
from infergy.report.claims import Compared, compare_claims, findings
from infergy.report.figures import Figure
from infergy.report.gaps import find_gaps
from infergy.report.ours import Evidence, Law, gpu_title, load_claims
from infergy.report.parts import phases_of
from infergy.report.points import MIXED_RULES, REFUSE, SPLIT, Point, failures_of, points_of, read_stores
from infergy.report.studies import STUDIES, Study
from infergy.serving.config import EngineOptions

if TYPE_CHECKING:
    from infergy.quality.phases import SetupPhases
    from infergy.workload.sampling import Sample

PAPER = "paper"
"""The source that stands for all that ships."""

ENVIRONMENT_HEAD = ("Set-up", "Rows", "GPU", "Chip", "Limit", "Driver", "Packages", "Weights", "Measured")
FLAGS_HEAD = ("Flag", "Rows", "For example", "What to do")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One study.

    Attributes:
        figures: What its rows let be drawn; empty if there are none.
        claims: Its claims beside ours.
        environment: Under `ENVIRONMENT_HEAD`, of the rows that are drawn.
        flags: Under `FLAGS_HEAD`, likewise.
        gaps: Under `infergy.report.gaps.GAPS_HEAD`, cells of its grids that have no row; None if nobody was asked.
    """

    study: Study
    figures: tuple[Figure, ...]
    claims: tuple[Compared, ...]
    environment: tuple[tuple[str, ...], ...]
    flags: tuple[tuple[str, ...], ...]
    gaps: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a page.

    Attributes:
        title: In words.
        source: Where the rows come from, in words.
        paper: Of which paper the claims are.
        simulated: Whether any row is of a simulated GPU.
    """

    title: str
    source: str
    paper: str
    sections: tuple[Section, ...]
    simulated: bool

    @property
    def figures(self) -> Iterator[Figure]:
        """All figures, in their order."""
        return (figure for section in self.sections for figure in section.figures)

    @property
    def findings(self) -> tuple[str, ...]:
        """Where ours contradicts the paper's, a sentence each."""
        return findings(one for section in self.sections for one in section.claims)

    @property
    def missing(self) -> tuple[Study, ...]:
        """Studies without a figure."""
        return tuple(section.study for section in self.sections if not section.figures)


def build_report(
    files: Sequence[Path] = (),
    *,
    traces: Sequence[str | Sample] = (),
    mixed: str | None = None,
    model: str | None = None,
    gpu: str | None = None,
    allow_simulated: bool = False,
    planned: Callable[[str], Mapping[str, Sequence[Cell]]] | None = None,
) -> Report:
    """A report over stores of measurements; without any, over all that ships, beside the paper.

    Args:
        files: A user's own stores.
        traces: Traces, or samples of them, to estimate from these; without files, the shipped ones.
        mixed: ``split`` or ``refuse`` rows of environments that must not be mixed; None refuses a user's and splits
            the shipped ones, whose environments are known.
        model: For which the traces are estimated; None: the default if it was measured, else the only one that was.
        gpu: On which; None likewise.
        allow_simulated: Whether rows of a simulated GPU may be drawn.
        planned: The cells of the shipped grids by name, for a GPU of the catalogue: then each study says which of
            its cells have no row.

    Raises:
        UsageError: An option is unknown, environments are mixed, or a trace cannot be estimated.
        DataError: A file is not what it should be.
    """
    if mixed is not None and mixed not in MIXED_RULES:
        raise UsageError.unknown(
            "rule for mixed environments",
            mixed,
            MIXED_RULES,
            "Give one with --mixed",
            code="unknown-name",
            option="--mixed",
        )
    stores = read_stores(files or shipped_stores())
    source, _ = load_claims()
    if not files:
        traces = tuple(traces) or traces_of_claims()
    evidence = _weigh(stores, files, traces, model=model, gpu=gpu, allow_simulated=allow_simulated)
    rule = mixed or (REFUSE if files else SPLIT)
    compared = compare_claims(evidence)
    # What ships is of several kinds of GPU, whose lines would hide each other; a user's are drawn beside each other.
    parts = [evidence] if files else _by_gpu(evidence)
    drawn = [(study, tuple(_draw(study, parts, rule))) for study in STUDIES]
    sections = [_section(study, figures, compared) for study, figures in drawn]
    if planned is not None:
        gaps = _gaps(parts, planned)
        sections = [
            replace(one, gaps=tuple(gap for grid in one.study.grids for gap in gaps[grid])) if one.study.grids else one
            for one in sections
        ]
    names = ", ".join(path.name for path in files)
    return Report(
        title=f"Joules of {names}" if files else "Joules of LLM inference, beside the paper",
        source=names or "the tables that ship with infergy",
        paper=source,
        sections=_unique(sections),
        simulated=any(row.simulated for rows in stores.values() for row in rows),
    )


def _by_gpu(evidence: Evidence) -> list[Evidence]:
    """The evidence of each kind of GPU, that of the traces' first."""
    kinds = dict.fromkeys(map(_kind, (*evidence.points, *evidence.online, *evidence.replays)))
    return sorted((_on(kind, evidence) for kind in kinds), key=lambda one: not one.estimates)


def _on(kind: str, evidence: Evidence) -> Evidence:
    """What the evidence holds of one kind of GPU, by the driver's name."""
    name = catalogue_name(kind)
    papers = {trace: paper for trace, paper in evidence.papers.items() if paper.servers[0].gpu == name}
    return replace(
        evidence,
        points=[point for point in evidence.points if _kind(point) == kind],
        online=[point for point in evidence.online if _kind(point) == kind],
        replays=[point for point in evidence.replays if _kind(point) == kind],
        papers=papers,
        estimates={trace: estimate for trace, estimate in evidence.estimates.items() if trace in papers},
        rankings={trace: ranking for trace, ranking in evidence.rankings.items() if trace in papers},
    )


def _draw(study: Study, parts: Sequence[Evidence], rule: str) -> Iterator[Figure]:
    """Its figures of each part; where there are several, each says of which GPU it is."""
    for place, part in enumerate(parts):
        for figure in study.draw(part, rule):
            if len(parts) == 1 or not figure.points:
                yield figure
                continue
            kind = _kind(figure.points[0])
            name = f"{figure.name}-{catalogue_name(kind)}" if place else figure.name
            title = gpu_title(kind)
            yield replace(figure, name=name, gpu="" if title in figure.title else title)


def _kind(point: Point) -> str:
    gpus = point.row.environment.gpus
    return gpus[0].name if gpus else "unknown"


def shipped_evidence() -> Evidence:
    """What ships: what docs/claims.md states."""
    return _weigh(read_stores(shipped_stores()), (), traces_of_claims(), model=None, gpu=None, allow_simulated=False)


def shipped_stores() -> tuple[Path, ...]:
    """The files of rows that ship but for replicates, the default GPU's first."""
    own = (path for path in shipped_rows() if path.parent == SHIPPED_ROWS)
    return tuple(sorted(own, key=lambda path: (not path.name.startswith(f"{DEFAULT_GPU}-"), path.name)))


def traces_of_claims() -> tuple[str, ...]:
    """The traces that claims are of."""
    _, claims = load_claims()
    return tuple(dict.fromkeys(claim.ours.trace for claim in claims if claim.ours.trace))


def _weigh(
    stores: Mapping[Path, Sequence[Measurement]],
    files: Sequence[Path],
    traces: Iterable[str | Sample],
    *,
    model: str | None,
    gpu: str | None,
    allow_simulated: bool,
) -> Evidence:
    points = points_of(stores, allow_simulated=allow_simulated)
    offline = [point for point in points if not point.row.cell.load.is_online]
    evidence = Evidence(
        points=offline,
        laws=_laws(offline),
        # A replay has no rate; what it took is compared with its prediction by infergy replay --rows.
        online=[one for one in points if one.row.cell.load.is_online and not one.row.cell.load.is_replay],
        replays=[one for one in points if one.row.cell.load.is_replay],
        failed=failures_of(stores),
    )
    traces = list(traces)
    if not traces:
        return evidence
    table = load_tables(files, allow_simulated=allow_simulated)
    chosen = (
        _only("model", model, {point.model for point in points}, DEFAULT_MODEL, files),
        _only("gpu", gpu, {catalogue_name(_kind(point)) for point in points}, DEFAULT_GPU, files),
    )
    specs = [ServerSpec(engine=engine, model=chosen[0], gpu=chosen[1]) for engine in ENGINES]
    samples = {sample.source: sample for sample in map(sample_of, traces)}
    return replace(
        evidence,
        estimates={trace: estimate(sample, specs, tables=table) for trace, sample in samples.items()},
        papers={trace: estimate_paper(sample, specs, table) for trace, sample in samples.items()},
        rankings={
            trace: recommend(sample, _candidates(*chosen), table, present=ServerSpec(model=chosen[0], gpu=chosen[1]))
            for trace, sample in samples.items()
        },
    )


def _candidates(model: str, gpu: str) -> list[ServerSpec]:
    """A few, for a page: `infergy recommend` ranks more."""
    engines = ["vllm-eager", "transformers", *(["vllm-fp8"] if FP8 in get_gpu(gpu).peak_flops else [])]
    fewer = ServerSpec(model=model, gpu=gpu, options=EngineOptions(max_num_seqs=16))
    return [fewer, *(ServerSpec(engine=engine, model=model, gpu=gpu) for engine in engines)]


def _only(option: str, asked: str | None, measured: set[str], default: str, files: Sequence[Path]) -> str:
    """What was asked for, else the default if it was measured, else the only one that was.

    Raises:
        UsageError: Several were measured, and the default is not among them.
    """
    if asked is not None or default in measured or not measured:
        return asked or default
    if len(measured) > 1:
        names = ", ".join(sorted(measured))
        message = f"{', '.join(map(str, files))}: rows of several: {names}. Name one with --{option}"
        raise UsageError(message, code="option-missing", option=f"--{option}", files=[str(file) for file in files])
    return next(iter(measured))


def _laws(points: Sequence[Point]) -> dict[str, Law]:
    """By label, of the set-up with most rows."""
    found: dict[str, Law] = {}
    for setup in phases_of(points):
        fit = setup.fit
        if fit is not None and (setup.label not in found or found[setup.label].rows < fit.rows):
            found[setup.label] = Law(
                rows=fit.rows,
                median_residual=fit.median_residual,
                worst_residual=fit.worst_residual,
                gpu=setup.gpu,
                **_shares(setup),
            )
    return found


def _shares(setup: SetupPhases) -> dict[str, Any]:
    """Decode's share by batch, at the length of which most batches were measured."""
    lengths: dict[str, dict[int, float]] = {}
    for cell in setup.cells:
        energy = cell.pair or cell.fit
        if energy is not None and cell.output_tokens > 1:
            name = f"{cell.input_tokens}→{cell.output_tokens}"
            lengths.setdefault(name, {})[cell.batch] = energy.decode_share
    if not lengths:
        return {}
    length = max(lengths, key=lambda name: len(lengths[name]))
    return {"length": length, "shares": lengths[length]}


def _gaps(
    parts: Iterable[Evidence], planned: Callable[[str], Mapping[str, Sequence[Cell]]]
) -> dict[str, list[tuple[str, ...]]]:
    """What each grid lacks on each kind of GPU, by the grid's name."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for part in parts:
        points = (*part.points, *part.online, *part.replays)
        measured = {point.row.cell_id for point in points}
        kind = _kind(points[0])
        name = catalogue_name(kind)
        for grid, cells in planned(name).items():
            lacking = find_gaps(grid, gpu_title(kind), cells, measured, part.failed.get(name, {}))
            found.setdefault(grid, []).extend(lacking)
    return found


def _section(study: Study, figures: tuple[Figure, ...], compared: Iterable[Compared]) -> Section:
    points = list({id(point): point for figure in figures for point in figure.points}.values())
    return Section(
        study=study,
        figures=figures,
        claims=tuple(one for one in compared if one.claim.study == study.name),
        environment=tuple(_environment(points)),
        flags=tuple(_flags(points)),
    )


def _unique(sections: Iterable[Section]) -> tuple[Section, ...]:
    """Each figure with a name of its own, since names are those of files."""
    seen: dict[str, int] = {}
    found = []
    for section in sections:
        figures = []
        for figure in section.figures:
            seen[figure.name] = seen.get(figure.name, 0) + 1
            times = seen[figure.name]
            figures.append(figure if times == 1 else replace(figure, name=f"{figure.name}-{times}"))
        found.append(replace(section, figures=tuple(figures)))
    return tuple(found)


def _environment(points: Iterable[Point]) -> Iterator[tuple[str, ...]]:
    """A line for each environment of each set-up."""
    groups: dict[object, list[Point]] = {}
    for point in points:
        key = (point.label, point.model, point.row.environment.weights, key_of(point.row, (*MUST, *SHOULD)))
        groups.setdefault(key, []).append(point)
    for group in groups.values():
        first = group[0].row.environment
        limits = {gpu.power_limit_w for gpu in first.gpus if gpu.power_limit_w is not None}
        days = sorted({point.row.measured_utc[:10] for point in group})
        yield (
            f"{group[0].label} {group[0].model}",
            f"{len(group)}",
            group[0].gpu,
            ", ".join(gpu.uuid for gpu in first.gpus) or "unknown",
            ", ".join(f"{limit:g} W" for limit in sorted(limits)) or "unknown",
            first.driver or "unknown",
            ", ".join(f"{name} {version}" for name, version in sorted(first.packages.items())) or "unknown",
            first.weights,
            " to ".join(dict.fromkeys((days[0], days[-1]))),
        )


def _flags(points: Iterable[Point]) -> Iterator[tuple[str, ...]]:
    """A line for each flag, with how many rows have it and one of them."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for point in points:
        for flag in point.flags:
            found.setdefault(flag.code, []).append((str(point.row.cell), flag.reason, flag.cure))
    for code, cases in sorted(found.items()):
        cell, reason, cure = cases[0]
        yield code, f"{len(cases)}", f"{cell}: {reason}", cure
