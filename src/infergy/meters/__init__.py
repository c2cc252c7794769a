"""Who reads joules: a meter is a set of monotone energy counters, one for each GPU, and knows nothing of tokens."""

from infergy.meters.protocol import Clock, Meter, SystemClock, open_meter
from infergy.meters.window import Edge, next_tick

__all__ = ["Clock", "Edge", "Meter", "SystemClock", "next_tick", "open_meter"]
