"""The verbs in their groups, as help shows them, and those that left with what to type instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from infergy.errors import UsageError

SUMMARY = "Energy of LLM inference: measured, estimated for a request trace, and reduced."
GROUPS: Mapping[str, Mapping[str, str]] = {
    "Estimate": {
        "trace": "Describe request traces: requests, lengths, arrivals, bins",
        "estimate": "Energy and latencies of serving a trace",
        "recommend": "Rank server configurations by energy within latency limits",
        "breakdown": "Split the energy of serving a trace: what it is spent on",
        "next": "Choose the cells to measure next for a trace",
    },
    "Measure": {
        "measure": "Measure the energy of a grid of cells, or of shipped studies",
        "run": "Measure the energy of any program",
        "replay": "Predict and measure a window of a trace on a real engine",
        "watch": "Watch a running server: power, tokens, energy per token",
        "doctor": "Report what can be measured on this machine",
    },
    "Inspect": {
        "check": "List flagged rows, why, and how to fix them",
        "compare": "Compare the energy of two stores, or of this GPU with a table",
        "show": "Show a cell's power over time, or prefill and decode apart",
        "report": "Write a page of figures and tables",
    },
    "Look up": {
        "list": "GPUs, models, studies and JSON schemas, or one of them",
        "table": "Build the table that estimates read; import runs; merge stores",
    },
}
ALL = tuple(verb for group in GROUPS.values() for verb in group)

RETIRED: Mapping[str, str] = {
    "scoreboard": "python benchmarks/scoreboard, in a checkout of infergy (with scikit-learn)",
    "bins": "infergy trace TRACE --bins powers-of-two",
    "waterfall": "infergy breakdown TRACE",
    "plan": "infergy measure GRID --plan plan.json",
    "grid": "infergy list studies NAME",
    "study": "infergy list studies, infergy measure NAME --quick -o FILE.jsonl",
    "calibrate": "infergy measure quick -o FILE.jsonl, then --table FILE.jsonl",
    "measure-command": "infergy run -- COMMAND",
    "merge": "infergy table merge OUT FILE …",
    "verify": "infergy compare --measure, or infergy compare ROWS",
    "phases": "infergy show phases ROWS",
    "timeline": "infergy show timeline ROWS",
    "gpus": "infergy list gpus",
    "models": "infergy list models",
    "schema": "infergy list schemas NAME",
}


class Verbs(TyperGroup):
    """The verbs of infergy: help lists them by group, and a retired one is an error that names its successor."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb of a command line.

        Raises:
            UsageError: It is retired, or there is none of that name.
        """
        name, instead = args[0], RETIRED.get(args[0])
        if name == "measure" and "--" in args:
            name, instead = "measure -- COMMAND", RETIRED["measure-command"]
        if instead is not None:
            message = f"infergy {name} is no longer a command. Type: {instead}"
            raise UsageError(message, code="retired-command", command=name, instead=instead)
        if not name.startswith("-") and name not in ALL:
            raise UsageError.unknown("command", name, ALL, "All of them: infergy --help", code="unknown-name")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs, group by group."""
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))
