"""`config.json` files for engines that take a folder and not a configuration. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def config_folder(config: Mapping[str, Any]) -> Path:
    """A folder that holds `config` as its `config.json`: for equal configurations the same one, kept.

    It lies in the user's cache (`XDG_CACHE_HOME`, else ``~/.cache``). vLLM finds the graphs it compiled before by the
    path of their model: from a new folder each time it compiles again, 45 s for Llama-3.1-8B on an H200. Where the
    cache cannot be written, a temporary folder has to do.
    """
    text = json.dumps(config, sort_keys=True, indent=1)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infergy" / "models" / name
        _write(folder, text)
    except (OSError, RuntimeError):
        folder = Path(tempfile.mkdtemp(prefix="infergy-model-"))
        _write(folder, text)
    return folder


def _write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "config.json"
    if wanted.is_file() and wanted.read_text(encoding="utf-8") == text:
        return
    handle, part = tempfile.mkstemp(dir=folder, text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    # Whole or not at all: another sweep may read it now.
    os.replace(part, wanted)
