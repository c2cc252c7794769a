"""The study's claims beside ours, as rows of text: for a page, for Markdown, and for docs/claims.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infergy.report.markdown import escape, table_lines
from infergy.report.ours import NOT_MEASURED, Claim, Evidence, Ours, find_ours, load_claims, ratio_text
from infergy.units import format_percent

HEAD = ("Claim", "Paper", "on", "Ours", "Interval", "on", "Ours / paper")
FINDINGS_HEAD = ("Claim", "Paper", "Ours", "Why")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A claim and ours."""

    claim: Claim
    ours: Ours

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `HEAD`."""
        claim, ours = self.claim, self.ours
        if not ours.is_measured:
            return (claim.claim, _percent(claim), claim.hardware, f"{NOT_MEASURED}: {ours.basis}", "-", "-", "-")
        interval = (
            "-"
            if ours.low is None or ours.high is None
            else f"{_signed(claim, ours.low)} .. {_signed(claim, ours.high)}"
        )
        text = ours.text if ours.value is None else _signed(claim, ours.value)
        return (
            claim.claim,
            _percent(claim),
            claim.hardware,
            text or "-",
            f"{interval} ({ours.basis})" if interval != "-" else ours.basis,
            ours.hardware or "-",
            ratio_text(claim, ours),
        )


def findings(compared: Iterable[Compared]) -> tuple[str, ...]:
    """Where ours contradicts the paper's, a sentence each."""
    return tuple(_finding(one) for one in compared if one.ours.finding is not None)


def _finding(one: Compared) -> str:
    name, paper, where, value, interval, hardware, finding = one.cells
    return f"{name}. Paper: {paper} ({where}). Ours: {value} ({hardware}), {finding}. Ours is of: {interval}"


def _percent(claim: Claim) -> str:
    return "so it says" if claim.paper is None else _signed(claim, claim.paper)


def _signed(claim: Claim, value: float) -> str:
    return format_percent(value, signed=claim.signed)


def compare_claims(evidence: Evidence) -> tuple[Compared, ...]:
    """All claims, each beside what the evidence says."""
    _, claims = load_claims()
    return tuple(Compared(claim=claim, ours=find_ours(claim, evidence)) for claim in claims)


def claims_page(compared: Sequence[Compared]) -> str:
    """docs/claims.md: the table of claims with our figure, its interval and hardware beside each."""
    source, _ = load_claims()
    measured = sum(one.ours.is_measured for one in compared)
    lines = [
        "# The study's claims beside ours",
        "",
        f"Claims: {source}. Ours follow from the tables that ship with infergy ([measurements.md](measurements.md)): "
        f"{measured} of {len(compared)} claims have a figure of ours, the others say why not. This page is what "
        "`infergy report paper` shows, study by study.",
        "",
        "Gaps and savings of traces are by the study's method: each request at the upper corner of its bin, in the "
        "largest batches that memory and the engine allow, by the step-cost model fitted to all rows. What serving a "
        "trace as it arrives draws is another question: `infergy estimate`.",
        "",
        "Different hardware, models and engine versions stand side by side: a ratio far from 1 is a finding about "
        "these, not an error of either. The study's Azure traces are of 2024, ours of 2023, which are smaller. Its "
        "ideal takes the vendor's headline peak, ours the dense one.",
        "",
        *table_lines(HEAD, [one.cells for one in compared]),
        "",
        "## Findings: where ours contradicts the paper's",
        "",
        *(f"- {escape(text)}" for text in findings(compared)),
    ]
    return "\n".join(lines) + "\n"


def with_figures(page: str, compared: Iterable[Compared]) -> str:
    """docs/findings.md with the figures of the claims, which its tables name; what else stands there is kept."""
    cells = {escape(claim.cells[0]): claim.cells for claim in compared}
    lines = []
    for line in page.splitlines():
        parts = line.split(" | ")
        name = parts[0].removeprefix("| ")
        if line.startswith("| ") and name in cells and len(parts) == len(FINDINGS_HEAD):
            line = " | ".join((parts[0], escape(cells[name][1]), escape(cells[name][3]), parts[3]))
        lines.append(line)
    return "\n".join(lines) + "\n"


def write_pages(folder: Path) -> None:
    """Write the figures of the shipped rows and table into docs/claims.md and docs/findings.md."""
    from infergy.report.build import shipped_evidence

    compared = compare_claims(shipped_evidence())
    (folder / "claims.md").write_text(claims_page(compared), encoding="utf-8")
    findings_path = folder / "findings.md"
    findings_path.write_text(with_figures(findings_path.read_text(encoding="utf-8"), compared), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path("docs"))
