"""docs/findings.md tells each claim once, with the figures of docs/claims.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from infergy.report.claims import Compared

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"


@pytest.mark.slow
def test_each_claim_is_told_once_and_with_the_figures_of_the_rows(shipped_claims: Sequence[Compared]) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and not line.startswith(("| Claim", "|---"))
    ]
    told = {name: (paper, ours) for name, paper, ours, why in rows if why}
    assert len(told) == len(rows)
    assert told == {one.cells[0]: (one.cells[1], one.cells[3]) for one in shipped_claims}
