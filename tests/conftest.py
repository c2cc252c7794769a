"""What several test modules share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infergy.records import Measurement
from rows import build_row


@pytest.fixture
def row() -> Callable[..., Measurement]:
    """A builder of rows whose joules are known."""
    return build_row
