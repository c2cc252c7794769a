"""Who reads energy: a meter is a set of monotone energy counters, one per GPU, and knows nothing of tokens."""

from infergy.meters.meter import Clock, Meter, Power, PowerMeter, SystemClock, powers_of
from infergy.meters.registry import open_meter
from infergy.meters.ticks import LATE_S, Edge, next_tick, settle, sharp_tick

__all__ = [
    "LATE_S",
    "Clock",
    "Edge",
    "Meter",
    "Power",
    "PowerMeter",
    "SystemClock",
    "next_tick",
    "open_meter",
    "powers_of",
    "settle",
    "sharp_tick",
]
