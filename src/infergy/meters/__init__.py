"""Who reads joules: a meter is a set of monotone energy counters, one for each GPU, and knows nothing of tokens."""

from infergy.meters.protocol import Clock, Meter, Power, PowerMeter, SystemClock, open_meter, powers_of
from infergy.meters.window import LATE_S, Edge, next_tick, settle, sharp_tick

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
