"""Energy of a prompt token that the prefix cache has: replays of the same requests with the cache on and off.

Usage: python benchmarks/prefix_caching.py sessions TRACE OUT [--turns 6] [--every 8] [--longest 32768]
       python benchmarks/prefix_caching.py table ROWS…

sessions    conversations of the Mooncake conversation trace (by the second block of their prompts; the first is common to
            all) of at least so many turns, none of whose requests is longer than so many tokens; each so manyth of them.
            In the trace a turn follows the last after two minutes, so that 80 s of it hold few second turns: these are
            replayed 40 times as fast.
table       from rows of `infergy replay OUT --speed 45 --for 80s`, once more with --no-enable-prefix-caching: measured and
            predicted energy, cached tokens, and energy per cached token, (off − on) / cached tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from infergy.catalog import catalog_name
from infergy.estimates.replay import Replay, compare_rows
from infergy.estimates.servers import shipped_table
from infergy.records.store import read_store

NOISE = 0.003
"""Relative difference of two runs of one replay (docs/replay.md): what the energy of one is known to."""
HEADS = ("run", "requests", "kJ on", "kJ off", "cached tokens", "mJ per cached token")


def write_sessions(trace: Path, out: Path, turns: int, every: int, longest: int) -> None:
    talks: dict[int, list[dict[str, object]]] = {}
    for line in trace.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if len(row["hash_ids"]) > 1:
            talks.setdefault(row["hash_ids"][1], []).append(row)
    whole = [talk for talk in talks.values() if len(talk) >= turns and max(map(_tokens, talk)) <= longest]
    chosen = sorted((row for talk in whole[::every] for row in talk), key=lambda row: int(str(row["timestamp"])))
    out.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    print(f"{len(whole[::every])} of {len(whole)} conversations, {len(chosen)} requests")


def _tokens(row: dict[str, object]) -> int:
    return int(str(row["input_length"])) + int(str(row["output_length"]))


def tables(paths: Iterable[Path]) -> Iterator[tuple[str, ...]]:
    """A line for each replay that was measured with the cache on and off on one GPU."""
    rows = [row for path in paths for row in read_store(path).rows if row.is_ok and row.cell.load.is_replay]
    runs: dict[tuple[object, ...], dict[bool, Replay]] = {}
    for row in rows:
        if row.cell.load.arrivals is None or row.cell.load.arrivals.replicas > 1:
            continue
        (found,) = compare_rows([row], catalog_name(row.environment.gpus[0].name), shipped_table())
        key = row.prompt_sha256, row.arrival_s, row.lengths, found.gpu_uuids
        runs.setdefault(key, {})[row.cell.setup.prefix_caching] = found
    for pair in runs.values():
        if len(pair) == 2:
            yield _line(pair[True], pair[False])


def _line(on: Replay, off: Replay) -> tuple[str, ...]:
    (on_kj, off_kj), hits = (_figure(one, "energy_j") for one in (on, off)), _figure(on, "cached_tokens")
    measured, predicted = ((off_kj[k] - on_kj[k]) / hits[k] * 1e3 for k in (0, 1))
    noise = NOISE * (on_kj[0] ** 2 + off_kj[0] ** 2) ** 0.5 / hits[0] * 1e3
    return (
        on.cell.partition("replay:")[2],
        f"{on.requests:,}",
        *(f"{one[0] / 1e3:.1f} (predicted {one[1] / 1e3:.1f})" for one in (on_kj, off_kj)),
        f"{hits[0]:,.0f} (predicted {hits[1]:,.0f})",
        f"{measured:.2f} ± {2 * noise:.2f} (predicted {predicted:.2f})",
    )


def _figure(run: Replay, name: str) -> tuple[float, float]:
    """Measured and predicted."""
    (figure,) = (one for one in run.compared if one.name == name)
    assert figure.measured is not None
    return figure.measured, figure.predicted


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sessions, table = commands.add_parser("sessions"), commands.add_parser("table")
    sessions.add_argument("trace", type=Path)
    sessions.add_argument("out", type=Path)
    for name, default in (("turns", 6), ("every", 8), ("longest", 32768)):
        sessions.add_argument(f"--{name}", type=int, default=default)
    table.add_argument("rows", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    if options.command == "sessions":
        write_sessions(options.trace, options.out, options.turns, options.every, options.longest)
        return
    for line in (HEADS, ("---",) * len(HEADS), *tables(options.rows)):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
