"""A report: one HTML page that needs no network, the same as Markdown, and each figure as PNG and SVG."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from infergy.catalog import catalog_name
from infergy.errors import UsageError
from infergy.files import check_output, write_file
from infergy.records import Cell
from infergy.report.charts import FILE_INK, INK, Figure, for_file
from infergy.report.claims import HEAD, NOT_MEASURED, Compared, claimed_traces, compare_claims, load_claims
from infergy.report.evidence import Evidence, gpu_title, load_evidence
from infergy.report.html import SIGNS, draw, png_of, render
from infergy.report.points import MIXED_RULES, REFUSE, SPLIT
from infergy.report.studies import STUDIES, Study
from infergy.report.tables import Table, environment_table, escape, find_gaps, flags_table, gaps_table, table_lines

if TYPE_CHECKING:
    from infergy.workload.requests import Sample

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
