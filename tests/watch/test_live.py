"""A watch on a simulated clock, whose server and GPUs are known exactly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog.models import shape_of_id
from infergy.cost.model import StepCost
from infergy.errors import MeterError
from infergy.estimates.servers import ServerSpec, open_server
from infergy.meters.simulated import SimulatedNode
from infergy.records.codec import to_json
from infergy.watch.live import Live, Watch
from infergy.watch.metrics import Page, read_page
from watched import MODEL, Server, node_of, run, silent, watch_of

pytest.importorskip("prometheus_client")
GPU = "GPU-simulated-0"


def cost_of(models: tuple[str, ...]) -> StepCost | str:
    assert models == (MODEL,)
    assert shape_of_id(MODEL) is not None
    return open_server(ServerSpec()).cost


def contains(live: Live, true_j: float) -> bool:
    energy = live.recent.per_output_token
    assert energy is not None
    return energy.least_j <= true_j and (energy.most_j is None or true_j <= energy.most_j)


@pytest.mark.parametrize("gpus", [1, 3])
def test_eight_minutes_agree_with_the_counters_difference(gpus: int) -> None:
    node = node_of(gpus)
    watch = watch_of(Server(node))
    begin_j, (*_, last) = sum(node.read().values()), run(watch, node, 480)
    end_j = sum(node.read().values())
    assert last.energy_j == pytest.approx(end_j - begin_j, rel=1e-3)
    assert last.power_w == pytest.approx(300 * gpus, rel=0.02)
    assert all(gpu.power_w == pytest.approx(300, rel=0.02) for gpu in last.gpus)
    assert len(watch.readings) <= 302


def test_energy_per_token_is_blank_until_there_is_enough() -> None:
    node = node_of()
    shown = run(watch_of(Server(node)), node, 15)
    known = [live.recent.per_output_token is not None for live in shown]
    assert known in ([False] * 10 + [True] * 5, [False] * 11 + [True] * 4)
    assert shown[5].blanks["per_output_token"].startswith("fewer than 10 s")
    assert contains(shown[-1], 0.3)
    assert shown[-1].recent.per_token is not None
    assert shown[-1].recent.per_token.value_j == pytest.approx(0.3 / 5, rel=0.05)


def test_few_tokens_need_longer() -> None:
    node = node_of()
    shown = run(watch_of(Server(node, per_s=25)), node, 30)
    first = next(index for index, live in enumerate(shown) if live.recent.per_output_token is not None)
    assert first == 20
    assert contains(shown[first], 12.0)


def test_the_cost_model_splits_the_load() -> None:
    node = node_of()
    *_, last = run(watch_of(Server(node, per_s=500), cost=cost_of), node, 20)
    phases = last.recent.phases
    assert phases is not None
    assert phases.prefill + phases.decode + phases.idle == pytest.approx(1)
    assert min(phases.prefill, phases.decode, phases.idle) > 0.01
    assert 0 < phases.floor_per_output_token_j < phases.energy_per_output_token_j
    assert "below-floor" not in last.flags


def test_a_server_that_counts_too_many_tokens_is_flagged() -> None:
    node = node_of()
    *_, last = run(watch_of(Server(node, per_s=100_000, running=8), cost=cost_of), node, 20)
    assert "below-floor" in last.flags


@pytest.mark.parametrize("seconds", [3, 40])
def test_a_restart_is_a_gap(seconds: int) -> None:
    node = node_of()
    server = Server(node)
    watch = watch_of(server)
    run(watch, node, 20)
    server.begun_s = node.now_s()
    shown = run(watch, node, seconds)
    assert "restarted" in shown[0].flags
    assert shown[0].recent.per_output_token is None
    for live in shown:
        assert live.recent.per_output_token is None or contains(live, 0.3)
    assert (shown[-1].recent.per_output_token is not None) == (seconds > 10)


def test_a_restart_whose_counts_have_passed_the_old_ones_shows_by_its_time() -> None:
    node = node_of()
    server = Server(node, change=lambda text: f"process_start_time_seconds 5\n{text}")
    watch = watch_of(server)
    run(watch, node, 12)
    server.per_s, server.change = 5000.0, lambda text: f"process_start_time_seconds 6\n{text}"
    (live,) = run(watch, node, 1)
    assert "restarted" in live.flags
    assert live.recent.per_output_token is None


@pytest.mark.parametrize("may_run_on", [False, True])
def test_a_server_that_does_not_answer_is_blank_and_its_energy_goes_on(may_run_on: bool) -> None:
    node = node_of()
    server = Server(node)
    watch = watch_of(server)
    run(watch, node, 20)
    server.faults = [silent(may_run_on=may_run_on)]
    blank, after = run(watch, node, 2)
    assert blank.server is None
    assert blank.recent.per_output_token is None
    assert {blank.blanks[name] for name in ("server", "per_output_token", "phases", "idle_share")} == {"no answer"}
    # A tenth of a second after the refresh before it, with edges that may be a tenth of that late.
    assert blank.power_w == pytest.approx(300, rel=0.15)
    # One that was slow goes on; one that was gone may have begun again.
    assert (after.recent.per_output_token is not None) == may_run_on


def test_time_without_an_answer_is_not_idle_where_tokens_came() -> None:
    node = node_of()
    server = Server(node, running=0.0)
    watch = watch_of(server)
    run(watch, node, 20)
    server.faults = [silent(may_run_on=True)]
    *_, last = run(watch, node, 2)
    assert last.recent.idle_share == 0.0


def test_tokens_that_are_not_counted_yet_are_bounded_by_those_of_a_time_without_an_answer() -> None:
    node = node_of()
    server = Server(node, per_s=1000.0, running=4.0)
    watch, read = watch_of(server), server.read
    watch._read_page = lambda: replace(read(), at_end=frozenset({"output_tokens"}))
    live = watch.refresh()
    for _ in range(15):
        node.sleep(0.8)
        server.faults = [silent(may_run_on=True)]
        watch.refresh()
        node.sleep(0.8)
        live = watch.refresh()
    energy = live.recent.per_output_token
    assert energy is not None
    # Four requests run, each of as many tokens as ended between two answers, 1.8 s: of 12,000 up to 7,000.
    assert energy.least_j < 0.75 * energy.value_j


def test_a_new_series_is_a_gap() -> None:
    node = node_of()
    server = Server(node)
    watch = watch_of(server)
    run(watch, node, 12)
    server.change = lambda text: f'{text}vllm:generation_tokens_total{{model_name="other"}} 900000\n'
    (live,) = run(watch, node, 1)
    assert live.recent.per_output_token is None
    assert live.server is not None
    assert live.server.models == (MODEL, "other")


def test_a_name_that_is_missing_is_blank_with_its_reason() -> None:
    node = node_of()
    server = Server(node, change=lambda text: text.replace("generation_tokens_total", "tokens"))
    *_, last = run(watch_of(server), node, 12)
    assert last.recent.per_output_token is None
    assert "publishes no generation_tokens_total" in last.blanks["per_output_token"]


def test_idle_time_and_no_tokens() -> None:
    node = node_of()
    *_, last = run(watch_of(Server(node, per_s=0.0, running=0.0)), node, 20)
    assert last.recent.idle_share == 1.0
    assert last.recent.per_output_token is None


def test_gpus_elsewhere_give_no_energy_per_token() -> None:
    node = node_of()
    *_, last = run(watch_of(Server(node), elsewhere="on another machine"), node, 15)
    assert last.recent.per_output_token is None
    assert last.blanks["per_output_token"] == last.flags["elsewhere"] == "on another machine"


@given(st.floats(200, 3000), st.floats(0.001, 0.9), st.integers(1, 64))
def test_bounds_contain_the_truth_where_requests_are_counted_at_their_end(
    per_s: float, fetch_s: float, running: int
) -> None:
    node = node_of()
    watch = watch_of(Server(node, per_s=per_s, fetch_s=fetch_s, running=running))
    *_, last = run(watch, node, 14)
    assert contains(last, 300 / per_s)


def test_json_has_no_nan() -> None:
    node = node_of()
    for live in run(watch_of(Server(node), cost=cost_of), node, 12):
        json.dumps(to_json(live), allow_nan=False)


def faulty(seconds: int, **sensor: float) -> tuple[list[Live], Watch]:
    node = node_of(2, **sensor)
    watch = watch_of(Server(node))
    return run(watch, node, seconds), watch


def test_a_counter_that_is_reset_is_a_gap() -> None:
    shown, _ = faulty(40, reset_s=20.0, start_j=1e6)
    assert not any("counter-gap" in live.flags for live in shown[:19])
    gap = next(live for live in shown if "counter-gap" in live.flags)
    assert gap.recent.per_output_token is None
    assert shown[-1].energy_j == pytest.approx(39 * 600, rel=0.1)
    assert all(live.recent.per_output_token is None or contains(live, 0.6) for live in shown)
    assert shown[-1].recent.per_output_token is not None


def test_a_counter_that_stalls_is_blank_and_then_a_gap() -> None:
    node = node_of(2)
    watch = watch_of(Server(node))
    run(watch, node, 20)
    (frozen, _), real = node.gpus, type(node.gpus[0]).read
    value = frozen.counter_j
    stalled = node.now_s()
    node.read = lambda: {  # type: ignore[method-assign]
        gpu.identity.uuid: value if gpu is frozen and node.now_s() < stalled + 10 else real(gpu) for gpu in node.gpus
    }
    shown = run(watch, node, 30)
    uuid = frozen.identity.uuid
    assert "stood still" in shown[6].blanks[f"gpu {uuid}"]
    assert shown[6].power_w is None
    assert shown[6].recent.per_output_token is None
    assert all(live.recent.per_output_token is None or contains(live, 0.6) for live in shown)
    assert "counter-gap" in shown[-1].flags
    assert shown[-1].recent.per_output_token is not None


def test_each_value_that_is_not_known_has_a_reason() -> None:
    node = node_of()
    (first,) = run(watch_of(Server(node)), node, 1)
    assert first.power_w is None
    assert first.recent.idle_share is None
    assert {f"gpu {GPU}", "idle_share", "per_token", "phases"} <= first.blanks.keys()


def test_a_gpu_that_vanishes_is_blank() -> None:
    node = node_of(2)
    watch = watch_of(Server(node))
    run(watch, node, 20)
    kept, real = node.gpus[0], type(node.gpus[0]).read
    node.read = lambda: {kept.identity.uuid: real(kept)}  # type: ignore[method-assign]
    *_, last = run(watch, node, 5)
    assert last.recent.per_output_token is None
    assert last.power_w is None
    assert f"gpu {node.gpus[1].identity.uuid}" in last.blanks


def test_a_counter_that_never_moved_is_blank() -> None:
    node = node_of(2)
    frozen, real = node.gpus[1], type(node.gpus[0]).read
    node.read = lambda: {gpu.identity.uuid: 5.0 if gpu is frozen else real(gpu) for gpu in node.gpus}  # type: ignore[method-assign]
    *_, last = run(watch_of(Server(node)), node, 20)
    assert last.power_w is None
    assert last.recent.per_output_token is None
    assert "has not moved" in last.blanks["per_output_token"]


def test_a_meter_that_fails_is_blank_and_then_goes_on() -> None:
    node = node_of()
    watch = watch_of(Server(node))
    run(watch, node, 15)
    real, begin_j = node.read, node.gpus[0].counter_j

    def fail() -> dict[str, float]:
        raise MeterError("the driver does not answer", code="counter-unreadable")

    node.read = fail  # type: ignore[method-assign]
    *_, blank = run(watch, node, 3)
    node.read = real  # type: ignore[method-assign]
    *_, last = run(watch, node, 3)
    assert "does not answer" in blank.blanks["per_output_token"]
    assert blank.power_w is None
    assert last.recent.per_output_token is not None
    assert last.energy_j == pytest.approx(node.gpus[0].counter_j - watch.readings[0].ticks[GPU].counter_j, rel=0.01)
    assert node.gpus[0].counter_j > begin_j


class Bursts(Server):
    """Tokens and power come in bursts; what is true is kept for each page that was read."""

    busy_s, idle_s, watts = 3.0, 2.0, (80.0, 600.0)
    tokens = 0.0

    def __init__(self, node: SimulatedNode, snapshot: float, **options: float) -> None:
        super().__init__(node, **options)  # type: ignore[arg-type]
        self.snapshot = snapshot
        self.truth: list[tuple[float, float]] = []
        self.moved_s = self.node.now_s()
        real = self.node.sleep

        def sleep(seconds: float) -> None:
            end_s = self.node.now_s() + seconds
            while (now_s := self.node.now_s()) < end_s - 1e-9:
                place = now_s % (self.busy_s + self.idle_s)
                is_busy = place < self.busy_s
                change_s = now_s - place + (self.busy_s if is_busy else self.busy_s + self.idle_s)
                for gpu in self.node.gpus:
                    gpu.load_w = self.watts[is_busy]
                step_s = max(1e-9, min(end_s, change_s) - now_s)
                real(step_s)
                self.tokens += self.per_s * step_s * is_busy

        self.node.sleep = sleep  # type: ignore[method-assign]

    def read(self) -> Page:
        self.node.sleep(self.fetch_s * self.snapshot)
        text = self.text()
        self.node.sleep(self.fetch_s * (1 - self.snapshot))
        return read_page(text, "http://here/metrics")

    def text(self) -> str:
        self.truth.append((sum(gpu.true_j for gpu in self.node.gpus), self.tokens))
        label = f'model_name="{MODEL}"'
        counted = int(self.tokens)
        return f"vllm:generation_tokens_total{{{label}}} {counted}\nvllm:num_requests_running{{{label}}} 2\n"


@given(st.floats(2, 8), st.floats(2, 8), st.floats(0.001, 0.4), st.floats(0, 1), st.integers(1, 3))
def test_bounds_contain_the_truth_of_bursts(
    busy_s: float, idle_s: float, fetch_s: float, snapshot: float, gpus: int
) -> None:
    node = node_of(gpus)
    server = Bursts(node, snapshot, per_s=2000.0, fetch_s=fetch_s)
    server.busy_s, server.idle_s = busy_s, idle_s
    watch = watch_of(server)
    for number in range(25):
        (live,) = run(watch, node, 1)
        node.sleep(max(0.0, number + 1 - node.now_s()))
        if live.recent.per_output_token is not None:
            assert live.recent.seconds is not None
            pages = [reading.page_s for reading in watch.readings]
            first = next(k for k, page_s in enumerate(pages) if pages[-1] - page_s <= live.recent.seconds + 1e-6)
            (begin_j, begin), (end_j, end) = server.truth[first], server.truth[-1]
            assert contains(live, (end_j - begin_j) / (end - begin))
