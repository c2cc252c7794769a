"""Units on screen: prefixes, and intervals in the unit of their value."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.units import format_interval, format_si, latency_scale, printable, scale_of, without_secrets


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0 J"),
        (999.4, "999 J"),
        (999.6, "1.00 kJ"),
        (-1.5e6, "-1.50 MJ"),
        (1e18, "1,000 PJ"),
        (2.5e-13, "0.250 pJ"),
        (0.0009996, "1.00 mJ"),
    ],
)
def test_a_prefix_leaves_one_to_three_digits_before_the_point(value: float, shown: str) -> None:
    assert format_si(value, "J") == shown


@given(st.floats(1e-12, 1e15))
def test_a_scale_restores_the_value(value: float) -> None:
    divisor, unit = scale_of(value, "J")
    number, shown_unit = format_si(value, "J").split()
    assert shown_unit == unit
    assert float(number.replace(",", "")) * divisor == pytest.approx(value, rel=6e-3)


def test_an_interval_has_the_unit_of_its_value() -> None:
    assert format_interval(1.02e6, 0.98e6, 1.06e6, scale_of(1.02e6, "J")) == "1.02 MJ (0.980 .. 1.06)"
    assert format_interval(900.0, 450.0, 1800.0, latency_scale(900.0)) == "15.0 min (7.50 .. 30.0)"
    assert format_interval(90.0, 45.0, 180.0, latency_scale(90.0)) == "90.0 s (45.0 .. 180)"
    assert latency_scale(3600.0) == (3600.0, "h")


@given(text=st.text())
def test_printable_text_controls_nothing_and_is_its_own_printable_form(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://u:p@ss/w@h:5432/db", "postgres://u:***@h:5432/db"),
        ("s3://AKIA:SECRET@bucket/x.parquet", "s3://AKIA:***@bucket/x.parquet"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://h/x?sig=a/b%3D&x=1", "https://h/x?sig=***&x=1"),
        ("sc://h:15002/;token=abc;x=1", "sc://h:15002/;token=***;x=1"),
        ("host=db password=hunter2 user=u", "host=db password=*** user=u"),
        ("AWS_SECRET_ACCESS_KEY=abc run", "AWS_SECRET_ACCESS_KEY=*** run"),
        *[
            (text, text)
            for text in (
                "https://h:8080/x@y",
                "s3://bucket/x@y.parquet",
                "input_tokens=5, max_num_batched_tokens=2048",
                "trace:azure-conv-2023@4",
                "a: b@c",
            )
        ],
    ],
)
def test_secrets_of_urls_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown
