"""A report: one HTML page that needs no network, the same as Markdown, and each figure as PNG and SVG."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from infergy.catalog import catalog_name
from infergy.errors import UsageError
from infergy.files import check_output, write_file
from infergy.records import RANDOM_WEIGHTS, Cell
from infergy.records.agreement import MUST, SHOULD, WEIGHTS, key_of
from infergy.report.charts import FILE_INK, INK, Figure, for_file
from infergy.report.claims import HEAD, NOT_MEASURED, Compared, claimed_traces, compare_claims, load_claims
from infergy.report.evidence import Evidence, gpu_title, load_evidence
from infergy.report.html import SIGNS, draw, escape, png_of, render
from infergy.report.points import MIXED_RULES, REFUSE, SPLIT, Point, group_by
from infergy.report.studies import STUDIES, Study

if TYPE_CHECKING:
    from infergy.workload.requests import Sample

ENVIRONMENT_HEAD = (
    "Engine config", "Rows", "GPU", "GPU UUID", "Limit", "Driver", "Packages", "Weights", "Measured",
)  # fmt: skip
FLAGS_HEAD = ("Flag", "Rows", "For example", "What to do")
GAPS_HEAD = ("Grid", "GPU", "Engine config", "Measured", "Not measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its title, and a note above it; instead of an empty table, only the note."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(map(escape, head))} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(escape, row))} |"


def environment_table(points: Iterable[Point]) -> Table:
    """A line for each environment of each engine config."""
    groups = group_by(points, lambda point: (point.label, point.model, key_of(point.row, (WEIGHTS, *MUST, *SHOULD))))
    return Table(title="Environment", head=ENVIRONMENT_HEAD, rows=tuple(map(_environment, groups.values())))


def _environment(group: Sequence[Point]) -> tuple[str, ...]:
    environment = group[0].row.environment
    limits = {gpu.power_limit_w for gpu in environment.gpus if gpu.power_limit_w is not None}
    days = sorted(point.row.measured_utc[:10] for point in group)
    packages = sorted(environment.packages.items())
    return (
        f"{group[0].label} {group[0].model}",
        f"{len(group)}",
        group[0].gpu,
        ", ".join(gpu.uuid for gpu in environment.gpus) or "unknown",
        ", ".join(f"{limit:g} W" for limit in sorted(limits)) or "unknown",
        environment.driver or "unknown",
        ", ".join(f"{name} {version}" for name, version in packages) or "unknown",
        environment.weights,
        " to ".join(dict.fromkeys((days[0], days[-1]))),
    )


def flags_table(points: Iterable[Point]) -> Table:
    """A line for each flag, with its number of rows and one of them."""
    cases: dict[str, list[tuple[str, str]]] = {}
    for point in points:
        for flag in point.flags:
            cases.setdefault(flag.code, []).append((f"{point.row.cell}: {flag.reason}", flag.fix))
    rows = tuple((code, f"{len(found)}", *found[0]) for code, found in sorted(cases.items()))
    note = "Flags never change a number; docs/flags.md explains them." if rows else "No row is flagged."
    return Table(title="Flags", head=FLAGS_HEAD, rows=rows, note=note)


def gaps_table(gaps: Iterable[tuple[str, ...]]) -> Table:
    """What `find_gaps` found in all grids of a study."""
    rows = tuple(gaps)
    note = "" if rows else "Every cell of its grids is measured."
    return Table(title="Not measured yet", head=GAPS_HEAD, rows=rows, note=note)


def _config_name(cell: Cell) -> str:
    weights = "" if cell.setup.weights == RANDOM_WEIGHTS else f", weights {cell.setup.weights}"
    return f"{cell.label} {cell.setup.model}{weights}"


def find_gaps(
    grid: str, gpu: str, cells: Iterable[Cell], measured: Collection[str], failed: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """A line under `GAPS_HEAD` for each engine config of a grid with cells that have no row.

    Args:
        grid: Its name.
        gpu: Title of the GPU.
        cells: Of the whole grid.
        measured: Ids of cells that have a row.
        failed: Codes of the failures of other cells, by id.
    """
    for name, asked in sorted(group_by(cells, _config_name).items()):
        missing = [cell for cell in asked if cell.id not in measured]
        missing.sort(key=lambda cell: (cell.load.input_tokens, cell.load.output_tokens, cell.load.batch))
        # By lengths, the batches of each: ``512→64 × 1, 8``; a replay has no common lengths.
        batches: dict[str, list[str]] = {}
        for cell in missing:
            lengths = "" if cell.load.is_replay else f"{cell.load.input_tokens:,}→{cell.load.output_tokens:,} "
            why = f" ({failed[cell.id].replace('_', ' ')})" if cell.id in failed else ""
            batches.setdefault(lengths, []).append(f"{cell.load.batch:,}{why}")
        if missing:
            words = "; ".join(f"{lengths}× {', '.join(found)}" for lengths, found in batches.items())
            yield grid, gpu, name, f"{len(asked) - len(missing)} of {len(asked)}", words


PAGE, MARKDOWN = "index.html", "report.md"
FINDINGS_TITLE = "Findings: where our values contradict the paper's"
SIMULATED_NOTE = "SIMULATED rows are among these: they say nothing about real hardware."
TITLE_BEGIN = "Energy of "
MARKDOWN_BEGIN = f"# {TITLE_BEGIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One study: its figures, its claims, and tables of both and of the rows that are drawn."""

    study: Study
    figures: tuple[Figure, ...]
    claims: tuple[Compared, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of a page.

    Attributes:
        source: Where the rows come from.
        paper: Whose claims are compared.
        simulated: Whether any row is of a simulated GPU.
    """

    title: str
    source: str
    paper: str
    sections: tuple[Section, ...]
    simulated: bool

    @property
    def figures(self) -> list[Figure]:
        """All figures, in their order."""
        return [figure for section in self.sections for figure in section.figures]

    @property
    def findings(self) -> tuple[str, ...]:
        """Where our values contradict the paper's, a sentence each."""
        compared = (each for section in self.sections for each in section.claims)
        return tuple(each.finding for each in compared if each.finding is not None)

    @property
    def missing(self) -> list[Study]:
        """Studies without a figure."""
        return [section.study for section in self.sections if not section.figures]


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
    """A report on stores of measurements; without any, on all that ships, compared with the paper.

    Args:
        files: As the others, see `load_evidence`.
        traces: Without files, by default those of the claims.
        model: Of the estimates.
        gpu: Of the estimates.
        allow_simulated: Whether rows of a simulated GPU are accepted.
        mixed: ``split`` or ``refuse`` rows of environments that must not be mixed; None rejects a user's and splits
            the shipped ones, whose environments are known.
        planned: The cells of the shipped grids by name, for a GPU of the catalog, to list those without a row.

    Raises:
        UsageError: An option is unknown, environments are mixed, or a trace cannot be estimated.
        DataError: A file is not what it should be.
    """
    rule = mixed or (REFUSE if files else SPLIT)
    if rule not in MIXED_RULES:
        what, how = "rule for mixed environments", "Give one with --mixed"
        raise UsageError.unknown(what, rule, MIXED_RULES, how, code="unknown-name", option="--mixed")
    wanted = traces if traces or files else claimed_traces()
    evidence = load_evidence(files, wanted, model=model, gpu=gpu, allow_simulated=allow_simulated)
    compared = compare_claims(evidence)
    # The shipped rows are of several kinds of GPU, in figures of their own; a user's are drawn in one figure.
    parts = [evidence] if files else evidence.by_gpu()
    gaps = _gaps(parts, planned) if planned else {}
    source, _ = load_claims()
    used: Counter[str] = Counter()
    figures = {study.name: tuple(_draw(study, parts, rule, used)) for study in STUDIES}
    names = ", ".join(path.name for path in files)
    return Report(
        title=f"{TITLE_BEGIN}{names or 'LLM inference, compared with the paper'}",
        source=names or "the tables that ship with infergy",
        paper=source,
        sections=tuple(_section(study, figures[study.name], compared, gaps) for study in STUDIES),
        simulated=evidence.is_simulated,
    )


def _draw(study: Study, parts: Sequence[Evidence], rule: str, names: Counter[str]) -> Iterator[Figure]:
    """Its figures of each part, each with a name of its own for its files, and its GPU where there are several."""
    for number, part in enumerate(parts):
        for figure in study.draw(part, rule):
            kind = next((point.gpu_kind for point in figure.points), "")
            title = gpu_title(kind)
            name = f"{figure.name}-{catalog_name(kind)}" if number and kind else figure.name
            names[name] += 1
            name = name if names[name] == 1 else f"{name}-{names[name]}"
            yield replace(figure, name=name, gpu="" if len(parts) == 1 or title in figure.title else title)


def _section(
    study: Study,
    figures: tuple[Figure, ...],
    compared: Iterable[Compared],
    gaps: Mapping[str, Sequence[tuple[str, ...]]],
) -> Section:
    claims = tuple(each for each in compared if each.claim.study == study.name)
    points = {id(point): point for figure in figures for point in figure.points}.values()
    tables = []
    if claims:
        rows = tuple(each.cells for each in claims)
        tables.append(Table(title="The paper's claims and our values", head=HEAD, rows=rows))
    if gaps and study.grids:
        tables.append(gaps_table(gap for grid in study.grids for gap in gaps[grid]))
    if points:
        tables += [environment_table(points), flags_table(points)]
    return Section(study=study, figures=figures, claims=claims, tables=tuple(tables))


def _gaps(
    parts: Iterable[Evidence], planned: Callable[[str], Mapping[str, Sequence[Cell]]]
) -> dict[str, list[tuple[str, ...]]]:
    """The cells that each grid lacks on each kind of GPU, by the grid's name."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for part in parts:
        measured = {point.row.cell_id for point in part.all_points}
        kind = part.all_points[0].gpu_kind
        name = catalog_name(kind)
        for grid, cells in planned(name).items():
            gaps = find_gaps(grid, gpu_title(kind), cells, measured, part.failed.get(name, {}))
            found.setdefault(grid, []).extend(gaps)
    return found


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write the page, the Markdown and the pictures; returns their paths, the page first.

    Raises:
        UsageError: The folder cannot be written.
        ImportError: The extra ``report`` is not installed.
    """
    pictures: dict[str, bytes] = {}
    for figure in report.figures:
        svg = draw(for_file(figure), ".svg").decode()
        pictures[figure.name] = re.sub(f'(fill|stroke)="{INK}"', rf'\1="{FILE_INK}"', svg).encode()
    files = {PAGE: page_html(report, pictures).encode(), MARKDOWN: page_markdown(report).encode()}
    for name, picture in pictures.items():
        files |= {f"{name}.svg": picture, f"{name}.png": png_of(picture)}
    signs = {**SIGNS, ".md": MARKDOWN_BEGIN}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError.not_writable(folder, error, "folder") from error
    # Before the first is written: what is there of another kind is left as it is, all of it.
    kinds = {name: ("file of a report", signs[Path(name).suffix]) for name in files}
    for name, kind in kinds.items():
        check_output(folder / name, *kind)
    for name, content in files.items():
        write_file(folder / name, content, *kinds[name])
    return tuple(folder / name for name in files)


def page_html(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page: scripts and styles inside, one copy of Vega for all figures.

    Args:
        report: What to show.
        pictures: SVG by figure name, for readers without scripts.
    """
    return render(
        "report.html.j2",
        report.title,
        {figure.name: (figure.spec, pictures[figure.name]) for figure in report.figures},
        report=report,
        not_measured=NOT_MEASURED,
        findings_title=FINDINGS_TITLE,
        simulated_note=SIMULATED_NOTE,
    )


def page_markdown(report: Report) -> str:
    """The report as Markdown, with its pictures in the same folder."""
    lines = [f"{MARKDOWN_BEGIN}{escape(report.title.removeprefix(TITLE_BEGIN))}", ""]
    if report.simulated:
        lines += [f"**{SIMULATED_NOTE}**", ""]
    lines += [f"Rows: {escape(report.source)}. Claims: {escape(report.paper)}.", ""]
    if report.findings:
        lines += [f"## {FINDINGS_TITLE}", "", *(f"- {escape(text)}" for text in report.findings), ""]
    for section in report.sections:
        lines += _section_lines(section)
    return "\n".join(lines).rstrip() + "\n"


def _section_lines(section: Section) -> Iterator[str]:
    study = section.study
    yield from (f"## {escape(study.title)}", "")
    if study.paper:
        yield from (f"In the paper: {escape(study.paper)}.", "")
    if not section.figures:
        yield from (f"{NOT_MEASURED.capitalize()}. To measure it: `{study.measure}`", "")
    for figure in section.figures:
        heading = escape(figure.heading)
        yield from (f"### {heading}", "", f"![{heading}]({figure.name}.svg)", "", escape(figure.note), "")
        yield from (*table_lines(figure.head, figure.table), "")
    for table in section.tables:
        yield from (f"### {table.title}", "")
        if table.note:
            yield from (escape(table.note), "")
        if table.rows:
            yield from (*table_lines(table.head, table.rows), "")
