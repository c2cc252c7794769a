"""`infergy schema`: the published JSON Schemas of infergy's files and of what it prints as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from infergy.errors import UsageError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NAMES = (
    "calibration",
    "calibration-window",
    "check",
    "comparison",
    "doctor",
    "error",
    "estimate",
    "grid",
    "histogram",
    "measurement",
    "merge",
    "meter",
    "next",
    "paper",
    "phases",
    "plan",
    "recommendation",
    "replay",
    "studies",
    "timeline",
    "trace",
    "waterfall",
    "window",
)
GRID_SCHEMA = "infergy.grid/1"
"""A grid names no schema of its own: a human writes it."""


def schema(
    name: Annotated[str, typer.Argument(metavar="NAME", help=", ".join(NAMES))],
) -> None:
    """Print the JSON Schema of a format: a measurement (one row of a store), a plan, a grid, or what a verb prints.

    Example: infergy schema measurement > measurement.schema.json
    """
    typer.echo(json.dumps(make_schema(name), indent=1))


def make_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a format, made from the classes that read and write it.

    Raises:
        UsageError: There is no such format.
    """
    if name not in NAMES:
        raise UsageError.unknown("schema", name, NAMES, code="unknown-name")
    if name == "grid":
        from infergy.measure.grid import Grid

        return _head(GRID_SCHEMA) | Grid.model_json_schema()
    from pydantic import TypeAdapter

    record, version = _record(name)
    made = TypeAdapter(record).json_schema()
    # The tag is what tells one file from another: it must be there and be this one.
    made["properties"]["schema"] = {"const": version, "title": "Schema", "type": "string"}
    made["required"] = [*made.get("required", []), "schema"]
    if name == "histogram":
        from infergy.workload.bins import HISTOGRAM_SUMS

        made["properties"] |= {key: {"type": "integer", "minimum": 0} for key in HISTOGRAM_SUMS}
        made["required"] += HISTOGRAM_SUMS
    for one in _objects(made):
        # As `infergy.records.codec` reads them: an unknown key is an error.
        one["additionalProperties"] = False
    return _head(version) | made


def _head(version: str) -> dict[str, Any]:
    return {"$schema": DIALECT, "$id": version}


def _objects(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (one for one in (made, *made.get("$defs", {}).values()) if "properties" in one)


def _record(name: str) -> tuple[type, str]:
    if name in ("histogram", "trace"):
        from infergy.workload.bins import HISTOGRAM_SCHEMA, Histogram
        from infergy.workload.summary import TRACE_SCHEMA, TraceSummary

        return (Histogram, HISTOGRAM_SCHEMA) if name == "histogram" else (TraceSummary, TRACE_SCHEMA)
    if name == "calibration":
        from infergy.cost.calibration import CALIBRATION_SCHEMA, Calibration

        return Calibration, CALIBRATION_SCHEMA
    if name == "calibration-window":
        from infergy.records.calibration import CALIBRATION_WINDOW_SCHEMA, CalibrationWindow

        return CalibrationWindow, CALIBRATION_WINDOW_SCHEMA
    if name == "check":
        from infergy.records.check import CHECK_SCHEMA, Checked

        return Checked, CHECK_SCHEMA
    if name == "comparison":
        from infergy.quality.compare import COMPARISON_SCHEMA, Comparison

        return Comparison, COMPARISON_SCHEMA
    if name == "doctor":
        from infergy.measure.doctor import DOCTOR_SCHEMA, Diagnosis

        return Diagnosis, DOCTOR_SCHEMA
    if name == "error":
        from infergy.cli.failure import ERROR_SCHEMA, ErrorReport

        return ErrorReport, ERROR_SCHEMA
    if name == "merge":
        from infergy.records.merge import MERGE_SCHEMA, Merged

        return Merged, MERGE_SCHEMA
    if name == "meter":
        from infergy.records.behaviour import BEHAVIOUR_SCHEMA, MeterBehaviour

        return MeterBehaviour, BEHAVIOUR_SCHEMA
    if name == "next":
        from infergy.estimates.next_cells import NEXT_SCHEMA, NextCells

        return NextCells, NEXT_SCHEMA
    if name == "window":
        from infergy.measure.block import BLOCK_SCHEMA, BlockEnergy

        return BlockEnergy, BLOCK_SCHEMA
    if name == "paper":
        from infergy.estimates.paper import PAPER_SCHEMA, PaperEstimate

        return PaperEstimate, PAPER_SCHEMA
    if name == "phases":
        from infergy.quality.phases import PHASES_SCHEMA, PhaseReport

        return PhaseReport, PHASES_SCHEMA
    if name == "recommendation":
        from infergy.estimates.recommend import RECOMMENDATION_SCHEMA, Recommendation

        return Recommendation, RECOMMENDATION_SCHEMA
    if name == "replay":
        from infergy.estimates.replay import REPLAY_SCHEMA, Replay

        return Replay, REPLAY_SCHEMA
    if name == "waterfall":
        from infergy.estimates.breakdown import WATERFALL_SCHEMA, Breakdown

        return Breakdown, WATERFALL_SCHEMA
    if name == "timeline":
        from infergy.report.power_chart import TIMELINE_SCHEMA, Picture

        return Picture, TIMELINE_SCHEMA
    if name == "studies":
        from infergy.measure.studies import STUDIES_SCHEMA, StudyList

        return StudyList, STUDIES_SCHEMA
    if name == "estimate":
        from infergy.estimates.results import ESTIMATE_SCHEMA, TraceEstimate

        return TraceEstimate, ESTIMATE_SCHEMA
    from infergy.records import PLAN_SCHEMA, SCHEMA, Measurement, Plan

    return (Measurement, SCHEMA) if name == "measurement" else (Plan, PLAN_SCHEMA)
