"""JSON Schemas of infergy's files and of what verbs print as ``--json``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from infergy.errors import UsageError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
GRID_SCHEMA = "infergy.grid/1"
"""A grid names no schema of its own: a human writes it."""
SCHEMAS = {
    "answers": "cli.output ANSWERS_SCHEMA Answers",
    "breakdown": "estimates.breakdown BREAKDOWN_SCHEMA Breakdown",
    "ceiling": "estimates.paper CEILING_SCHEMA PaperEstimate",
    "check": "records.check CHECK_SCHEMA Checked",
    "compare": "quality.compare COMPARE_SCHEMA Comparison",
    "doctor": "measure.doctor DOCTOR_SCHEMA Diagnosis",
    "error": "cli.failure ERROR_SCHEMA ErrorReport",
    "estimate": "estimates.estimate ESTIMATE_SCHEMA TraceEstimate",
    "grid": "",
    "histogram": "workload.bins HISTOGRAM_SCHEMA Histogram",
    "measurement": "records SCHEMA Measurement",
    "merge": "records.merge MERGE_SCHEMA Merged",
    "meter": "records.behaviour BEHAVIOUR_SCHEMA MeterBehaviour",
    "next": "estimates.next_cells NEXT_SCHEMA NextCells",
    "phases": "quality.phases PHASES_SCHEMA PhaseReport",
    "plan": "records PLAN_SCHEMA Plan",
    "recommend": "estimates.recommendation RECOMMEND_SCHEMA Recommendation",
    "replay": "estimates.replay REPLAY_SCHEMA Replay",
    "studies": "measure.studies STUDIES_SCHEMA StudyList",
    "timeline": "report.power_chart TIMELINE_SCHEMA Picture",
    "trace": "workload.summary TRACE_SCHEMA TraceSummary",
    "watch": "watch.live WATCH_SCHEMA Live",
    "window": "measure.block BLOCK_SCHEMA BlockEnergy",
}
"""Where the version and the class of a published format are, under `infergy`."""
RENAMED = {"comparison": "compare", "paper": "ceiling", "recommendation": "recommend", "waterfall": "breakdown"}


def make_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a format, made from the classes that read and write it.

    Raises:
        UsageError: There is no such format.
    """
    if name in RENAMED:
        instead = f"infergy list schemas {RENAMED[name]}"
        message = f"the schema {name} has the name of its verb now. Type: {instead}"
        raise UsageError(message, code="retired-command", command=f"list schemas {name}", instead=instead)
    if name not in SCHEMAS:
        raise UsageError.unknown("schema", name, SCHEMAS, code="unknown-name")
    if name == "grid":
        from infergy.measure.grid import Grid

        return {"$schema": DIALECT, "$id": GRID_SCHEMA} | Grid.model_json_schema()
    from pydantic import TypeAdapter

    module, tag, record = SCHEMAS[name].split()
    home = import_module(f"infergy.{module}")
    version = getattr(home, tag)
    made = TypeAdapter(getattr(home, record)).json_schema()
    # The tag distinguishes the schemas of files: it is required and has this value.
    made["properties"]["schema"] = {"const": version, "title": "Schema", "type": "string"}
    made["required"] = [*made.get("required", []), "schema"]
    if name == "histogram":
        from infergy.workload.bins import HISTOGRAM_SUMS

        made["properties"] |= {key: {"type": "integer", "minimum": 0} for key in HISTOGRAM_SUMS}
        made["required"] += HISTOGRAM_SUMS
    for one in (made, *made.get("$defs", {}).values()):
        # As `infergy.records.codec` reads them: an unknown key is an error.
        if "properties" in one:
            one["additionalProperties"] = False
    return {"$schema": DIALECT, "$id": version} | made
