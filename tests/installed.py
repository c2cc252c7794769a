"""What an installer leaves behind: a package's metadata with its entry points, in a folder on the path."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def install(site: Path, package: str, meters: Mapping[str, str]) -> None:
    """Write the dist-info of `package`, which offers `meters`: target by name."""
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in meters.items()]
    (info / "entry_points.txt").write_text("\n".join(["[infergy.meters]", *lines, ""]))


def install_infergy(site: Path) -> None:
    """Write infergy's own dist-info, with the entry points that its pyproject.toml declares."""
    install(site, "infergy", PROJECT["entry-points"]["infergy.meters"])
