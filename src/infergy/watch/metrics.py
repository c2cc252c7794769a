"""What a server's page of metrics says, in Prometheus' text format; names are in data/server_metrics.toml."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from infergy.errors import DataError

COUNTERS = (
    *("input_tokens", "cached_tokens", "computed_tokens", "output_tokens", "preemptions"),
    *("flops", "read_bytes", "write_bytes"),
)
GAUGES = ("running", "waiting", "kv_share")
HISTOGRAMS = ("ttft_s", "itl_s", "input_lengths", "output_lengths")
PARTS = ("_bucket", "_sum", "_count")
MODEL_LABELS = ("model_name", "model_id", "model")
STARTED = "process_start_time_seconds"
NO_METRICS = "vLLM and TGI publish them always, SGLang with --enable-metrics, llama.cpp with --metrics"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LARGEST = 2.0**63

Series = Mapping[tuple[str, ...], float]
"""Values by labels, each as ``label=value``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of metrics, by what they mean.

    Attributes:
        server: Which kind of server wrote it.
        models: Names of its models, as its labels have them.
        started_s: Unix time at which its process began; None where it does not say.
        counters: Values since the server began; a series for each model, engine or rank.
        gauges: Values now, summed over series; of the share of the KV cache, the largest.
        buckets: Of each histogram, counts up to each upper edge; `sums` the sum of all values.
        at_end: Counters that grow when a request ends, by all of its tokens.
        blanks: Why a value is not there, by its name here.
    """

    server: str
    models: tuple[str, ...]
    started_s: float | None
    counters: Mapping[str, Series]
    gauges: Mapping[str, float]
    buckets: Mapping[str, Mapping[float, float]]
    sums: Mapping[str, float]
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
    if text.lstrip()[:1] == "<":
        raise _bad(place, "a page of HTML, not metrics")
    if text and not text.endswith("\n"):
        raise _bad(place, "the page of metrics ends within a line: a part of an answer")
    names = {found[0] for line in text.splitlines() if (found := _NAME.match(line))}
    kinds = [
        (one, begin) for one in known_servers() for begin in one["begins"] if any(n.startswith(begin) for n in names)
    ]
    if not kinds:
        raise _bad(place, f"no metrics of a known server: {NO_METRICS}")
    if len({kind["name"] for kind, _ in kinds}) > 1:
        raise _bad(place, f"metrics of several kinds of server: {', '.join(kind['name'] for kind, _ in kinds)}")
    return _read(text, place, kinds[0][0], names, [begin for _, begin in kinds])


def _bad(place: str, reason: str) -> DataError:
    return DataError(f"{place}: {reason}", code="bad-metrics", place=place, reason=reason)


def _read(text: str, place: str, kind: Mapping[str, Any], names: set[str], begins: Iterable[str]) -> Page:
    chosen, blanks = {}, {}
    for meaning in (*COUNTERS, *GAUGES, *HISTOGRAMS):
        ending = "_bucket" if meaning in HISTOGRAMS else ""
        tried = [f"{begin}{name}" for name in kind.get(meaning, ()) for begin in begins]
        found = next((name for name in tried if f"{name.partition('{')[0]}{ending}" in names), None)
        if found is not None:
            chosen[meaning] = found
        else:
            blanks[meaning] = (
                f"{kind['name']} at {place} publishes no {tried[0]}" if tried else f"{kind['name']} has none"
            )
    samples = _samples(
        text, place, {STARTED, *(name.partition("{")[0] + end for name in chosen.values() for end in ("", *PARTS))}
    )
    page: dict[str, dict[str, Any]] = {"counters": {}, "gauges": {}, "buckets": {}, "sums": {}}
    for meaning, name in chosen.items():
        try:
            _take(page, meaning, name, samples)
        except ValueError as error:
            blanks[meaning] = f"{name} at {place} is {error}"
    plain = {
        name.partition("{")[0].removeprefix(begin): meaning for meaning, name in chosen.items() for begin in begins
    }
    labels = [label.partition("=") for series in samples.values() for key in series for label in key]
    started = samples.get(STARTED, {}).get(())
    return Page(
        server=kind["name"],
        models=tuple(sorted({value for label, _, value in labels if label in MODEL_LABELS and value})),
        started_s=started if started is not None and math.isfinite(started) else None,
        at_end=frozenset(plain[name] for name in kind["at_end"] if name in plain),
        blanks=blanks,
        **page,
    )


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


def _take(page: dict[str, dict[str, Any]], meaning: str, name: str, samples: Mapping[str, Series]) -> None:
    """Add a metric to a page.

    Raises:
        ValueError: A value of it cannot be meant.
    """
    name, _, label = name.rstrip("}").partition("{")
    if meaning in HISTOGRAMS:
        edges: dict[float, float] = {}
        for key, count in _checked(samples[f"{name}_bucket"]).items():
            edge = next((float(one[3:]) for one in key if one.startswith("le=")), math.nan)
            if math.isnan(edge):
                raise ValueError("a histogram with a bucket without edge")
            edges[edge] = edges.get(edge, 0.0) + count
        counts = [edges[edge] for edge in sorted(edges)]
        if counts != sorted(counts):
            raise ValueError("a histogram whose counts fall")
        page["buckets"][meaning] = dict(sorted(edges.items()))
        page["sums"][meaning] = sum(_checked(samples.get(f"{name}_sum", {})).values())
        return
    series = _checked({key: value for key, value in samples[name].items() if not label or label in key})
    if meaning in COUNTERS:
        page["counters"][meaning] = series
    else:
        page["gauges"][meaning] = max(series.values()) if meaning == "kv_share" else sum(series.values())


def _checked(series: Series) -> Series:
    wrong = [value for value in series.values() if not 0 <= value < _LARGEST]
    if wrong:
        raise ValueError(f"{wrong[0]:g}")
    return series
