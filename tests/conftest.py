"""What several test modules share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings

from infergy.records import Measurement
from rows import build_row

# A deadline is a wall clock, and machines that run tests are shared and slow.
settings.register_profile("infergy", deadline=None)
settings.load_profile("infergy")


@pytest.fixture
def row() -> Callable[..., Measurement]:
    """A builder of rows whose joules are known."""
    return build_row
