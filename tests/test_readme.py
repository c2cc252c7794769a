"""The README shows what the tool prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("trace", ["azure-conv-2023", "azure-code-2023"])
def test_the_readme_shows_real_output(trace: str) -> None:
    (shown,) = re.findall(rf"^```\n({trace}: .*?)\n```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    printed = CliRunner().invoke(app, ["estimate", trace]).stdout
    head = printed.split("How each number was obtained")[0]
    assert shown.splitlines() == [line.rstrip() for line in head.splitlines() if line.strip()]


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, {})
    assert re.search(r"^vllm \d+ Wh 0\.\d+ 0\.\d+$", capsys.readouterr().out, re.MULTILINE)
