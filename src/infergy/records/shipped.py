"""The files of measured rows inside the package. Standard library only."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

DEFAULT_GPU = "h200"
SHIPPED_ROWS = Path(str(resources.files("infergy"))) / "data" / "tables"


def shipped_rows() -> tuple[Path, ...]:
    """All of them: the default GPU's first, and after them replicates from other GPUs of the same kinds."""
    own, others = (SHIPPED_ROWS.glob(pattern) for pattern in ("*.jsonl", "replicates/*.jsonl"))
    return (*sorted(own, key=_order), *sorted(others, key=_order))


def shipped_store(gpu: str | None = None) -> Path:
    """The first file of rows of a GPU of the catalogue, or of the default GPU where there is none."""
    rows = shipped_rows()
    return next((path for path in rows if gpu is not None and path.name.startswith(f"{gpu}-")), rows[0])


def _order(path: Path) -> tuple[bool, str]:
    return not path.name.startswith(f"{DEFAULT_GPU}-"), path.name
