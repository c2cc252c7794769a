"""Verbs that left the command line, and what to type instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from infergy.errors import UsageError

RETIRED: Mapping[str, str] = {
    "scoreboard": "python benchmarks/scoreboard, in a checkout of infergy (with scikit-learn)",
}


class Verbs(TyperGroup):
    """The verbs of infergy; a retired one is an error that names its successor."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb of a command line.

        Raises:
            UsageError: It is retired.
        """
        if args[0] in RETIRED:
            message = f"infergy {args[0]} is no longer a command. Type: {RETIRED[args[0]]}"
            raise UsageError(message, code="retired-command", command=args[0], instead=RETIRED[args[0]])
        return super().resolve_command(ctx, args)
