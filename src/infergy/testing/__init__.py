"""For those who write a meter, an engine, or tests of their own: rules to pass, a clock and a meter to replay.

    from infergy.testing import check_meter

    def test_my_meter():
        check_meter(lambda: MyMeter.open(1))

Standard library only. docs/meters.md shows it in use.
"""

from infergy.testing.engine_rules import ENGINE_RULES, check_engine
from infergy.testing.meter_rules import METER_RULES, check_meter
from infergy.testing.recording import FakeClock, RecordingMeter, ReplayMeter, record
from infergy.testing.rules import BrokenRuleError

__all__ = [
    "ENGINE_RULES",
    "METER_RULES",
    "BrokenRuleError",
    "FakeClock",
    "RecordingMeter",
    "ReplayMeter",
    "check_engine",
    "check_meter",
    "record",
]
