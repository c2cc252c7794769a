"""What a server's page of metrics says, in Prometheus' text format; names are in data/server_metrics.toml."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from infergy.errors import DataError

COUNTERS = (
    *("input_tokens", "cached_tokens", "computed_tokens", "output_tokens", "preemptions"),
    *("flops", "read_bytes", "write_bytes"),
)
GAUGES = ("running", "waiting", "kv_share")
HISTOGRAMS = ("ttft_s", "itl_s", "input_lengths", "output_lengths", "step_tokens")
MEANINGS = (*COUNTERS, *GAUGES, *HISTOGRAMS)
PARTS = ("", "_bucket", "_sum")
MODEL_LABELS = ("model_name", "model_id", "model")
STARTED = "process_start_time_seconds"
NO_METRICS = "vLLM and TGI publish them always, SGLang with --enable-metrics, llama.cpp with --metrics"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LARGEST = 2.0**63

Series = Mapping[tuple[str, ...], float]
"""Values by labels, each as ``label=value``."""


class Histogram(NamedTuple):
    """Counts of values up to each upper edge, and the sum of all values."""

    counts: Mapping[float, float]
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of metrics, by what they mean.

    Attributes:
        server: Which kind of server wrote it.
        models: Names of its models, as its labels have them.
        started_s: Unix time at which its process began; None where it does not say.
        counters: Values since the server began; a series for each model, engine or rank.
        gauges: Values now, summed over series; of the share of the KV cache, the largest.
        histograms: Since the server began, summed over series.
        at_end: Counters that grow when a request ends, by all of its tokens.
        blanks: Why a value is not there, by its name here.
    """

    server: str
    models: tuple[str, ...]
    started_s: float | None
    counters: Mapping[str, Series]
    gauges: Mapping[str, float]
    histograms: Mapping[str, Histogram]
    at_end: frozenset[str]
    blanks: Mapping[str, str]


@cache
def known_servers() -> tuple[Mapping[str, Any], ...]:
    """The servers of data/server_metrics.toml."""
    text = (resources.files("infergy") / "data" / "server_metrics.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)["server"])


def read_page(text: str, place: str) -> Page:
    """What a page says; a value that is missing or cannot be meant is blank, with its reason.

    Raises:
        DataError: It is no page of metrics, only a part of one, or of no known server.
    """
    names = {match[0] for line in text.splitlines() if (match := _NAME.match(line))}
    kind = _kind_of(text, names, place)
    tried = {meaning: _choose(kind, meaning, names) for meaning in MEANINGS}
    chosen = {meaning: found for meaning, found in tried.items() if found is not None}
    samples = _samples(text, place, {STARTED, *(f"{found.name}{part}" for found in chosen.values() for part in PARTS)})
    values: dict[str, Any] = {}
    blanks = {
        meaning: f"{kind['name']} at {place} publishes no {kind.get(meaning, ('such value',))[0]}"
        for meaning in tried.keys() - chosen.keys() - {"step_tokens"}
    }
    for meaning, found in chosen.items():
        try:
            values[meaning] = _value(meaning, found, samples)
        except ValueError as error:
            blanks[meaning] = f"{found.name} at {place} is {error}"
    labels = (label.partition("=") for series in samples.values() for key in series for label in key)
    counters, gauges, histograms = (
        {meaning: values[meaning] for meaning in own if meaning in values} for own in (COUNTERS, GAUGES, HISTOGRAMS)
    )
    return Page(
        server=kind["name"],
        models=tuple(sorted({value for label, _, value in labels if label in MODEL_LABELS and value})),
        started_s=next(filter(math.isfinite, samples.get(STARTED, {}).values()), None),
        counters=counters,
        gauges=gauges,
        histograms=histograms,
        at_end=frozenset(meaning for meaning, found in chosen.items() if found.plain in kind["at_end"]),
        blanks=blanks,
    )


def _kind_of(text: str, names: Collection[str], place: str) -> Mapping[str, Any]:
    """The kind of server that wrote a page.

    Raises:
        DataError: It is no whole page of metrics of one known server.
    """
    kinds = [kind for kind in known_servers() if any(name.startswith(tuple(kind["begins"])) for name in names)]
    if text.lstrip()[:1] == "<":
        raise _bad(place, "a page of HTML, not metrics")
    if text and not text.endswith("\n"):
        raise _bad(place, "the page of metrics ends within a line: a part of an answer")
    if len(kinds) > 1:
        raise _bad(place, f"metrics of several kinds of server: {', '.join(kind['name'] for kind in kinds)}")
    if not kinds:
        raise _bad(place, f"no metrics of a known server: {NO_METRICS}")
    return kinds[0]


def _bad(place: str, reason: str) -> DataError:
    return DataError(f"{place}: {reason}", code="bad-metrics", place=place, reason=reason)


class _Chosen(NamedTuple):
    """A metric of a page: its name, also without the server's beginning, and the label of the series that count."""

    name: str
    plain: str
    label: str


def _choose(kind: Mapping[str, Any], meaning: str, names: Collection[str]) -> _Chosen | None:
    """The first of the names that a server has for a meaning that is on the page."""
    part = "_bucket" if meaning in HISTOGRAMS else ""
    for text in kind.get(meaning, ()):
        plain, _, label = text.rstrip("}").partition("{")
        for name in (f"{begin}{plain}" for begin in kind["begins"]):
            if f"{name}{part}" in names:
                return _Chosen(name, plain, label)
    return None


def _samples(text: str, place: str, wanted: set[str]) -> dict[str, dict[tuple[str, ...], float]]:
    """Values of the wanted names by their labels; all other lines are left out, unread."""
    from prometheus_client.parser import text_string_to_metric_families

    lines = [line for line in text.splitlines() if (name := _NAME.match(line)) and name[0] in wanted]
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                key = tuple(sorted(f"{label}={value}" for label, value in sample.labels.items()))
                samples.setdefault(sample.name, {})[key] = float(sample.value)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _bad(place, f"metrics that cannot be read ({error})") from error
    return samples


def _value(meaning: str, chosen: _Chosen, samples: Mapping[str, Series]) -> Any:
    """The value of a metric: series of a counter, a number, or a histogram.

    Raises:
        ValueError: It cannot be meant.
    """
    if meaning in HISTOGRAMS:
        counts: dict[float, float] = {}
        for key, count in _checked(samples[f"{chosen.name}_bucket"]).items():
            edge = float(next((one[3:] for one in key if one.startswith("le=")), "nan"))
            counts[edge] = counts.get(edge, 0.0) + count
        counts = dict(sorted(counts.items()))
        if any(map(math.isnan, counts)) or [*counts.values()] != sorted(counts.values()):
            raise ValueError("a histogram without edges, or whose counts fall")
        return Histogram(counts, sum(_checked(samples.get(f"{chosen.name}_sum", {})).values()))
    series = {key: value for key, value in samples[chosen.name].items() if not chosen.label or chosen.label in key}
    if meaning in COUNTERS:
        return _checked(series)
    return (max if meaning == "kv_share" else sum)(_checked(series).values())


def _checked(series: Series) -> Series:
    wrong = [value for value in series.values() if not 0 <= value < _LARGEST]
    if wrong:
        raise ValueError(f"{wrong[0]:g}")
    return series
