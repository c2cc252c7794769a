"""Power limit and SM clock of the GPUs while an engine config is measured: set, and given back however a process ends.

    sweep ──── start ─▶ this process: remembers, sets, answers ──── waits for the end of a pipe ──── restores
      └── holds the other end of the pipe: closed when it leaves, crashes or is killed

The process that restores has set: it knows what was before, and outlives the sweep. Its session is its own, so that an
interrupt or the end of a terminal does not reach it. Nothing else here writes to a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from infergy.errors import InfergyError, MeterError, MissingError, UsageError
from infergy.meters.nvml import load_nvml, visible_handles
from infergy.processes import python_command
from infergy.records import EngineSetup
from infergy.units import WATTS_PER_MILLIWATT

OPTIONS: Mapping[str, str] = {"power_limit_w": "--set-power-limit", "sm_clock_mhz": "--set-clocks"}
"""What an engine config may set, and the option by which a person allows it."""
KINDS: Mapping[str, type[InfergyError]] = {kind.__name__: kind for kind in (MeterError, MissingError, UsageError)}
NEAREST = 3
"""So many supported clocks are named in an error."""


def check_allowed(setups: Iterable[EngineSetup], may_set: Iterable[str], *, simulate: bool) -> None:
    """Reject settings that are not allowed, or that no GPU would get.

    Args:
        setups: Of a plan.
        may_set: Fields of an engine config that may be set.
        simulate: Whether the GPU is simulated.

    Raises:
        UsageError: Such a setting.
    """
    for setup in setups:
        for name, value in setup.gpu_settings.items():
            if simulate:
                given = {"--simulate": True, name: value}
                raise UsageError.conflict(given, "a simulated GPU has no power limit or clock to set: leave one out")
            if name not in may_set:
                message = (
                    f"{setup.label} sets {name} = {value:g} of the GPU, which needs root and concerns all who use it: "
                    f"allow it with infergy measure {OPTIONS[name]} (restored afterwards), or leave {name} out"
                )
                raise UsageError(message, code="option-missing", option=OPTIONS[name], needed_by=[name])


@contextmanager
def hold_settings(setup: EngineSetup) -> Iterator[None]:
    """Set the GPUs of an engine config as it says, and restore them at the end of the block, or of this process.

    Raises:
        UsageError: A value that a GPU does not take.
        MissingError: No NVML, or too few GPUs.
        MeterError: A GPU cannot be set, or was not restored.
    """
    if not setup.gpu_settings:
        yield
        return
    process = subprocess.Popen(
        python_command("infergy.measure.gpu_settings"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        job = {"gpus": setup.tensor_parallel, "settings": setup.gpu_settings}
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline() or b'{"error": null}')
        if "error" in answer:
            raise _error(answer["error"])
        yield
    finally:
        process.stdin.close()
        rest = process.stdout.read()
        process.stdout.close()
        if process.wait():
            typed = "nvidia-smi -q -d POWER,CLOCK; nvidia-smi -pl WATTS; nvidia-smi -rgc"
            reason = rest.decode().strip() or f"its process ended with {process.returncode}"
            message = f"GPUs may not be as they were before {setup.label}: {reason}. See and set them: {typed}"
            raise MeterError(message, code="not-restored", setup=setup.label, reason=reason)


def _error(answer: Mapping[str, Any] | None) -> InfergyError:
    if answer is None:
        return MeterError("the process that sets GPUs ended before it had", code="not-set", reason="ended")
    return KINDS[answer["kind"]](answer["message"], code=answer["code"], **answer["fields"])


class _Boards:
    """The GPUs of an engine config, as NVML sets them."""

    def __init__(self, nvml: Any, handles: Mapping[str, Any]) -> None:
        self._nvml, self._handles = nvml, handles
        self._limits_mw: dict[str, int] = {}
        self._locked: list[str] = []

    def set(self, name: str, value: float) -> None:
        """Set it on each GPU, once all of them take it.

        Raises:
            UsageError: One does not.
            MeterError: It cannot be set.
        """
        check, apply = {
            "power_limit_w": (self._check_limit, self._set_limit),
            "sm_clock_mhz": (self._check_clock, self._set_clock),
        }[name]
        for act in (check, apply):
            for uuid, handle in self._handles.items():
                try:
                    act(uuid, handle, value)
                except self._nvml.NVMLError as error:
                    message = (
                        f"{name} = {value:g} cannot be set on {uuid}: {error}. It needs root, and a GPU that is not "
                        f"another's: sudo, or leave {name} out"
                    )
                    raise MeterError(message, code="not-set", uuid=uuid, option=name, reason=str(error)) from error

    def restore(self) -> list[str]:
        """Set each GPU as it was; what failed."""
        failed = []
        for act, uuids in ((self._reset_limit, self._limits_mw), (self._unlock, self._locked)):
            for uuid in uuids:
                try:
                    act(uuid, self._handles[uuid])
                except self._nvml.NVMLError as error:
                    failed.append(f"{uuid}: {error}")
        return failed

    def _check_limit(self, uuid: str, handle: Any, value: float) -> None:
        limits = self._nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        low_w, high_w = (limit * WATTS_PER_MILLIWATT for limit in limits)
        if not low_w <= value <= high_w:
            raise UsageError.bad_value("power_limit_w", value, f"{low_w:g} to {high_w:g} W of {uuid}", uuid=uuid)

    def _set_limit(self, uuid: str, handle: Any, value: float) -> None:
        # Noted before it is changed: what fails half-way is restored too.
        self._limits_mw[uuid] = self._nvml.nvmlDeviceGetPowerManagementLimit(handle)
        self._nvml.nvmlDeviceSetPowerManagementLimit(handle, round(value / WATTS_PER_MILLIWATT))

    def _reset_limit(self, uuid: str, handle: Any) -> None:
        if self._nvml.nvmlDeviceGetPowerManagementLimit(handle) != self._limits_mw[uuid]:
            self._nvml.nvmlDeviceSetPowerManagementLimit(handle, self._limits_mw[uuid])

    def _check_clock(self, uuid: str, handle: Any, value: float) -> None:
        memory = max(self._nvml.nvmlDeviceGetSupportedMemoryClocks(handle))
        clocks = self._nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory)
        if value not in clocks:
            nearest = sorted(sorted(clocks, key=lambda clock: abs(clock - value))[:NEAREST])
            expected = f"a clock that {uuid} supports, as {', '.join(map(str, nearest))}"
            raise UsageError.bad_value("sm_clock_mhz", value, expected, uuid=uuid, nearest=nearest)

    def _set_clock(self, uuid: str, handle: Any, value: float) -> None:
        self._nvml.nvmlDeviceSetGpuLockedClocks(handle, int(value), int(value))
        self._locked.append(uuid)

    def _unlock(self, uuid: str, handle: Any) -> None:
        self._nvml.nvmlDeviceResetGpuLockedClocks(handle)


def main() -> int:
    """Set what the first line on standard input says, answer, and restore when the input ends.

    Returns:
        0 if all is as it was, else 1, with the reason on standard output.
    """
    # The sweep may be interrupted or end; the GPUs are restored all the same.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.readline()
    if not line:
        return 0
    job, boards = json.loads(line), None
    try:
        nvml = load_nvml()
        boards = _Boards(nvml, visible_handles(nvml, job["gpus"]))
        for name, value in job["settings"].items():
            boards.set(name, value)
    except InfergyError as error:
        kind = next(name for name, kind in KINDS.items() if isinstance(error, kind))
        _say(json.dumps({"error": {"kind": kind, "code": error.code, "message": str(error), "fields": error.fields}}))
    else:
        _say(json.dumps({"set": job["settings"]}))
        sys.stdin.read()
    failed = [] if boards is None else boards.restore()
    _say("; ".join(failed))
    return 1 if failed else 0


def _say(text: str) -> None:
    # The other end may be gone: then nothing reads it, and the GPUs are restored all the same.
    with suppress(OSError):
        os.write(sys.stdout.fileno(), text.encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
