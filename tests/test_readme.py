"""The README's Python runs; what it shows of commands and replays is compared in tests/test_docs.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    assert re.search(r"^vllm \d+ kJ as they arrive \d+ kJ all at once$", capsys.readouterr().out, re.MULTILINE)
