"""``python -m infergy.measure PLAN.json -o ROWS.jsonl``: the same sweep on a node with numpy, pynvml and the engine.

For GPU nodes where nothing can be installed: copy the source tree and a plan (``infergy measure GRID.toml --plan
PLAN.json``), set PYTHONPATH to its ``src``, and run this. `infergy measure` does the same with a progress bar.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from infergy.errors import DEBUG, EXIT_SOME_FAILED, InfergyError, UsageError
from infergy.measure.gpu_settings import OPTIONS
from infergy.measure.replicas import measure_replicas, split_replicas
from infergy.measure.sweep import describe, kept_rows, sweep
from infergy.measure.validation import load_plan
from infergy.measure.worker import NVML
from infergy.processes import EndedError, end_by_exception
from infergy.units import printable


def main(arguments: list[str] | None = None) -> int:
    """Run a plan; returns the exit code: 0 good, 4 some cells failed, 130 interrupted, an error's own otherwise."""
    parser = argparse.ArgumentParser(prog="python -m infergy.measure", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="a plan, made by: infergy measure GRID.toml --plan PLAN.json")
    parser.add_argument("-o", "--output-file", type=Path, required=True, help="the store; resumed if it exists")
    parser.add_argument("--simulate", action="store_true", help="use the simulated GPU (needs numpy)")
    parser.add_argument("--meter", default=NVML, help=f"who reads joules: {NVML} or a plug-in [default: {NVML}]")
    parser.add_argument("--retry-failed", action="store_true", help="try cells again that failed before")
    parser.add_argument(DEBUG, action="store_true", help="show the stack of an error in infergy itself")
    for name, option in OPTIONS.items():
        parser.add_argument(
            option,
            action="append_const",
            dest="may_set",
            const=name,
            default=[],
            help=f"let the plan set {name} of GPUs (root)",
        )
    typed = vars(parser.parse_args(arguments))
    path, store, is_debugged = typed.pop("plan"), typed.pop("output_file"), typed.pop("debug")
    end_by_exception()
    try:
        return EXIT_SOME_FAILED if _measure(path, store, **typed) else 0
    except InfergyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, EndedError) as end:
        print(f"{f'ended by {end}' if str(end) else 'interrupted'}; {kept_rows(store)}", file=sys.stderr)
        return getattr(end, "exit_code", 130)
    except Exception as error:
        if is_debugged:
            raise
        bug = InfergyError.bug(error, [*parser.prog.split(), *(sys.argv[1:] if arguments is None else arguments)])
        print(f"error: {bug}", file=sys.stderr)
        return bug.exit_code


def _measure(path: Path, store: Path, *, may_set: list[str], **options: Any) -> int:
    """Measure a plan; returns how many cells have failed."""
    plan = load_plan(path)
    if options["simulate"] and options["meter"] != NVML:
        raise UsageError.conflict(
            {"--simulate": True, "--meter": options["meter"]}, "leave out --meter, for one is simulated"
        )
    parts = split_replicas(plan, simulate=options["simulate"], meter=options["meter"])
    if len(parts) > 1:
        return measure_replicas(parts, store, **options)
    failed = 0
    for event in sweep(plan, store, may_set=may_set, **options):
        if text := describe(event):
            print(printable(text), file=sys.stderr, flush=True)
        failed += event.row is not None and not event.row.is_ok
    return failed


if __name__ == "__main__":
    sys.exit(main())
