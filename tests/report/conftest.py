"""What ships, read and judged once for all tests of a process: seconds of work each time."""

from __future__ import annotations

import pytest

from infergy.report import claims
from infergy.report.claims import Compared
from infergy.report.page import Report, build_report


@pytest.fixture(scope="session")
def paper() -> Report:
    return build_report()


@pytest.fixture(scope="session")
def shipped_claims() -> tuple[Compared, ...]:
    return claims.shipped_claims()
