"""Joules of a workload: measured rows become a table, a table and a histogram become an estimate."""

from infergy.energy.estimate import Estimate, TraceEstimate, TraceFacts, estimate
from infergy.energy.ideal import Ideal, flops_ideal, roofline_ideal
from infergy.energy.surface import Surface, Value
from infergy.energy.table import EnergyTable, Point, load_rows, tables_of

__all__ = [
    "EnergyTable",
    "Estimate",
    "Ideal",
    "Point",
    "Surface",
    "TraceEstimate",
    "TraceFacts",
    "Value",
    "estimate",
    "flops_ideal",
    "load_rows",
    "roofline_ideal",
    "tables_of",
]
