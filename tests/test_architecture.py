"""ARCHITECTURE.md names every module in the line of its room."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infergy.cli.verbs import ALL

ROOT = Path(__file__).parents[1]
ROOMS = sorted(path.parent for path in (ROOT / "src" / "infergy").glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_each_module_is_named_in_its_room(room: Path) -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^  {room.name}/ (.*?)(?=^  \S)", page, re.DOTALL | re.MULTILINE)
    modules = {path.stem for path in room.glob("*.py")} - {"__init__", "__main__"}
    verbs = set(ALL) if room.name == "cli" else set()
    assert modules - verbs - set(re.findall(r"\w+", text)) == set()
