"""The public surface, and what importing it does not load."""

from __future__ import annotations

import subprocess
import sys

import infergy


def test_every_public_name_is_there() -> None:
    for name in infergy.__all__:
        assert getattr(infergy, name) is not None


def test_importing_infergy_loads_nothing_heavy() -> None:
    code = (
        "import infergy, sys; print([m for m in ('polars', 'numpy', 'scipy', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
