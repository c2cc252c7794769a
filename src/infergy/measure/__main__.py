"""``python -m infergy.measure PLAN.json -o ROWS.jsonl``: the same sweep on a node with numpy, pynvml and the engine.

For GPU nodes where nothing can be installed: copy the source tree and a plan (``infergy measure GRID.toml --plan
PLAN.json``), set PYTHONPATH to its ``src``, and run this. `infergy measure` does the same with a progress bar.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from infergy.errors import EXIT_SOME_FAILED, InfergyError, UsageError
from infergy.measure.gpu_settings import OPTIONS
from infergy.measure.replicas import measure_replicas, split_replicas
from infergy.measure.sweep import describe, kept_rows, sweep
from infergy.measure.worker import NVML
from infergy.processes import EndedError, end_by_exception
from infergy.records import Plan
from infergy.units import printable


def main(arguments: list[str] | None = None) -> int:
    """Run a plan; returns the exit code: 0 good, 4 some cells failed, 130 interrupted, an error's own otherwise."""
    parser = argparse.ArgumentParser(prog="python -m infergy.measure", description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, help="a plan, made by: infergy measure GRID.toml --plan PLAN.json")
    parser.add_argument("-o", "--output-file", type=Path, required=True, help="the store; resumed if it exists")
    parser.add_argument("--simulate", action="store_true", help="use the simulated GPU (needs numpy)")
    parser.add_argument("--meter", default=NVML, help=f"who reads joules: {NVML} or a plug-in [default: {NVML}]")
    parser.add_argument("--retry-failed", action="store_true", help="try cells again that failed before")
    for name, option in OPTIONS.items():
        parser.add_argument(
            option, action="append_const", dest="may_set", const=name, help=f"let the plan set {name} of GPUs (root)"
        )
    options = parser.parse_args(arguments)
    failed = 0
    end_by_exception()
    try:
        plan = Plan.load(options.plan)
        if options.simulate and options.meter != NVML:
            raise UsageError.conflict(
                {"--simulate": True, "--meter": options.meter}, "leave out --meter, for one is simulated"
            )
        if len(parts := split_replicas(plan, simulate=options.simulate, meter=options.meter)) > 1:
            failed = measure_replicas(
                parts,
                options.output_file,
                simulate=options.simulate,
                retry_failed=options.retry_failed,
                meter=options.meter,
            )
            return EXIT_SOME_FAILED if failed else 0
        events = sweep(
            plan,
            options.output_file,
            simulate=options.simulate,
            retry_failed=options.retry_failed,
            meter=options.meter,
            may_set=options.may_set or (),
        )
        for event in events:
            if text := describe(event):
                print(printable(text), file=sys.stderr, flush=True)
            failed += event.row is not None and not event.row.is_ok
    except InfergyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, EndedError) as end:
        print(
            f"{f'ended by {end}' if str(end) else 'interrupted'}; {kept_rows(options.output_file)}",
            file=sys.stderr,
        )
        return getattr(end, "exit_code", 130)
    return EXIT_SOME_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
