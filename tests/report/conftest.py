"""What ships, read and judged once for all tests of a process: seconds of work each time."""

from __future__ import annotations

import pytest

from infergy.report.build import Report, build_report, shipped_evidence
from infergy.report.claims import Compared, compare_claims


@pytest.fixture(scope="session")
def paper() -> Report:
    return build_report()


@pytest.fixture(scope="session")
def shipped_claims() -> tuple[Compared, ...]:
    return compare_claims(shipped_evidence())
