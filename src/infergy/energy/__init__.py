"""Joules of a workload: the table of measurements, the surface over it, the ideal, the estimate."""
