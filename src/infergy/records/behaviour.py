"""How the meter of one GPU behaves, as `infergy doctor --meter` found it: one JSON object, kept beside the rows.

History: infergy.meter/1, the first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from infergy.files import check_output, write_file
from infergy.records.codec import to_json
from infergy.records.environment import GpuIdentity

BEHAVIOUR_SCHEMA = "infergy.meter/1"
_KIND = "result of infergy doctor --meter", f'"{BEHAVIOUR_SCHEMA.partition("/")[0]}/'


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterBehaviour:
    """The energy counter; a figure is None where `reasons` of the whole says why.

    Attributes:
        period_s: Median time between two ticks, under full load and while the load steps.
        period_low_s: The 5th percentile of these times; `period_high_s` the 95th.
        intervals: How many there were.
        is_regular: Whether both percentiles are within a tenth of the median, but for the gap between two reads.
        read_gap_s: The longest time between two reads before a tick: no stamp is later than that.
        step_j: The greatest common divisor of all increments.
        delay_s: Mean time from a load step until it shows. A counter that looks only at the end of each period shows
            steps before they are whole: half of what it skips is missing here.
        sampled_share: About which share of the time it looks, from the scatter of that delay.
    """

    period_s: float | None
    period_low_s: float | None
    period_high_s: float | None
    intervals: int
    is_regular: bool | None
    read_gap_s: float | None
    step_j: float | None
    delay_s: float | None
    sampled_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldBehaviour:
    """One power field.

    Attributes:
        period_s: Median time between two changes under full load; None if it changes at each read, or never.
        delay_s: Time from a load step until the field begins to move, the wait for its next change left out.
        rise_s: Time from a tenth to nine tenths of the step; the rise of the board's own power is in it.
        averaged_s: The length of the mean that rises so: `rise_s` over 0.8.
        sampled_share: Share of the time that the field samples, at most: `averaged_s` over `period_s`; of instant
            power only.
    """

    period_s: float | None
    delay_s: float | None
    rise_s: float | None
    averaged_s: float | None
    sampled_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Counter and instant power under one load, over the same time, from a tick to a tick.

    Attributes:
        load: ``idle``, ``half``, ``full``, or ``wave``, which is on for `half_period_s` and off for as long.
        duration_s: Seconds compared.
        counter_w: Mean power by the counter.
        instant_w: Mean power by the integral of instant power, trapezoids with interpolated edges.
        ratio: `counter_w` over `instant_w`.
    """

    load: str
    half_period_s: float | None
    duration_s: float
    counter_w: float
    instant_w: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterBehaviour:
    """How counter and power fields of one GPU follow a load that is known.

    Attributes:
        driver: Version of its driver, and `cuda` the newest CUDA that it supports; None where unknown.
        load: What made the load; None where there was none.
        agreements: One for each load.
        reasons: Why figures are missing, a sentence each.
    """

    measured_utc: str
    infergy: str
    gpu: GpuIdentity
    driver: str | None
    cuda: str | None
    meter: str
    scope: str
    simulated: bool
    load: str | None
    counter: CounterBehaviour
    instant_power: FieldBehaviour
    average_power: FieldBehaviour
    agreements: tuple[Agreement, ...]
    reasons: tuple[str, ...] = ()
    schema: str = BEHAVIOUR_SCHEMA

    def save(self, path: Path) -> None:
        """Write it to `path`.

        Raises:
            UsageError: The file cannot be written, or holds something else, which would be lost.
        """
        write_file(path, json.dumps(to_json(self), indent=1, allow_nan=False) + "\n", *_KIND)

    @staticmethod
    def check_output(path: Path) -> None:
        """Reject a file before the behaviour is measured.

        Raises:
            UsageError: As `save`.
        """
        check_output(path, *_KIND)
