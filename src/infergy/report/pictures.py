"""Pictures of charts, as SVG and PNG. vl-convert draws one after the other, so of many a second process draws half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PNG_SCALE = 2.0
WORTH_A_PROCESS = 8
"""Charts from which on a second process is sooner done than started."""


def draw_pictures(charts: Mapping[str, Any], version: str) -> dict[str, tuple[str, bytes]]:
    """SVG and PNG of each chart, by its name.

    Args:
        charts: Specifications in Vega-Lite.
        version: Of Vega-Lite, as vl-convert spells it.

    Raises:
        ImportError: The extra ``report`` is not installed.
        RuntimeError: The second process failed; the message holds what it said.
    """
    if len(charts) < WORTH_A_PROCESS or (os.cpu_count() or 1) < 2:
        return _draw(charts, version)
    names = list(charts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = {one: charts[one] for one in names[1::2]}
        (folder / "charts.json").write_text(json.dumps({"version": version, "charts": theirs}), encoding="utf-8")
        command = [sys.executable, "-m", "infergy.report.pictures", name]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            found = _draw({one: charts[one] for one in names[::2]}, version)
            _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"drawing failed with {process.returncode}: {said}")
        for place, one in enumerate(theirs):
            svg = (folder / f"{place}.svg").read_text(encoding="utf-8")
            found[one] = (svg, (folder / f"{place}.png").read_bytes())
    return {one: found[one] for one in names}


def _draw(charts: Mapping[str, Any], version: str) -> dict[str, tuple[str, bytes]]:
    import vl_convert

    drawn = {name: vl_convert.vegalite_to_svg(chart, vl_version=version) for name, chart in charts.items()}
    return {name: (svg, vl_convert.svg_to_png(svg, scale=PNG_SCALE)) for name, svg in drawn.items()}


def _main(folder: Path) -> None:
    """Draw what `charts.json` in a folder asks for, into files numbered in its order."""
    asked = json.loads((folder / "charts.json").read_text(encoding="utf-8"))
    for place, (svg, png) in enumerate(_draw(asked["charts"], asked["version"]).values()):
        (folder / f"{place}.svg").write_text(svg, encoding="utf-8")
        (folder / f"{place}.png").write_bytes(png)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
