"""Tables of docs that follow from committed files: printed, or written into their pages.

Usage: python benchmarks/docs_tables.py [--write]

docs/cost.md: constants of infergy.cost.constants and what src/infergy/data/table.jsonl makes of them; errors that its
fits leave, server by server. docs/logs.md: the formats of src/infergy/data/formats.toml. docs/replay.md and README.md: the tables of benchmarks/replays.py. These, docs/estimates.md, docs/recommend.md and docs/waterfall.md: what commands print.
"""

from __future__ import annotations

import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from infergy.cost.constants import BY_NAME, TRANSFORMERS, Constant, Fit
from infergy.cost.table import Table, shipped_table
from infergy.workload.formats import format_entries

DOCS = Path(__file__).parents[1] / "docs"
KINDS = ("h200", "h100-sxm")
SITE = "--price-per-kwh 0.12 --carbon 400 --pue 1.2 --host-watts 150"
COMMANDS = (
    ("../README.md", "infergy estimate azure-conv-2023"),
    ("../README.md", "infergy recommend azure-conv-2023 --ttft-p99 1s --tpot-p99 50ms | head -7"),
    ("estimates.md", "infergy estimate azure-conv-2023"),
    ("estimates.md", "infergy estimate azure-conv-2023 --method ceiling"),
    ("footprint.md", f"infergy estimate azure-conv-2023 {SITE}"),
    ("next.md", "infergy next azure-code-2023 --gpu a100-80gb-sxm --model qwen3-32b --engine vllm-tp2"),
    ("recommend.md", "infergy recommend azure-conv-2023 --ttft-p99 1s --tpot-p99 50ms"),
    ("waterfall.md", "infergy breakdown azure-conv-2023"),
    ("replay.md", "infergy replay azure-conv-2023 --from 10m --for 75s --speed 3"),
)


def make_tables(table: Table | None = None) -> dict[tuple[str, str], str]:
    """Tables by page and name; they stand between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    table = table or shipped_table()
    replays = runpy.run_path(str(Path(__file__).with_name("replays.py")))
    runs = replays["load"]()
    return {
        ("cost.md", "constants of vllm"): constants_table(BY_NAME.values(), table.fits["vllm"]),
        ("cost.md", "constants of transformers"): constants_table(TRANSFORMERS, table.fits["transformers"]),
        ("cost.md", "errors by server"): errors_table(table),
        ("logs.md", "formats"): formats_table(),
        ("../README.md", "proof"): replays["proof_table"](),
        ("replay.md", "replays"): replays["runs_table"](runs),
        ("replay.md", "summary"): replays["summary_table"](runs),
        ("replay.md", "repeats"): replays["repeats_table"](runs),
        ("replay.md", "second round"): replays["round_table"](2),
        ("replay.md", "third round"): replays["round_table"](3),
        ("replay.md", "fourth round"): replays["round_table"](4),
        ("replay.md", "savings"): replays["savings_table"](4),
        ("replay.md", "fifth round"): replays["round_table"](5),
        **{
            ("replay.md", f"savings on {base}"): replays["savings_table"](5, base)
            for base in ("2 replicas", "transformers, s32")
        },
        ("replay.md", "savings of the fifth round"): replays["savings_table"](5),
        ("replay.md", "sixth round"): replays["round_table"](6),
        ("server.md", "a real vLLM"): replays["runs_table"](replays["load"](7)),
        ("replay.md", "savings of the sixth round"): replays["savings_table"](6),
        ("replay.md", "savings on two GPUs"): replays["savings_table"](6, "2 replicas"),
        ("replay.md", "third intake"): replays["intake_table"](replays["load"](3)),
        **{(page, command): output_of(command) for page, command in COMMANDS},
        ("replay.md", "intake"): replays["intake_table"](runs),
    }


def output_of(command: str) -> str:
    """A command and what it prints, as a block of code."""
    typed, _, first = command.partition(" | head -")
    arguments = [sys.executable, "-m", *typed.split()]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "126"})
    printed = run.stdout.rstrip().splitlines()[: int(first) if first else None]
    lines = [f"$ {command}", *(line.rstrip() for line in printed)]
    return "\n".join(["```", *lines, "```"])


def constants_table(constants: Iterable[Constant], fit: Fit) -> str:
    fitted = [fit.constants(kind) for kind in KINDS]
    rows = [
        [
            f"`{one.name}`",
            f"{one.value:.3g}",
            f"{one.sd:g}",
            f"{one.gpu_sd:g}" if one.gpu_sd else "",
            *(f"{known[one.name]:.3g}" for known in fitted),
            one.meaning,
            one.source,
        ]
        for one in constants
    ]
    lines = [["constant", "prior", "sd", "sd of kinds", *KINDS, "meaning", "source of the prior"]]
    lines += [["---", *["---:"] * (3 + len(KINDS)), "---", "---"], *rows]
    return _markdown(lines)


def errors_table(table: Table) -> str:
    rows = []
    for one in table.measured:
        by = one.served_by
        eager = "" if by.has_graphs else ", no CUDA graphs"
        server = f"{by.engine}, {by.model}, {by.dtype}, {by.gpus} × {by.gpu}{eager}{', API' if by.is_api else ''}"
        shares = [f"{100 * math.expm1(sd):.1f}" for sd in (one.energy_sd, one.time_sd)]
        rows.append([server, str(one.rows), *shares])
    return _markdown([["server", "rows", "energy, %", "time, %"], ["---", "---:", "---:", "---:"], *rows])


def formats_table() -> str:
    rows = []
    for entry in format_entries():
        places = [f"`{place.rstrip('.')}`" if place else "the record" for place in entry.get("within", ())]
        sums = [
            " + ".join(f"`{part}`" for part in map(str.strip, entry[axis].split("+"))) for axis in ("input", "output")
        ]
        cached = [f"`{name.lstrip('^')}`" for name in entry.get("cached", ())]
        times = [f"`{name}`" for name in entry.get("time", ())]
        unit = f" ({entry['unit']})" if "unit" in entry else ""
        where = f"; in {', '.join(places)}" if places else ""
        rows.append([f"`{entry['name']}`", f"{entry['of']}{where}", *sums, ", ".join(cached), ", ".join(times) + unit])
    heads = ["format", "logs", "input", "output", "cached, the first there is", "arrivals"]
    return _markdown([heads, ["---"] * len(heads), *rows])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def insert(page: str, name: str, table: str) -> str:
    """A page with a table in its place.

    Raises:
        ValueError: The page has no such place.
    """
    place = re.compile(f"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if not place.search(page):
        raise ValueError(f"no place for the table: <!-- {name} --> and <!-- end of {name} -->")
    return place.sub(lambda _: f"{table}\n", page)


def main() -> None:
    for (page, name), table in make_tables().items():
        if "--write" not in sys.argv:
            print(f"{page}, {name}\n{table}\n")
            continue
        path = DOCS / page
        path.write_text(insert(path.read_text(encoding="utf-8"), name, table), encoding="utf-8")


if __name__ == "__main__":
    main()
