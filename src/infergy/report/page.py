"""A report as files: one HTML page that needs no network, the same as Markdown, and each figure as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from infergy.errors import UsageError
from infergy.report.build import ENVIRONMENT_HEAD, FLAGS_HEAD, Report, Section
from infergy.report.claims import HEAD as CLAIMS_HEAD
from infergy.report.figures import Figure, for_file
from infergy.report.gaps import GAPS_HEAD, GAPS_TITLE, NO_GAPS
from infergy.report.markdown import escape, table_lines
from infergy.report.ours import NOT_MEASURED
from infergy.report.pictures import draw_pictures

PAGE, MARKDOWN = "index.html", "report.md"
TEMPLATE = "report.html.j2"
FINDINGS_TITLE = "Findings: where ours contradicts the paper's"
FLAGGED = "flags are explained in docs/flags.md; they never change a number"


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write the page, the Markdown and the pictures; returns their paths, the page first.

    Raises:
        UsageError: The folder cannot be written.
        ImportError: The extra ``report`` is not installed.
    """
    pictures = draw_pictures({figure.name: for_file(figure) for figure in report.figures}, _vega_lite())
    files: dict[str, str | bytes] = {}
    for name, (svg, png) in pictures.items():
        files |= {f"{name}.svg": svg, f"{name}.png": png}
    files = {
        PAGE: page_html(report, {name: svg for name, (svg, _) in pictures.items()}),
        MARKDOWN: page_markdown(report),
        **files,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
    except OSError as error:
        raise UsageError.not_writable(folder, error, "folder") from error
    return tuple(folder / name for name in files)


def _vega_lite() -> str:
    """Of the version that altair writes, as vl-convert spells it."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.split(".")[:2])


def page_html(report: Report, pictures: dict[str, str]) -> str:
    """The page: scripts and styles inside, one copy of Vega for all figures.

    Args:
        report: What to show.
        pictures: SVG by figure name, for readers without scripts.
    """
    import base64

    import vl_convert
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("infergy") / "data" / TEMPLATE).read_text(encoding="utf-8")
    # The stubs of vl-convert want a snippet; None is its own default, which leaves vegaEmbed to the page.
    bundle: Any = vl_convert.javascript_bundle
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(text).render(
        report=report,
        vega=_script(bundle(vl_version=_vega_lite())) if any(report.figures) else "",
        pictures={name: base64.b64encode(svg.encode()).decode() for name, svg in pictures.items()},
        claims_head=CLAIMS_HEAD,
        environment_head=ENVIRONMENT_HEAD,
        flags_head=FLAGS_HEAD,
        gaps_head=GAPS_HEAD,
        gaps_title=GAPS_TITLE,
        no_gaps=NO_GAPS,
        not_measured=NOT_MEASURED,
        flagged=FLAGGED,
        findings_title=FINDINGS_TITLE,
    )


def _script(code: str) -> Any:
    """Code that may stand in a page as it is."""
    from markupsafe import Markup

    if "</script" in code.lower() or "<!--" in code:
        raise AssertionError("the scripts of vl-convert would end their own element")
    return Markup(code)


def page_markdown(report: Report) -> str:
    """The report as Markdown, its pictures beside it."""
    lines = [f"# {escape(report.title)}", ""]
    if report.simulated:
        lines += ["**SIMULATED rows are among these: they say nothing about real hardware.**", ""]
    lines += [f"Rows: {escape(report.source)}. Claims: {escape(report.paper)}.", ""]
    if report.findings:
        lines += [f"## {FINDINGS_TITLE}", "", *(f"- {escape(text)}" for text in report.findings), ""]
    for section in report.sections:
        lines += _section_lines(section)
    return "\n".join(lines).rstrip() + "\n"


def _section_lines(section: Section) -> Iterator[str]:
    study = section.study
    yield f"## {escape(study.title)}"
    yield ""
    if study.paper:
        yield from (f"In the paper: {escape(study.paper)}.", "")
    if not section.figures:
        yield from (f"{NOT_MEASURED.capitalize()}. To measure it: `{study.measure}`", "")
    for figure in section.figures:
        yield from _figure_lines(figure)
    if section.claims:
        yield from ("### The paper's claims beside ours", "")
        yield from (*table_lines(CLAIMS_HEAD, [one.cells for one in section.claims]), "")
    if section.gaps is not None:
        yield from (f"### {GAPS_TITLE}", "")
        yield from (*(table_lines(GAPS_HEAD, section.gaps) if section.gaps else [NO_GAPS]), "")
    if section.environment:
        yield from ("### Environment", "", *table_lines(ENVIRONMENT_HEAD, section.environment), "")
        yield from ("### Flags", "")
        flags = list(table_lines(FLAGS_HEAD, section.flags)) if section.flags else ["No row is flagged."]
        yield from (*flags, "")


def _figure_lines(figure: Figure) -> Iterator[str]:
    heading = escape(figure.heading)
    yield from (f"### {heading}", "", f"![{heading}]({figure.name}.svg)", "")
    yield from (escape(figure.note), "", *table_lines(figure.head, figure.table), "")
