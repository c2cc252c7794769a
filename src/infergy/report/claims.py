"""The study's claims compared with our values: rows of text for a page, docs/claims.md and docs/findings.md.

``python -m infergy.report.claims`` updates both documents.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from infergy.report.evidence import Evidence, load_evidence
from infergy.report.html import escape
from infergy.report.our_values import KINDS, REVERSED, OurValue, interval_text
from infergy.units import format_number, format_percent

HEAD = ("Claim", "Paper", "on", "Ours", "Interval", "on", "Ours / paper")
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One number of the study.

    Attributes:
        study: Name of the study it belongs to (`infergy.report.studies`).
        paper: The paper's value, a fraction; None where it describes a shape.
        hardware: Where the paper measured it.
        ours: How our value is computed: a function of `infergy.report.our_values` as ``kind``, and its arguments.
        signed: Whether its number is shown with its sign: a change is, a saving is not.
        caveat: What a reader of our value must know; empty if nothing.
    """

    study: str
    claim: str
    hardware: str
    ours: Mapping[str, Any]
    paper: float | None = None
    signed: bool = True
    caveat: str = ""

    def percent(self, value: float | None) -> str:
        """A value of this claim."""
        return "qualitative" if value is None else format_percent(value, signed=self.signed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A claim and our value."""

    claim: Claim
    ours: OurValue

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts under `HEAD`."""
        claim, ours = self.claim, self.ours
        theirs = (claim.claim, claim.percent(claim.paper), claim.hardware)
        if not ours.is_measured:
            return (*theirs, f"{NOT_MEASURED}: {ours.method}", "-", "-", "-")
        interval = ours.method
        if ours.interval is not None:
            interval = f"{interval_text(ours.interval, signed=claim.signed)} ({ours.method})"
        value = claim.percent(ours.value) if ours.text is None else ours.text
        return (*theirs, value, interval, ours.hardware or "-", self._ratio)

    @property
    def _ratio(self) -> str:
        """Ours over the paper's, where both are numbers of one sign; else how it contradicts the paper's."""
        paper, ours = self.claim.paper, self.ours
        if ours.finding is not None:
            return ours.finding
        if paper is None or ours.value is None:
            return "-"
        # The ends of a trace's gap are those of a bracket.
        if self.claim.ours["kind"] == "change" and ours.interval is not None and _contains_zero(ours):
            return "interval contains 0"
        return format_number(ours.value / paper)

    @property
    def finding(self) -> str | None:
        """A sentence where our value contradicts the paper's."""
        name, paper, where, value, interval, hardware, ratio = self.cells
        if self.ours.finding is None:
            return None
        return f"{name}. Paper: {paper} ({where}). Ours: {value} ({hardware}), {ratio}. Interval: {interval}"


def _contains_zero(ours: OurValue) -> bool:
    return ours.interval is not None and ours.interval[0] * ours.interval[1] <= 0


def load_claims() -> tuple[str, tuple[Claim, ...]]:
    """The claims that ship, after their source."""
    content = tomllib.loads((resources.files("infergy") / "data" / "claims.toml").read_text(encoding="utf-8"))
    return str(content["source"]), tuple(Claim(**claim) for claim in content["claims"])


def claimed_traces() -> tuple[str, ...]:
    """The traces that claims are about."""
    _, claims = load_claims()
    return tuple(dict.fromkeys(claim.ours["trace"] for claim in claims if "trace" in claim.ours))


def compare_claims(evidence: Evidence) -> tuple[Compared, ...]:
    """All claims, each with our value by the evidence."""
    _, claims = load_claims()
    return tuple(Compared(claim=claim, ours=find_ours(claim, evidence)) for claim in claims)


def find_ours(claim: Claim, evidence: Evidence) -> OurValue:
    """Our value for a claim; its `method` says why where there is none."""
    arguments = dict(claim.ours)
    return judge(claim, KINDS[arguments.pop("kind")](evidence, **arguments))


def judge(claim: Claim, ours: OurValue) -> OurValue:
    """Our value with the claim's caveat, and with what it contradicts."""
    if not ours.is_measured:
        return ours
    finding = ours.finding
    if claim.paper is not None and ours.value is not None and claim.paper * ours.value < 0:
        finding = f"{REVERSED}, interval unknown" if ours.interval is None else REVERSED
        finding += ", but its interval contains 0" if _contains_zero(ours) else ""
    return replace(ours, method="; ".join(filter(None, (ours.method, claim.caveat))), finding=finding)


def update_page(page: str, compared: Iterable[Compared]) -> str:
    """docs/claims.md or docs/findings.md with the values of the claims in its tables; all other text is kept."""
    known = {escape(each.cells[0]): [escape(cell) for cell in each.cells] for each in compared}
    lines = []
    for line in page.splitlines():
        claim, *rest = line.removeprefix("| ").removesuffix(" |").split(" | ")
        cells = known.get(claim, [])
        if cells and len(rest) == len(HEAD) - 1:
            line = f"| {' | '.join(cells)} |"
        elif cells and len(rest) == 3:
            line = f"| {claim} | {cells[1]} | {cells[3]} | {rest[-1]} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def shipped_claims() -> tuple[Compared, ...]:
    """All claims compared with what ships."""
    return compare_claims(load_evidence(traces=claimed_traces()))


if __name__ == "__main__":
    shown = shipped_claims()
    for document in (Path("docs/claims.md"), Path("docs/findings.md")):
        document.write_text(update_page(document.read_text(encoding="utf-8"), shown), encoding="utf-8")
