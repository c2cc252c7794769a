"""Meters by name: those of infergy, and those of other packages, by entry points of the group ``infergy.meters``.

A plug-in is a class with ``open(count)``, which returns a `Meter` of the first `count` GPUs that the engine will use
(docs/meters.md). A broken one is reported by its name and package, and does not hinder any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

from infergy.errors import InfergyError, MeterError, UsageError
from infergy.meters.meter import Meter, Power
from infergy.records import GpuState

Answer = TypeVar("Answer")

GROUP = "infergy.meters"
NVML, SIMULATED = "nvml", "simulated"
"""infergy's own; plug-ins of the same name are ignored."""

CHECK_HINT = "Check it: infergy.testing.check_meter"
PARTS = ("name", "scope", "is_simulated", "clock", "gpus", "read", "states", "facts", "close")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlugin:
    """A meter that a package offers.

    Attributes:
        name: As in ``--meter NAME``.
        package: The distribution that offers it.
        target: Module and class, ``infergy.meters.zeus:ZeusGpuMeter``; None where its entry points cannot be read.
        problem: Why it is unusable, as far as is known without loading it; None otherwise.
    """

    name: str
    package: str
    target: str | None
    problem: str | None = None

    def load(self) -> Any:
        """Its class.

        Raises:
            MeterError: It cannot be loaded, or has no ``open``; the message names the plug-in and its package.
        """
        if self.problem is not None:
            raise MeterError(f"{self}: {self.problem}", code="bad-plugin", **self.fields(self.problem))
        try:
            loaded = metadata.EntryPoint(name=self.name, value=self.target or "", group=GROUP).load()
        except Exception as error:
            # A foreign module may raise anything while it is imported.
            fix = f"Repair or remove it: pip install -U {self.package}"
            message = f"{self} cannot be loaded from {self.target}: {_reason(error)}. {fix}"
            raise MeterError(message, code="bad-plugin", **self.fields(_reason(error))) from error
        if not callable(getattr(loaded, "open", None)):
            message = f"{self}: a meter is a class with open(count), and {self.target} is not"
            raise MeterError(message, code="bad-plugin", **self.fields("no open(count)"))
        return loaded

    def fields(self, reason: str) -> dict[str, str]:
        """Fields of its errors."""
        return {"meter": self.name, "package": self.package, "reason": reason}

    def __str__(self) -> str:
        return f"meter {self.name!r} of package {self.package!r}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def find_plugins() -> tuple[MeterPlugin, ...]:
    """All meters that installed packages offer, by name; none is loaded."""
    plugins: dict[str, list[MeterPlugin]] = {}
    for distribution in metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        if text is not None and f"[{GROUP}]" in text:
            package = str(distribution.metadata["Name"] or "unnamed")
            # A package that is twice on the path is imported from its first place.
            if package not in plugins:
                plugins[package] = list(_plugins_of(distribution, package))
    every = (plugin for of_package in plugins.values() for plugin in of_package)
    return tuple(sorted(every, key=lambda plugin: (plugin.name, plugin.package)))


def _plugins_of(distribution: metadata.Distribution, package: str) -> Iterator[MeterPlugin]:
    try:
        entries = [entry for entry in distribution.entry_points if entry.group == GROUP]
    except Exception as error:  # noqa: BLE001 - the file was written by others; the parser's errors are undocumented
        problem = f"its entry_points.txt cannot be read ({_reason(error)})"
        yield MeterPlugin(name="?", package=package, target=None, problem=problem)
        return
    for entry in entries:
        yield MeterPlugin(name=entry.name, package=package, target=entry.value)


