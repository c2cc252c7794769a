"""Seconds and memory of `check`, `estimate --table` and `report` over many rows of many GPUs.

Run: python benchmarks/many_rows.py [--rows 1000 5000 20000] [--gpus 50] [--verbs check estimate report]
     python benchmarks/many_rows.py --rows 100000 --verbs check
Targets on 2 idle cores: `check` of 100,000 rows under 20 s and 1 GB; no column of µs per row grows with the rows.

Rows are those that ship for one GPU (windows, ticks and batches as measured; without their power over time, which most
rows of large stores lack), again for each other GPU under its own name. Each verb runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from infergy.records.store import shipped_store

VERBS = {
    "check": ["check", "ROWS"],
    "estimate": ["estimate", "azure-code-2023", "--for", "60s", "--table", "ROWS"],
    "report": ["report", "ROWS", "--mixed", "split", "-o", "FOLDER"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--gpus", type=int, default=50)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    options = parser.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'verb':10} {'rows':>8} {'MiB':>6} {'wall s':>7} {'user s':>7} {'µs/row':>7} {'peak MiB':>9}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "rows.jsonl"
            write_store(store, rows, options.gpus)
            size = store.stat().st_size / 2**20
            for verb in options.verbs:
                wall_s, user_s, peak_mib = run(VERBS[verb], store)
                print(
                    f"{verb:10} {rows:8,} {size:6.0f} {wall_s:7.1f} {user_s:7.1f} {user_s / rows * 1e6:7.0f} "
                    f"{peak_mib:9.0f}",
                    flush=True,
                )


def write_store(path: Path, rows: int, gpus: int) -> None:
    """Rows of one shipped store, again and again, each time as another of so many GPUs."""
    shipped = [json.loads(line) for line in shipped_store().read_text(encoding="utf-8").splitlines()]
    for row in shipped:
        row |= {"timeline": [], "watched": None}
    lines = [(json.dumps(row, separators=(",", ":")), row["environment"]["gpus"][0]["uuid"]) for row in shipped]
    with path.open("w", encoding="utf-8") as file:
        for number, (line, uuid) in enumerate(islice(cycle(lines), rows)):
            file.write(line.replace(uuid, f"GPU-{number // len(lines) % gpus:04d}") + "\n")


def run(verb: Sequence[str], store: Path) -> tuple[float, float, float]:
    """Wall and user seconds of a verb, and the most memory that it had, in MiB."""
    places = {"ROWS": str(store), "FOLDER": str(store.with_name("report"))}
    code = (
        "import os, resource, sys, time\n"
        "begin, figures = time.perf_counter(), int(sys.argv.pop(1))\n"
        "from infergy.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    os.write(figures, f'{time.perf_counter() - begin} {used.ru_utime} {used.ru_maxrss}'.encode())\n"
    )
    read, write = os.pipe()
    command = [sys.executable, "-c", code, str(write), *(places.get(word, word) for word in verb)]
    done = subprocess.run(command, pass_fds=(write,), capture_output=True, text=True, check=False)
    os.close(write)
    with os.fdopen(read) as file:
        figures = file.read()
    if done.returncode:
        raise SystemExit(f"{' '.join(verb)}: {done.stderr}")
    wall_s, user_s, peak_kib = map(float, figures.split())
    return wall_s, user_s, peak_kib / 1024


if __name__ == "__main__":
    main()
