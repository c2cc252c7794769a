"""What figures are drawn from and claims are compared with: measured cells, and estimates of traces from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from infergy.catalog import catalog_name, find_gpu_by_driver_name, get_gpu
from infergy.cost.table import Table
from infergy.errors import DataError, UsageError
from infergy.estimates.estimate import TraceEstimate, estimate, sample_of
from infergy.estimates.paper import PaperEstimate, estimate_paper
from infergy.estimates.recommend import recommend
from infergy.estimates.recommendation import Recommendation
from infergy.estimates.servers import DEFAULT_GPU, DEFAULT_MODEL, ServerSpec, load_tables, open_server
from infergy.quality.phases import SetupPhases, find_phases
from infergy.records import ENGINES, FP8
from infergy.records.agreement import IDENTITY, MUST, key_of
from infergy.records.store import SHIPPED_ROWS, read_store, shipped_rows
from infergy.report.points import Point, failures_of, group_by, points_of
from infergy.serving.run import BINS, Timeline
from infergy.workload.requests import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Measured cells and estimates of traces.

    Attributes:
        points: Cells measured offline.
        online: Cells whose requests arrived one after the other.
        replays: Cells of requests from a log, each with lengths of its own.
        phases: Prefill and decode of `points`, by engine config and environment.
        failed: Codes of the failures of cells without a row, by name of the GPU and cell id.
        estimates: By name of the trace.
        papers: By the study's method.
        rankings: Of configurations.
        timelines: Of the present and the recommended configuration, by label, by name of the trace.
    """

    points: Sequence[Point]
    online: Sequence[Point] = ()
    replays: Sequence[Point] = ()
    phases: Sequence[SetupPhases] = ()
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    estimates: Mapping[str, TraceEstimate] = field(default_factory=dict)
    papers: Mapping[str, PaperEstimate] = field(default_factory=dict)
    rankings: Mapping[str, Recommendation] = field(default_factory=dict)
    timelines: Mapping[str, Mapping[str, Timeline]] = field(default_factory=dict)

    @property
    def all_points(self) -> tuple[Point, ...]:
        """All measured cells."""
        return (*self.points, *self.online, *self.replays)

    @property
    def is_simulated(self) -> bool:
        """Whether any cell is of a simulated GPU."""
        return any(point.row.simulated for point in self.all_points)

    def by_gpu(self) -> list[Evidence]:
        """The evidence of each kind of GPU, that with estimates of traces first."""
        kinds = dict.fromkeys(point.gpu_kind for point in self.all_points)
        return sorted((self._of_gpu(kind) for kind in kinds), key=lambda part: not part.estimates)

    def _of_gpu(self, kind: str) -> Evidence:
        points, online, replays = (
            [point for point in points if point.gpu_kind == kind] for points in (self.points, self.online, self.replays)
        )
        phases = [setup for setup in self.phases if setup.gpu.split(" + ")[0] == kind]
        part = Evidence(points=points, online=online, replays=replays, phases=phases, failed=self.failed)
        # All traces are estimated on one kind of GPU.
        if all(paper.servers[0].gpu != catalog_name(kind) for paper in self.papers.values()):
            return part
        return replace(
            part, estimates=self.estimates, papers=self.papers, rankings=self.rankings, timelines=self.timelines
        )


def load_evidence(
    files: Sequence[Path] = (),
    traces: Iterable[str | Sample] = (),
    *,
    model: str | None = None,
    gpu: str | None = None,
    allow_simulated: bool = False,
) -> Evidence:
    """The evidence of stores of measurements; without any, of the rows that ship but for replicates.

    Args:
        files: Stores.
        traces: Traces, or samples of them, to estimate from these.
        model: For which the traces are estimated; None: the default if it was measured, else the only one that was.
        gpu: On which; None: on any.
        allow_simulated: Whether rows of a simulated GPU are accepted.
    """
    paths = files or [path for path in shipped_rows() if path.parent == SHIPPED_ROWS]
    stores = {path: read_store(path).rows for path in paths}
    points = points_of(stores, allow_simulated=allow_simulated)
    groups = group_by(points, lambda point: (point.load.is_online, point.load.is_replay))
    offline, online, replays = (groups.get(kind, []) for kind in ((False, False), (True, False), (True, True)))
    phases, failed = tuple(_phases(offline)), failures_of(stores)
    evidence = Evidence(points=offline, online=online, replays=replays, phases=phases, failed=failed)
    samples = {sample.source: sample for sample in map(sample_of, traces)}
    if not samples:
        return evidence
    model = _choose("model", model, {point.model for point in points}, DEFAULT_MODEL, files)
    gpu = _choose("gpu", gpu, {catalog_name(point.gpu_kind) for point in points}, DEFAULT_GPU, files)
    return _with_estimates(evidence, samples, load_tables(files, allow_simulated=allow_simulated), model, gpu)


