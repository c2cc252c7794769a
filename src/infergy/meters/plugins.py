"""Meters that other packages bring: entry points of the group ``infergy.meters``.

A plug-in is a class with ``open(count)``, which returns a `Meter` of the first `count` GPUs that the engine will use
(docs/meters.md). One that is broken is told by its name and package, and hinders no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

from infergy.errors import InfergyError, MeterError, UsageError
from infergy.meters.protocol import METERS, Meter, Power
from infergy.records import GpuState

Answer = TypeVar("Answer")

GROUP = "infergy.meters"
PARTS = ("name", "scope", "is_simulated", "clock", "gpus", "read", "states", "facts", "close")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlugin:
    """A meter that a package offers.

    Attributes:
        name: As in ``--meter NAME``.
        package: The distribution that offers it.
        target: Module and class, ``infergy.meters.zeus:ZeusGpuMeter``; None where its entry points cannot be read.
        problem: Why it is of no use, as far as that shows without loading it; None where nothing does.
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
            message = f"{self}: {self.problem}"
            raise MeterError(message, code="bad-plugin", meter=self.name, package=self.package, reason=self.problem)
        entry = metadata.EntryPoint(name=self.name, value=self.target or "", group=GROUP)
        try:
            found = entry.load()
        except Exception as error:
            # A foreign module may raise anything while it is imported.
            message = (
                f"{self} cannot be loaded from {self.target}: {type(error).__name__}: {error}. "
                f"Repair or remove it: pip install -U {self.package}"
            )
            raise MeterError(
                message,
                code="bad-plugin",
                meter=self.name,
                package=self.package,
                reason=f"{type(error).__name__}: {error}",
            ) from error
        if not callable(getattr(found, "open", None)):
            message = f"{self}: {self.target} has no open(count); a meter is a class that has"
            raise MeterError(message, code="bad-plugin", meter=self.name, package=self.package, reason="no open(count)")
        return found

    def __str__(self) -> str:
        return f"meter {self.name!r} of package {self.package!r}"


def find_plugins() -> tuple[MeterPlugin, ...]:
    """All meters that installed packages offer, by name; none is loaded."""
    seen: set[str] = set()
    found: list[MeterPlugin] = []
    for distribution in metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        if text is None or f"[{GROUP}]" not in text:
            continue
        package = str(distribution.metadata["Name"] or "unnamed")
        # What stands twice on the path is imported from its first place.
        if package not in seen:
            seen.add(package)
            found += _plugins_of(distribution, package)
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.package)))


def open_plugin(name: str, count: int) -> Meter:
    """Open the plug-in `name` on the first `count` GPUs.

    Raises:
        UsageError: There is none, or two packages offer it.
        MissingError: What it needs is missing, as it says itself.
        MeterError: It is broken: it cannot be loaded, fails to open otherwise, or is no meter.
    """
    plugins = find_plugins()
    chosen = [plugin for plugin in plugins if plugin.name == name]
    if not chosen:
        unreadable = [f"{plugin}: {plugin.problem}." for plugin in plugins if plugin.problem]
        known = {*METERS, *(plugin.name for plugin in plugins if not plugin.problem)}
        raise UsageError.unknown("meter", name, known, " ".join(unreadable), code="unknown-name")
    if len(chosen) > 1:
        packages = " and ".join(plugin.package for plugin in chosen)
        message = f"two packages offer a meter {name!r}: {packages}. Uninstall all but one"
        raise UsageError(message, code="several-plugins", meter=name, packages=[plugin.package for plugin in chosen])
    (plugin,) = chosen
    opener = plugin.load().open
    try:
        meter: Meter = opener(count)
    except InfergyError:
        raise
    except Exception as error:
        # It was written by others and may raise anything.
        message = f"{plugin} does not open: {type(error).__name__}: {error}"
        raise MeterError(
            message,
            code="bad-plugin",
            meter=plugin.name,
            package=plugin.package,
            reason=f"{type(error).__name__}: {error}",
        ) from error
    lacks = [part for part in PARTS if not hasattr(meter, part)]
    if lacks:
        message = f"{plugin} is no meter: it lacks {', '.join(lacks)}. Check it: infergy.testing.check_meter"
        raise MeterError(message, code="bad-plugin", meter=plugin.name, package=plugin.package, lacks=lacks)
    return _PluginMeter(meter, plugin)


class _PluginMeter:
    """A plug-in's meter, whose errors are the instrument's.

    It was written by others and may raise anything; as an error of the meter that costs the cell at hand, not the
    engine's process.
    """

    def __init__(self, meter: Meter, plugin: MeterPlugin) -> None:
        self._meter, self._plugin = meter, plugin
        self.name, self.scope, self.is_simulated = meter.name, meter.scope, meter.is_simulated
        self.clock, self.gpus = meter.clock, meter.gpus
        powers: Callable[[], Mapping[str, Power]] | None = getattr(meter, "powers", None)
        if powers is not None:
            self.powers = partial(self._ask, "powers", powers)

    def read(self) -> Mapping[str, float]:
        """As the plug-in reads."""
        return self._ask("read", self._meter.read)

    def states(self) -> tuple[GpuState, ...]:
        """As the plug-in tells."""
        return self._ask("states", self._meter.states)

    def facts(self) -> Mapping[str, str]:
        """As the plug-in tells."""
        return self._ask("facts", self._meter.facts)

    def close(self) -> None:
        """Close the plug-in's meter."""
        self._ask("close", self._meter.close)

    def _ask(self, what: str, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except InfergyError:
            raise
        except Exception as error:
            message = (
                f"{self._plugin} failed in {what}(): {type(error).__name__}: {error}. "
                "Check it: infergy.testing.check_meter"
            )
            raise MeterError(
                message,
                code="meter-failed",
                meter=self._plugin.name,
                package=self._plugin.package,
                reason=f"{type(error).__name__}: {error}",
            ) from error


def _plugins_of(distribution: metadata.Distribution, package: str) -> Iterator[MeterPlugin]:
    try:
        entries = [entry for entry in distribution.entry_points if entry.group == GROUP]
    except Exception as error:  # noqa: BLE001 - the file was written by others; the parser's errors are undocumented
        problem = f"its entry_points.txt cannot be read ({type(error).__name__}: {error})"
        yield MeterPlugin(name="?", package=package, target=None, problem=problem)
        return
    for entry in entries:
        yield MeterPlugin(name=entry.name, package=package, target=entry.value)
