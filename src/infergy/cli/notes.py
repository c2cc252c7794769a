"""What a reader must know of a trace and its runs, in sentences: the same under every verb that serves a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from infergy.units import count_of

if TYPE_CHECKING:
    from infergy.estimates.results import RunEstimate, ServerEstimate, TraceFacts


def trace_notes(trace: TraceFacts) -> list[str]:
    """Rows of a log that are not served as they stand there."""
    lines = {
        "Requests without input or output tokens, left out": trace.set_aside,
        "Requests out of order, sorted by arrival": trace.out_of_order,
        "Requests without the id of a session, each served as a session of its own": trace.without_session,
        "Requests without hashes of their blocks, served as if they shared no prefix": trace.without_blocks,
    }
    return [f"{what}: {count:,}." for what, count in lines.items() if count]


def rejected_notes(runs: Mapping[str, RunEstimate]) -> list[str]:
    """Requests that runs, by label, reject: one sentence for those that reject equally many."""
    alike: dict[str, list[str]] = {}
    for label, run in runs.items():
        if run.rejected_requests:
            verb = "is" if run.rejected_requests == 1 else "are"
            sentence = (
                f"{run.rejected_requests:,} of {count_of(run.requests, 'request')} {verb} longer than the context or "
                "the KV cache, and rejected."
            )
            alike.setdefault(sentence, []).append(label)
    is_common = len(runs) > 1 and any(len(labels) == len(runs) for labels in alike.values())
    return [f"{'every server' if is_common else ', '.join(labels)}: {note}" for note, labels in alike.items()]


def run_notes(estimates: Sequence[ServerEstimate]) -> list[str]:
    """Queues without limit, rejected requests, and servers of which nothing was measured; each once."""
    from infergy.estimates.servers import weights_only_note
    from infergy.hardware import get_gpu

    lines = []
    for one in estimates:
        lines += [
            f"{one.engine}: {run.overload}."
            for run in (one.served, one.offline)
            if run is not None and run.overload is not None
        ]
        narrow = weights_only_note(get_gpu(one.gpu), one.precision)
        lines += [] if narrow is None else [f"{narrow}."]
        lines += rejected_notes({one.engine: one.run})
        if one.run.measured_share == 0:
            lines.append(
                f"{one.engine}: no step of {one.model} in {one.precision} on {one.gpu} was measured: by datasheet and "
                "what other servers showed. One measured cell sharpens it: infergy next."
            )
    return list(dict.fromkeys(lines))
