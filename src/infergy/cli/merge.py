"""`infergy merge`: rows that several machines measured, in one store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infergy.cli.trace_options import JsonOption, print_json
from infergy.units import count_of


def merge(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The store to write; what it holds is kept.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Stores of measurements (.jsonl, .jsonl.gz)")],
    as_json: JsonOption = False,
) -> None:
    """Put stores together: every row once, whatever their order, and as often as you like.

    Example: infergy merge all.jsonl part-1.jsonl part-2.jsonl
    """
    from infergy.records.merge import merge as merge_stores

    merged = merge_stores(output, files)
    if as_json:
        print_json([merged])
        return
    for one in merged.files:
        torn = "; its last line is half-written and left out" if one.is_torn else ""
        typer.echo(f"{one.file}: {count_of(one.rows, 'row')}, {one.added} of them new{torn}")
    failed = f", {count_of(merged.failed, 'cell')} failed" if merged.failed else ""
    typer.echo(
        f"{merged.output}: {count_of(merged.before, 'row')} before, {merged.rows} now: "
        f"{count_of(merged.cells, 'cell')} measured{failed}"
    )
