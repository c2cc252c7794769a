"""Calibrations by their former name."""

from infergy.cost.calibration import CALIBRATION_SCHEMA, Calibration, load_calibration, refuse_other

__all__ = ["CALIBRATION_SCHEMA", "Calibration", "load_calibration", "refuse_other"]
