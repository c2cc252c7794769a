"""What only the rows of a log say, not its names: whether some repeat an answer, and what its input includes.

ids       rows of one id and one prompt, whose output grows or stays, are chunks of one answer, or copies of it
cached    tokens beside the input where some row has more of them than input, or a total that is the sum with them
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.workload.formats import AND, CHUNK, KIND, Usage
from infergy.workload.table import INTEGER, TEXT, Table

if TYPE_CHECKING:
    import polars as pl

_FEW = 0.001
"""Share of rows that may contradict the others."""
_NEARLY_ALL = 0.99
"""Share of the ids that several rows have that are of one prompt, where the column is of the ids of answers."""
_MOST_COPIES = 20
"""Of an answer, all with its last counts: more rows of an id are requests, and the id is of something else."""


def find_beside(table: Table) -> tuple[tuple[Usage, ...], tuple[str, ...]]:
    """The counts of a log, cached tokens in their input; and in words what was assumed where no row says it.

    Raises:
        DataError: Some rows count cached tokens beside the input, others in it.
    """
    assumed, usages = [], []
    for usage in table.layout.usages:
        is_beside, reason = _is_beside(table, usage) if usage.either else (False, "")
        assumed.append(reason)
        usages.append(replace(usage, input=usage.input + usage.either * is_beside, either=()))
    return tuple(usages), tuple(filter(None, assumed))


def _is_beside(table: Table, usage: Usage) -> tuple[bool, str]:
    """Whether cached tokens are counted beside the input, and what was assumed if no row says it.

    Raises:
        DataError: Some rows count them beside it, others in it.
    """
    x, counts = table.x, table.counts(lenient=True)
    given, part = counts.input(usage), counts.sum(usage.either)
    facts = {"some": part > 0, "beside": given < part}
    if usage.total is not None:
        rest = counts.whole(usage.total) - counts.sum(usage.output) - given
        facts |= {"beside": (given < part) | ((part > 0) & (rest == part)), "within": (part > 0) & (rest == 0)}
    sums = [fact.fill_null(False).cast(x.Int64).sum().alias(name) for name, fact in facts.items()]
    ((rows,),) = table.collect(table.frame.select(*sums))
    beside, within = int(rows["beside"] or 0), int(rows.get("within") or 0)
    columns, flag = AND.join(usage.either), f"--input-column '{AND.join((*usage.input, *usage.either))}'"
    if min(beside, within) > _FEW * (beside + within):
        what = f"are part of the input in {within:,} rows, and beside it in {beside:,}, by their total"
        message = (
            f"{table.source.name}: cached tokens ({columns}) {what}. Give these as a log of their own, with {flag}"
        )
        raise DataError(message, code="bad-trace", trace=table.source.name, beside=beside, within=within)
    if beside or within or not rows["some"]:
        return beside > within, ""
    return False, f"cached tokens ({columns}) are read as part of the input; if they come beside it: {flag}"


def find_repeating(table: Table) -> tuple[str, ...]:
    """The columns of a table, all of ids or of a record's kind, that repeat an id, or have the kind of a chunk."""
    x, facts = table.x, [table.x.len().alias("rows")]
    paths = [path for path in table.layout.others if table.kinds[path] in (TEXT, INTEGER)]
    for n, path in enumerate(paths):
        text = table.column(path).cast(x.String)
        if path.endswith(KIND):
            is_chunk = text.str.ends_with(CHUNK).fill_null(False)
            facts.append(is_chunk.cast(x.Int64).sum().alias(f"repeats{n}"))
        else:
            # Hashes are counted in half the time. Nulls are one unique value, in any engine.
            texts = text.fill_null("").hash() if table.is_polars else text.fill_null("")
            facts += [texts.n_unique().alias(f"unique{n}"), text.count().alias(f"known{n}")]
    ((counted,),) = table.collect(table.frame.select(*facts))
    for n in range(len(paths)):
        if (known := counted.get(f"known{n}")) is not None:
            counted[f"repeats{n}"] = known > counted[f"unique{n}"] - (known < counted["rows"])
    return tuple(path for n, path in enumerate(paths) if counted[f"repeats{n}"])


def find_chunks(table: Table) -> tuple[str | None, str]:
    """Of columns that repeat, the one of the ids of answers; and in words where ids do not say it.

    Raises:
        DataError: Rows are chunks of answers, and have no such ids.
    """
    x, assumed = table.x, ""
    # Rows inside a record share its id.
    is_inner = table.source.nested is not None and table.source.nested.nest != ()
    tokens = table.counts(lenient=True).tokens()
    for path in sorted(table.layout.others, key=lambda path: path.endswith(KIND)):
        rows = table.frame.select(*tokens, table.column(path).cast(x.String).alias("text"))
        rows = rows.select("text", "input_tokens", "output_tokens").filter(~x.col("text").is_null())
        if path.endswith(KIND):
            if _is_running(_held(table, rows.filter(x.col("text").str.ends_with(CHUNK)))):
                what = "chunks of answers, each with the counts so far, and no id of the answer"
                message = f"{table.source.name}: {what}. Log the id of each chunk, or only the last of each answer"
                raise DataError(message, code="bad-trace", trace=table.source.name)
            continue
        repeats, answers = _answers(_held(table, rows), 0 if is_inner else _MOST_COPIES)
        if answers >= _NEARLY_ALL * repeats:
            return path, ""
        if answers:
            some = f"{answers:,} of the {repeats:,} ids that {path!r} repeats have one prompt"
            assumed = f"{some}, the others several: each row is read as a request"
    return None, assumed


def _answers(held: pl.DataFrame, most: int) -> tuple[int, int]:
    """How many ids several rows have, and how many of these are of one prompt, with output that does not fall.

    Rows of an id that all have the same counts are copies of one answer if they are at most `most`.
    """
    import polars as pl

    served = pl.col("output_tokens") > 0
    falls = (pl.col("output_tokens").filter(served).diff() < 0).any()
    of_one = (pl.col("input_tokens").filter(served).n_unique() <= 1) & ~falls
    of_one &= (pl.len() <= most) | (pl.col("output_tokens").n_unique() > 1)
    repeats = held.group_by("text", maintain_order=True).agg(rows=pl.len(), of_one=of_one).filter(pl.col("rows") > 1)
    return len(repeats), int(repeats["of_one"].sum())


def _is_running(chunks: pl.DataFrame) -> bool:
    """Whether the counts of most chunks are those of the chunk before, but for more output."""
    import polars as pl

    given, output = pl.col("input_tokens").fill_null(0), pl.col("output_tokens").fill_null(0)
    grow = (given > 0) & (given == given.shift()) & (output > output.shift())
    return bool(chunks.select(grow.sum() > (pl.len() - 1) / 2).item()) if len(chunks) > 1 else False


def _held(table: Table, query: Any) -> pl.DataFrame:
    rows = table.collected(query)
    held: pl.DataFrame = rows if table.is_polars else rows.to_polars()
    return held
