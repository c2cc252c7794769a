"""Windows of traces: from the trace to the plan, and from the plan to the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infergy.engines.simulated_engine import SimulatedEngine
from infergy.measure.planner import Run, replay_run, resolve_arrivals
from infergy.measure.replays import REPLAY_OPTIONS, plan_replays
from infergy.measure.sweep import sweep
from infergy.measure.warmup import WARMUP_REPLAY_TOKENS, WARMUP_REQUESTS, warm_up
from infergy.records import Arrivals, EngineSetup, Load, Measurement, Plan, result_of
from infergy.records.cell import Links
from infergy.records.latency import backlog_of, percentiles
from infergy.records.store import read_store
from infergy.workload import open_trace
from raising import raises, rejects

CONVERSATION, CODE = "azure-conv-2023", "azure-code-2023"


def setup(label: str = "vllm-server") -> EngineSetup:
    return EngineSetup(model="llama-3.1-8b", **EngineSetup.parse_label(label))


def run_of(part: str, count: int = 2) -> Run:
    """The run of a part of a trace, by its label; `count` consecutive requests where it is no window."""
    arrivals = Arrivals.parse_label(f"replay:{part}")
    return resolve_arrivals(Load(input_tokens=1, output_tokens=1, batch=count, arrivals=arrivals), seed=0)


def plan_of(*runs: Run, label: str = "vllm-server") -> Plan:
    return plan_replays([(setup(label), run) for run in runs], gpu="h200")


@pytest.mark.parametrize(
    ("source", "minute", "seconds", "requests", "inputs", "outputs"),
    [
        (CONVERSATION, 10, 75, 379, 489_047, 95_514),
        (CODE, 3, 75, 531, 1_121_290, 14_293),
        (CONVERSATION, 30, 45, 330, 435_820, 44_146),
    ],
)
def test_windows_hold_the_requests_of_the_measured_reference_runs(
    source: str, minute: int, seconds: int, requests: int, inputs: int, outputs: int
) -> None:
    (planned,) = plan_of(run_of(f"{source}@1x+{60 * minute}s/{seconds}s")).cells
    assert len(planned.arrival_s) == planned.cell.load.batch == requests
    assert (sum(tokens for tokens, _ in planned.lengths), sum(tokens for _, tokens in planned.lengths)) == (
        inputs,
        outputs,
    )
    assert planned.arrival_s[0] == 0
    assert planned.arrival_s[-1] < seconds
    assert list(planned.arrival_s) == sorted(planned.arrival_s)


def test_a_speed_takes_more_of_the_trace_into_the_same_seconds() -> None:
    (slow,) = plan_of(run_of(f"{CONVERSATION}@1x+600s/90s")).cells
    (fast,) = plan_of(run_of(f"{CONVERSATION}@3x+600s/30s")).cells
    assert fast.lengths == slow.lengths
    assert fast.arrival_s == pytest.approx([time_s / 3 for time_s in slow.arrival_s], abs=2e-6)
    assert fast.cell.id != slow.cell.id
    (at_once,) = plan_of(run_of(f"{CONVERSATION}+600s/90s")).cells
    assert at_once.lengths == slow.lengths
    assert set(at_once.arrival_s) == {0.0}
    assert at_once.cell.label == "vllm-server-replay:azure-conv-2023+600s/90s"


def test_consecutive_requests_may_keep_their_times() -> None:
    at_once, timed = plan_of(
        run_of(f"{CONVERSATION}+5", 20),
        run_of(f"{CONVERSATION}@1x+5", 20),
    ).cells
    assert at_once.lengths == timed.lengths
    assert timed.arrival_s[-1] > at_once.arrival_s[-1] == 0
    assert (at_once.cell.load.arrivals, timed.cell.load.arrivals) != (None, None)


def test_a_plan_groups_by_set_up_and_counts_visits() -> None:
    window, other = run_of(f"{CODE}@1x+180s/10s"), run_of(f"{CODE}@1x+570s/10s")
    plain, bound = setup(), setup("vllm-server-s16")
    plan = plan_replays([(plain, window), (bound, other), (plain, other), (plain, window)], gpu="h200", name="mine")
    assert [(one.cell.setup, one.visit) for one in plan.cells] == [
        (plain, "grid"),
        (plain, "grid"),
        (plain, "grid-2"),
        (bound, "grid"),
    ]
    assert plan.options == REPLAY_OPTIONS
    assert list(plan.models) == ["llama-3.1-8b"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Measurement, ...]:
    path = tmp_path_factory.mktemp("replays") / "rows.jsonl"
    window = run_of(f"{CODE}@1x+180s/10s")
    plan = plan_of(window, run_of(f"{CODE}+180s/10s"), window)
    plan.save(path.with_name("plan.json"))
    list(sweep(Plan.load(path.with_name("plan.json")), path, simulate=True))
    return read_store(path).rows


def test_each_visit_is_one_run_of_one_window_without_timeline_or_bare_idle_power(rows: tuple[Measurement, ...]) -> None:
    assert [row.visit for row in rows] == ["grid", "grid", "grid-2"]
    for row in rows:
        (window,) = row.windows
        assert len(window.batches) == 1
        assert not row.timeline
        assert row.bare_idle is None
        assert row.loaded_idle is not None
        assert min(row.loaded_idle.duration_by_gpu_s.values()) >= REPLAY_OPTIONS.idle_s


def test_a_row_keeps_each_requests_times_also_all_at_once(rows: tuple[Measurement, ...]) -> None:
    for row in rows:
        (batch,) = row.windows[0].batches
        assert batch.times is not None
        assert len(batch.times.first_token_s) == len(row.lengths) == batch.requests
        ends = [came_s + took_s for came_s, took_s in zip(row.arrival_s, batch.times.finished_s, strict=True)]
        assert batch.duration_s == pytest.approx(max(ends), abs=1e-5)
    assert len(rows[0].to_json()["lengths"]) == rows[0].cell.load.batch


def test_requests_that_are_there_at_once_do_not_fall_behind(rows: tuple[Measurement, ...]) -> None:
    assert [backlog_of(row) is None for row in rows] == [False, True, False]


def test_the_time_per_output_token_is_each_requests_own(rows: tuple[Measurement, ...]) -> None:
    row = rows[0]
    times = row.windows[0].batches[0].times
    latency = result_of(row).latency
    assert times is not None
    assert latency is not None
    trios = zip(times.first_token_s, times.finished_s, row.lengths, strict=True)
    own = [(last_s - first_s) / (tokens - 1) for first_s, last_s, (_, tokens) in trios if tokens > 1]
    assert latency.per_output_token == percentiles(own)
    assert row.result is not None
    assert row.result.latency == latency


def test_a_warm_up_is_a_burst_of_the_replays_own_requests_that_trickles_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (planned,) = plan_of(run_of(f"{CONVERSATION}@1x+600s/75s")).cells
    seen = []

    class Session:
        def run(self, work: object) -> None:
            seen.append(work)

    class Meter:
        class clock:  # noqa: N801 - an attribute of meters
            @staticmethod
            def now_s() -> float:
                return 0.0

    from infergy.engines import Work

    prompts = tuple((1,) * inputs for inputs, _ in planned.lengths)
    outputs = tuple(tokens for _, tokens in planned.lengths)
    work = Work(prompts=prompts, output_tokens=outputs, arrival_s=planned.arrival_s)
    warm_up(Session(), Meter(), planned, work, REPLAY_OPTIONS)  # type: ignore[arg-type]
    (run,) = seen
    assert isinstance(run, Work)
    count = len(run.prompts)
    assert WARMUP_REQUESTS / 2 < count <= WARMUP_REQUESTS + 1
    assert len(run.output_tokens) == len(run.arrival_s) == count
    assert max(run.output_tokens) == WARMUP_REPLAY_TOKENS
    assert max(map(len, run.prompts)) == max(map(len, prompts))
    assert run.arrival_s.count(0.0) == count - count // 2
    assert list(run.arrival_s) == sorted(run.arrival_s)


def test_a_log_out_of_order_is_cut_in_order_of_arrival(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("arrival_s,input_tokens,output_tokens\n30,3,3\n0,1,1\n20,2,2\n40,4,4\n", encoding="utf-8")
    timed, window = run_of(f"{log}@2x+1", 2), run_of(f"{log}+5s/30s")
    assert timed.lengths == window.lengths == ((2, 2), (3, 3))
    assert (timed.arrival_s, window.arrival_s) == ((0.0, 5.0), (0.0, 0.0))
    with raises("no-arrivals", trace=str(log)):
        replay_run(open_trace(log).requests(arrivals=False), timed.load.arrivals)  # type: ignore[arg-type]


def test_a_plan_with_prefixes_of_other_requests_is_incomplete(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    line = '{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [0, 1]}\n'
    log.write_text(3 * line, encoding="utf-8")
    plan = plan_of(run_of(f"{log}@1x", 3))
    (planned,) = plan.cells
    assert planned.links == Links(block_tokens=512, prefixes=(((0, 2),),) * 3)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    fewer = replace(planned, links=Links(block_tokens=512, prefixes=(((0, 2),),)))
    later = replace(planned, links=Links(after=(-1, 2, 1), gap_s=(0.0,) * 3))
    for wrong, missing, found in ((fewer, "links.prefixes", 1), (later, "links.after", 2)):
        with raises("plan-incomplete", missing=missing, found=found):
            list(sweep(replace(plan, cells=(wrong,)), tmp_path / "rows.jsonl", simulate=True))


def test_what_cannot_be_served_is_refused_before_anything_runs(tmp_path: Path) -> None:
    window = run_of(f"{CONVERSATION}@1x+600s/75s")
    with rejects("engine-lacks", engine="transformers", option="arrivals"):
        plan_of(window, label="transformers")
    with raises("too-long", limit=1024):
        plan_of(window, label="vllm-server-len1024")
    with raises("option-missing", option="replays"):
        plan_of()
    with raises("no-requests", trace=CODE):
        run_of(f"{CODE}@1x+720s/50s")
    bare = tmp_path / "bare.csv"
    bare.write_text("ContextTokens,GeneratedTokens\n10,5\n12,6\n")
    with raises("no-arrivals", trace=str(bare)):
        run_of(f"{bare}@1x+0s/5s")


def test_options_of_vllm_are_refused_for_another_engine() -> None:
    from infergy.catalog import get_gpu
    from infergy.meters.simulated import pretend_node

    engine = SimulatedEngine(pretend_node(get_gpu("h200"), 1), get_gpu("h200"))
    for part in ("server", "bt2048", "pc", "mem0.9", "len4096"):
        with raises("engine-lacks", engine="transformers"):
            engine.check(setup(f"transformers-{part}"))
