"""docs/claims.md and docs/findings.md have each claim once, with the values of the shipped rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from infergy.report.claims import Compared, update_page
from infergy.report.html import escape

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["claims.md", "findings.md"])
def test_each_claim_is_in_the_page_once_with_the_values_of_the_rows(
    name: str, shipped_claims: Sequence[Compared]
) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    assert page == update_page(page, shipped_claims), "update it: python -m infergy.report.claims"
    rows = [line for line in page.splitlines() if line.startswith("|") and not line.startswith(("| Claim", "|---"))]
    assert sorted(line.split(" | ")[0] for line in rows) == sorted(
        f"| {escape(each.cells[0])}" for each in shipped_claims
    )
    assert all(line.split(" | ")[-1].removesuffix(" |") for line in rows)
