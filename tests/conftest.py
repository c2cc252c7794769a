"""What several test modules share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from infergy.records import Measurement
from rows import build_row

# The linear algebra here is of a hundred cells: a second thread would only spin for it, on a core that another test has.
# Set before anything imports numpy or torch, for the processes that tests start too.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Under nohup the processes that tests start and hang up would ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Deadlines and the health check of slow data go by the wall clock, and machines that run tests are shared and slow.
settings.register_profile("infergy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("infergy")
pytest.register_assert_rewrite("raising")


@pytest.fixture
def row() -> Callable[..., Measurement]:
    """A builder of rows whose joules are known."""
    return build_row
