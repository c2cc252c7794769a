"""Formats are recognised from fields; what is missing is told with the option that names it."""

from __future__ import annotations

import pytest

from infergy.errors import DataError
from infergy.workload.formats import Columns, Layout
from infergy.workload.recognise import settle
from raising import raises

BURSTGPT = ["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"]
SESSIONS = [*BURSTGPT[:1], "Session ID", "Elapsed time", *BURSTGPT[1:]]


def settled(
    fields: list[str], wanted: str | None = None, columns: Columns | None = None, records: bool = False
) -> Layout:
    return settle(fields, source="log", records=records, wanted=wanted, columns=columns)


def tokens_of(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (usage,) = layout.usages
    return usage.input, usage.output


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (["TIMESTAMP", "ContextTokens", "GeneratedTokens"], "azure"),
        (BURSTGPT, "burstgpt"),
        (SESSIONS, "burstgpt"),
        (["timestamp", "input_length", "output_length", "hash_ids"], "mooncake"),
        (["id", "usage.prompt_tokens", "usage.completion_tokens"], "openai"),
        (["id", "usage.input_tokens", "usage.output_tokens"], "openai"),
        (["response.body.usage.prompt_tokens", "response.body.usage.completion_tokens"], "openai"),
        (["prompt_tokens", "completion_tokens"], "openai"),
        (["input_tokens", "output_tokens"], "tokens"),
    ],
)
def test_a_format_is_recognised_from_its_fields(fields: list[str], name: str) -> None:
    assert settled(fields).name == name


def test_a_table_keeps_only_the_optional_columns_it_has_and_records_keep_all() -> None:
    fields = ["usage.prompt_tokens", "usage.completion_tokens"]
    assert settled(fields).cached == ()
    assert {"usage.prompt_tokens_details.cached_tokens", "usage.cached_tokens"} < set(
        settled(fields, records=True).cached
    )


def test_mooncake_times_are_milliseconds_unless_told_otherwise() -> None:
    fields = ["timestamp", "input_length", "output_length"]
    assert settled(fields).time_unit_s == 1e-3
    assert settled(fields, columns=Columns(time_unit_s=1.0)).time_unit_s == 1.0


def test_named_columns_go_before_the_formats() -> None:
    layout = settled([*BURSTGPT, "hits"], columns=Columns(output="Total tokens", cached="hits"))
    assert (layout.name, *tokens_of(layout)) == ("burstgpt", ("Request tokens",), ("Total tokens",))
    assert layout.cached == ("hits",)


def test_columns_that_are_all_named_need_no_format() -> None:
    layout = settled(["when", "p", "c"], columns=Columns(input="p", output="c", time="when"))
    assert (layout.name, *tokens_of(layout), layout.time) == ("columns", ("p",), ("c",), ("when",))


def test_naming_the_columns_of_a_format_is_naming_the_format() -> None:
    columns = Columns(input="prompt_tokens", output="completion_tokens")
    layout = settled(["created", "prompt_tokens", "completion_tokens", "cached_tokens"], columns=columns)
    assert (layout.name, layout.cached, layout.time) == ("openai", ("cached_tokens",), ("created",))


def test_names_that_a_terminal_does_not_show_are_quoted_and_long_ones_cut() -> None:
    with pytest.raises(DataError, match=r"found: ContextTokens, ' GeneratedTokens', '\\x07', x{80}…\."):
        settled(["ContextTokens", " GeneratedTokens", "\a", "x" * 5000])


def test_unknown_columns_are_told_with_what_was_found_what_is_wanted_and_the_options() -> None:
    with pytest.raises(DataError) as told:
        settled(["a", "b"])
    for part in ("found: a, b", "--input-column", "--output-column"):
        assert part in str(told.value)
    with pytest.raises(DataError, match="Expected: ContextTokens and GeneratedTokens"):
        settled(["a", "b"], "azure")


def test_only_the_missing_column_is_asked_for() -> None:
    with pytest.raises(DataError) as told:
        settled(["a", "b"], columns=Columns(input="a"))
    assert "--output-column" in str(told.value)
    assert "--input-column" not in str(told.value)


def test_a_misnamed_column_is_told_with_the_nearest_and_its_option() -> None:
    with raises("no-column", column="request tokens", option="--input-column"):
        settled(BURSTGPT, columns=Columns(input="request tokens"))


def test_a_named_format_wants_its_own_columns() -> None:
    with raises("unknown-format"):
        settled(BURSTGPT, "mooncake")
    with raises("unknown-format"):
        settled(BURSTGPT, "columns")


def test_an_unknown_format_is_told_with_the_nearest() -> None:
    with raises("unknown-name", option="--format", name="burst-gpt"):
        settled(BURSTGPT, "burst-gpt")


@pytest.mark.parametrize("unit", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_unit_is_a_positive_number_of_seconds(unit: float) -> None:
    with raises("bad-value", option="--time-unit"):
        Columns(time_unit_s=unit)


def test_many_fields_are_not_all_printed() -> None:
    with pytest.raises(DataError, match="and 80 more"):
        settled([f"c{i}" for i in range(100)])
