"""What several test modules share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from infergy.records import Measurement
from rows import build_row

# Deadlines and the health check of slow data go by the wall clock, and machines that run tests are shared and slow.
settings.register_profile("infergy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("infergy")


@pytest.fixture
def row() -> Callable[..., Measurement]:
    """A builder of rows whose joules are known."""
    return build_row
