"""A simulated sweep killed at random moments, resumed by the same command each time, until it has been killed often.

In turn the sweep itself is killed (its child ends with it), or its child (the sweep records the cell
at hand and starts another). Moments are drawn over the time that a whole sweep takes; a store that is complete gives
way to a new one. After each kill, against what the store held and what the sweep had told before:

    lost          rows that were in the store, or told as measured, and are in it no more
    changed       rows whose bytes are other than before
    twice         cells measured again although a row was there
    torn          stores whose last line was half-written; the next run sets it aside

Expected: none lost, changed or twice; else the exit is 1. Needs no GPU.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import infergy
from infergy.measure.grid import make_plan, parse_grid
from infergy.records import Measurement, Plan
from infergy.records.store import read_store

SRC = str(Path(infergy.__file__).parents[1])
TOLD = re.compile(r"^ *\d+/\d+ (?!.*FAILED)", re.MULTILINE)
EXIT_IN_USE = 2
"""The child of a killed sweep holds the store until it has ended."""


@dataclass(slots=True)
class Tally:
    """What was found over all stores so far."""

    kills: Counter[str] = field(default_factory=Counter)
    stores: int = 0
    rows: int = 0
    failed: int = 0
    torn: int = 0
    lost: int = 0
    changed: int = 0
    twice: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing was lost so far."""
        return not (self.lost or self.changed or self.twice)


def plan_cells() -> Plan:
    cells = [{"input_tokens": [32, 64, 128, 256, 512, 1024], "output_tokens": [8, 64], "batch": [1, 4, 16]}]
    grid = {"name": "kill", "gpu": "h200", "model": "llama-3.1-8b", "cells": cells}
    return make_plan(parse_grid(grid | {"engines": [{"engine": "vllm"}, {"engine": "transformers"}]}, "kill"))


class Store:
    """One store under attack, and what it is known to have held."""

    def __init__(self, path: Path, plan: Path, keys: set[str], tally: Tally) -> None:
        self.path, self._plan, self._keys, self._tally = path, plan, keys, tally
        self._known: list[bytes] = []

    def start(self, words: Path) -> subprocess.Popen[bytes]:
        """The same command each time."""
        command = [sys.executable, "-m", "infergy.measure", str(self._plan), "-o", str(self.path)]
        with words.open("wb") as said:
            return subprocess.Popen(
                [*command, "--simulate", "--retry-failed"],
                env=os.environ | {"PYTHONPATH": SRC, "TMPDIR": str(self.path.parent)},
                stderr=said,
            )

    def judge(self, told: int) -> None:
        """Compare the store with what it held before a run that has told of `told` measured rows."""
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, rest = content.split(b"\n")
        tally, before = self._tally, len(self._known)
        there = {row_of(line).key for line in lines}
        missing = [row_of(line).key in there for line in (Counter(self._known) - Counter(lines)).elements()]
        tally.changed += missing.count(True)
        tally.lost += missing.count(False) + max(0, told - sum(row_of(line).is_ok for line in lines[before:]))
        tally.torn += bool(rest)
        self._known = lines

    def is_complete(self) -> bool:
        """Whether every visit is measured; if so, the store is counted."""
        rows = read_store(self.path).rows if self.path.exists() else ()
        measured = Counter(row.key for row in rows if row.is_ok)
        if set(measured) != self._keys:
            return False
        self._tally.stores += 1
        self._tally.rows += len(measured)
        self._tally.failed += sum(not row.is_ok for row in rows)
        self._tally.twice += sum(count - 1 for count in measured.values())
        return True


def row_of(line: bytes) -> Measurement:
    return Measurement.from_json(json.loads(line))


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    with suppress(OSError):
        return [int(child) for child in found.read_text().split()]
    return []


def attack(store: Store, words: Path, rng: random.Random, whole_s: float, tally: Tally, most: int) -> None:
    """One run of the command, killed once, or its children again and again until it ends."""
    process = store.start(words)
    target = rng.choice(["sweep", "child"])
    while process.poll() is None and tally.kills.total() < most:
        time.sleep(rng.uniform(0.0, whole_s))
        if process.poll() is not None:
            break
        victims = [process.pid] if target == "sweep" else children_of(process.pid)
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                tally.kills[target] += 1
        if target == "sweep":
            break
    code = process.wait()
    if code != EXIT_IN_USE:
        wait_for_orphans(store.path)
    store.judge(len(TOLD.findall(words.read_text(errors="replace"))))


def wait_for_orphans(path: Path) -> None:
    """Until nobody holds the store: what an orphaned child still appends belongs to the run before."""
    while path.exists():
        with path.open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng, tally = random.Random(chosen.seed), Tally()
    plan = plan_cells()
    keys = {planned.key for planned in plan.cells}
    with tempfile.TemporaryDirectory(prefix="infergy-kill-") as name:
        folder = Path(name)
        plan.save(folder / "plan.json")

        def new(number: int) -> Store:
            return Store(folder / f"{number}.jsonl", folder / "plan.json", keys, tally)

        words = folder / "words"
        begun_s = time.monotonic()
        new(0).start(words).wait()
        whole_s = time.monotonic() - begun_s
        store = new(1)
        # What is lost is not measured again: with a loss the end would never come.
        while tally.is_whole and tally.kills.total() < chosen.kills:
            attack(store, words, rng, whole_s, tally, chosen.kills)
            if store.is_complete():
                store = new(tally.stores + 1)
        # The last one ends undisturbed.
        while tally.is_whole and not store.is_complete():
            attack(store, words, rng, whole_s, tally, 0)
        took_s = time.monotonic() - begun_s
    print(
        f"{tally.kills.total()} kills ({tally.kills['sweep']} of the sweep, {tally.kills['child']} of its child), "
        f"seed {chosen.seed}, {took_s:.0f} s; a whole sweep of {len(keys)} visits takes {whole_s:.1f} s"
    )
    print(f"{tally.stores} stores completed by the same command, {tally.rows} rows measured")
    print(
        f"{tally.failed} visits recorded as failed by a killed child, then measured; {tally.torn} torn last lines set aside"
    )
    print(
        f"lost {tally.lost}, changed {tally.changed}, measured twice {tally.twice}: "
        f"{'every finished row was kept' if tally.is_whole else 'NOT every finished row was kept'}"
    )
    raise SystemExit(0 if tally.is_whole else 1)


if __name__ == "__main__":
    main()
