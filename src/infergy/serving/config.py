"""stub"""
from __future__ import annotations
from dataclasses import dataclass
from infergy.serving.scheduler import SchedulerLimits
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    limits: SchedulerLimits
    max_model_len: int
    cudagraph_capture_sizes: tuple[int, ...]
    def padded_sizes(self):
        table=[0]
        for size in self.cudagraph_capture_sizes:
            table += [size]*(size-len(table)+1)
        return table