def open_meter(name: str, gpus: int | None) -> Meter:
    """Open the meter `name` on the first `gpus` visible GPUs: infergy's own, else a plug-in.

    Args:
        name: ``nvml``, the name of a plug-in, or the URL of an exporter's page.
        gpus: How many GPUs will be used; None opens all that are visible, of a plug-in the first.

    Raises:
        UsageError: No such meter, or two plug-ins of that name.
        MissingError: NVML, a GPU or a plug-in's requirement is missing.
        MeterError: A plug-in is no meter.
    """
    if name == NVML:
        from infergy.meters.nvml import NvmlMeter

        return NvmlMeter.open(gpus)
    if name.startswith(("http://", "https://")):
        from infergy.meters.exporter import ExporterMeter

        return ExporterMeter.open(name, gpus)
    if name == SIMULATED:
        message = "the simulated meter needs the simulated GPU that it shares with an engine: --simulate"
        raise UsageError(message, code="option-missing", option="--simulate", meter=name)
    return open_plugin(name, 1 if gpus is None else gpus)


def open_plugin(name: str, count: int) -> Meter:
    """Open the plug-in `name` on the first `count` GPUs.

    Raises:
        UsageError: There is none, or two packages offer it.
        MissingError: One of its requirements is missing, as it reports itself.
        MeterError: It is broken: it cannot be loaded, fails to open otherwise, or is no meter.
    """
    plugin = _find(name)
    opener = plugin.load().open
    try:
        meter: Meter = opener(count)
    except InfergyError:
        raise
    except Exception as error:
        # It was written by others and may raise anything.
        message = f"{plugin} does not open: {_reason(error)}"
        raise MeterError(message, code="bad-plugin", **plugin.fields(_reason(error))) from error
    lacks = [part for part in PARTS if not hasattr(meter, part)]
    if lacks:
        message = f"{plugin} is no meter: it lacks {', '.join(lacks)}. {CHECK_HINT}"
        raise MeterError(message, code="bad-plugin", **plugin.fields(f"lacks {', '.join(lacks)}"))
    return _PluginMeter(meter, plugin)


def _find(name: str) -> MeterPlugin:
    plugins = find_plugins()
    named = [plugin for plugin in plugins if plugin.name == name]
    if not named:
        unreadable = [f"{plugin}: {plugin.problem}." for plugin in plugins if plugin.problem]
        known = {NVML, SIMULATED, *(plugin.name for plugin in plugins if not plugin.problem)}
        raise UsageError.unknown("meter", name, known, " ".join(unreadable), code="unknown-name")
    if len(named) > 1:
        packages = [plugin.package for plugin in named]
        message = f"two packages offer a meter {name!r}: {' and '.join(packages)}. Uninstall all but one"
        raise UsageError(message, code="several-plugins", meter=name, packages=packages)
    return named[0]


class _PluginMeter:
    """A plug-in's meter, whose errors become `MeterError`.

    It was written by others and may raise anything; as an error of the meter that costs the current cell, not the
    engine's process.
    """

    def __init__(self, meter: Meter, plugin: MeterPlugin) -> None:
        self._meter, self._plugin = meter, plugin
        self.name, self.scope, self.is_simulated = meter.name, meter.scope, meter.is_simulated
        self.clock, self.gpus = meter.clock, meter.gpus
        powers: Callable[[], Mapping[str, Power]] | None = getattr(meter, "powers", None)
        if powers is not None:
            self.powers = partial(self._call, "powers", powers)

    def read(self) -> Mapping[str, float]:
        return self._call("read", self._meter.read)

    def states(self) -> tuple[GpuState, ...]:
        return self._call("states", self._meter.states)

    def facts(self) -> Mapping[str, str]:
        return self._call("facts", self._meter.facts)

    def close(self) -> None:
        self._call("close", self._meter.close)

    def _call(self, name: str, method: Callable[[], Answer]) -> Answer:
        try:
            return method()
        except InfergyError:
            raise
        except Exception as error:
            message = f"{self._plugin} failed in {name}(): {_reason(error)}. {CHECK_HINT}"
            raise MeterError(message, code="meter-failed", **self._plugin.fields(_reason(error))) from error