def _with_estimates(evidence: Evidence, samples: Mapping[str, Sample], table: Table, model: str, gpu: str) -> Evidence:
    servers = [ServerSpec(engine=engine, model=model, gpu=gpu) for engine in ENGINES]
    present = ServerSpec(model=model, gpu=gpu)
    candidates = [*_candidates(present, table)]
    rankings = {
        trace: recommend(sample, candidates, table, present=present, capacity=True)
        for trace, sample in samples.items()
        if sample.windows[0].requests.lengths_from is None  # advice is for a load that was recorded
    }
    return replace(
        evidence,
        estimates={trace: estimate(sample, servers, tables=table) for trace, sample in samples.items()},
        papers={trace: estimate_paper(sample, servers, table) for trace, sample in samples.items()},
        rankings=rankings,
        timelines={trace: _timelines(samples[trace], ranking, model, table) for trace, ranking in rankings.items()},
    )


def _candidates(present: ServerSpec, table: Table) -> Iterator[ServerSpec]:
    """A few for a page: `infergy recommend` searches more."""
    engines = ["transformers", "vllm-eager"]
    has_fp8 = FP8 in get_gpu(present.gpu).peak_flops
    engines += [f"vllm-{FP8}", f"vllm-eager-{FP8}", f"vllm-{FP8}-tp2"] if has_fp8 else ["vllm-tp2"]
    for spec in (replace(present, engine=engine) for engine in engines):
        # A model may not be divisible by two.
        with suppress(UsageError):
            open_server(spec, table)
            yield spec


def _timelines(sample: Sample, ranking: Recommendation, model: str, table: Table) -> dict[str, Timeline]:
    """Of the present and the recommended configuration; none of a trace in several windows."""
    labels = [*dict.fromkeys(filter(None, (ranking.present, ranking.recommended)))]
    shown = [ranking.of(label) for label in labels]
    specs = [ServerSpec(engine=one.engine, model=model, gpu=one.estimate.gpu) for one in shown]
    found = estimate(sample, specs, tables=table, offline=False, paper=False, timeline=BINS).estimates
    loads = {label: own.run.load.timeline for label, own in zip(labels, found, strict=True)}
    return {label: timeline for label, timeline in loads.items() if timeline is not None}


def _phases(points: Iterable[Point]) -> Iterator[SetupPhases]:
    rows = (point.row for point in points)
    for group in group_by(rows, lambda row: key_of(row, (*IDENTITY, *MUST))).values():
        # Rescaled rows have no phases.
        with suppress(DataError):
            yield from find_phases(group).setups


def _choose(option: str, asked: str | None, measured: set[str], default: str, files: Sequence[Path]) -> str:
    """What was asked for, else the default if it was measured, else the only one that was.

    Raises:
        UsageError: Several were measured, and the default is not among them.
    """
    if asked is not None or default in measured or not measured:
        return asked or default
    if len(measured) > 1:
        message = f"{', '.join(map(str, files))}: rows of {', '.join(sorted(measured))}. Choose one with --{option}"
        raise UsageError(message, code="option-missing", option=f"--{option}", files=[str(file) for file in files])
    return next(iter(measured))


def gpu_title(name: str) -> str:
    """The vendor's name of a GPU that the catalog knows; others unchanged."""
    gpu = find_gpu_by_driver_name(name)
    return name if gpu is None else gpu.title
