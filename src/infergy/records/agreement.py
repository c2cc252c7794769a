"""Which facts of two rows must agree for their energy to be compared.

Standard library only.

    IDENTITY     what a row is of: other values are other tables
    MUST         rows of one engine config that differ here may not stand in one table: a surface over both would
                 compare drivers or power limits, not lengths
    SHOULD       rows of one engine config that differ here may: a second GPU of the same kind takes about 2 % more or
                 less (docs/measurements.md), another host drives a host-bound engine at another speed

All else in the environment of a row may differ: the versions of infergy and of Python, which neither launch
kernels nor read counters, and what an engine determines at each loading (`VOLATILE_OPTIONS`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from infergy.records.engine_setup import RANDOM_WEIGHTS
from infergy.records.environment import Environment, Rescaled
from infergy.records.measurement import Measurement

VOLATILE_OPTIONS = frozenset({"kv_cache_blocks", "gpu_uuids", "decoding"}) | {
    "async_scheduling",
    "chunked_prefill",
    "long_prefill_token_threshold",
    "cuda_graph_sizes",
}
"""What an engine reports that differs from one loading, or one GPU, to the next; decoding is the load's now. The four
below follow from vLLM's version and the other options, and rows from before they were reported lack them."""


@dataclass(frozen=True, slots=True, eq=False)
class Fact:
    """A fact of a row's environment.

    Attributes:
        read: Its values in a row, by a name for each; empty if unknown.
    """

    name: str
    read: Callable[[Measurement], Mapping[str, str]]

    def of(self, row: Measurement) -> str:
        """Its value in words, or ``unknown``."""
        return ", ".join(f"{key} {value}".strip() for key, value in self.read(row).items()) or "unknown"


def _one(value: object) -> dict[str, str]:
    return {} if value is None else {"": str(value)}


def _limits(row: Measurement) -> dict[str, str]:
    limits = [gpu.power_limit_w for gpu in row.environment.gpus]
    return _one(", ".join("unknown" if limit is None else f"{limit:g} W" for limit in limits)) if any(limits) else {}


def _each_limit(row: Measurement) -> dict[str, str]:
    limits = {gpu.power_limit_w for gpu in row.environment.gpus if gpu.power_limit_w is not None}
    return _one(", ".join(f"{limit:g} W" for limit in sorted(limits)) or None)


def _options(row: Measurement) -> dict[str, str]:
    return {name: str(value) for name, value in row.environment.engine.items() if name not in VOLATILE_OPTIONS}


WEIGHTS = Fact("weights", lambda row: _one(row.environment.weights))

IDENTITY = (
    Fact("GPU", lambda row: _one(row.environment.gpus[0].name if row.environment.gpus else None)),
    WEIGHTS,
    Fact("simulated", lambda row: _one(row.simulated)),
)

SCOPE = Fact("scope", lambda row: _one(row.environment.scope))
"""Must agree in all rows of a store, so that energy of a GPU board and of a CPU package are not mixed up."""

MUST = (
    SCOPE,
    Fact("driver", lambda row: _one(row.environment.driver)),
    Fact("CUDA", lambda row: _one(row.environment.cuda)),
    Fact("power limit", _limits),
    Fact("package", lambda row: dict(sorted(row.environment.packages.items()))),
    Fact("engine option", _options),
    # The energy of a rescaled row stands for another GPU than that of its neighbours.
    Fact("rescaling", lambda row: {} if row.rescaled is None else _one(str(row.rescaled))),
)

SHOULD = (
    Fact("GPU UUID", lambda row: _one(", ".join(gpu.uuid for gpu in row.environment.gpus) or None)),
    Fact("meter", lambda row: _one(row.environment.meter)),
    Fact("CPU", lambda row: _one(row.environment.cpu)),
    Fact("system", lambda row: _one(row.environment.platform)),
)

SAME_KIND = (*IDENTITY, *(fact for fact in MUST if fact.name in ("scope", "power limit", "rescaling")))
"""Across which no ratio of a few cells holds: cells below a power limit predict none that reach it."""

BESIDE = (
    *(fact for fact in (*IDENTITY, *MUST) if fact.name in ("GPU", "simulated", "scope", "driver", "CUDA")),
    Fact("power limit", _each_limit),
    *(fact for fact in MUST if fact.name == "rescaling"),
)
"""Rows of different engine configs that differ here may not stand in one figure: it would show the difference of
drivers or boards. The limit is that of each board, however many there are."""

ONE_CHANGE = (*BESIDE, *(fact for fact in MUST if fact.name == "package"))
"""What must agree between two configs of one engine for the ratio of their cells to show one change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One fact, such as ``package vllm``, that differs between two rows; a value is None if unknown."""

    fact: str
    was: str | None
    now: str | None

    def __str__(self) -> str:
        return f"{self.fact}: {self.was or 'unknown'} against {self.now or 'unknown'}"


def differences(first: Measurement, other: Measurement, facts: Iterable[Fact]) -> list[Difference]:
    """The facts that differ between two rows, in the order of `facts`."""
    found: list[Difference] = []
    for fact in facts:
        was, now = fact.read(first), fact.read(other)
        found += [
            Difference(fact=f"{fact.name} {key}".strip(), was=was.get(key), now=now.get(key))
            for key in {**was, **now}
            if was.get(key) != now.get(key)
        ]
    return found


_POOLED = (*IDENTITY, *MUST)
_OF_NOISE = tuple(fact for fact in _POOLED if fact is not WEIGHTS)
MOST_KEYS = 10_000
_KEYS: dict[tuple[object, ...], tuple[Environment, Rescaled | None, tuple[str, ...]]] = {}
"""Keys by the identity of what the facts are read from, which is kept, so that no other object gets its identity."""


def key_of(row: Measurement, facts: tuple[Fact, ...]) -> tuple[str, ...]:
    """The facts as something that can be hashed: equal for rows that agree in all of them."""
    # Thousands of rows of a store share their environment (`Measurement.from_json`).
    place = (facts, row.simulated, id(row.environment), id(row.rescaled))
    if place not in _KEYS:
        if len(_KEYS) >= MOST_KEYS:
            _KEYS.clear()
        _KEYS[place] = (row.environment, row.rescaled, tuple(fact.of(row) for fact in facts))
    return _KEYS[place][2]


def pool_key(row: Measurement) -> tuple[object, ...]:
    """Equal for rows whose energy may be pooled: of one engine config, and alike in all that must agree."""
    return row.cell.setup, *key_of(row, _POOLED)


def spread_key(row: Measurement) -> tuple[object, ...]:
    """Equal for rows whose noise is pooled: as `pool_key`, whatever the weights; online and offline apart."""
    setup = row.cell.setup
    setup = setup if setup.weights == RANDOM_WEIGHTS else replace(setup, weights=RANDOM_WEIGHTS)
    return setup, row.cell.load.is_online, *key_of(row, _OF_NOISE)
