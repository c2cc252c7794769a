"""Several simulated GPUs: one clock, counters that tick apart, powers that differ, one alone as before."""

from __future__ import annotations

from itertools import pairwise

import pytest

from infergy.catalog import get_gpu
from infergy.meters import next_tick
from infergy.meters.simulated import SimulatedGpu, SimulatedMeter, SimulatedNode, pretend_node
from infergy.records import GpuIdentity


def test_all_gpus_share_the_time_that_passes_whichever_is_read() -> None:
    node = pretend_node(get_gpu("h200"), 4)
    node.advance(1.25, 2000.0)
    node.sleep(0.5)
    node.pause()
    for _ in range(1000):
        node.read()
    times = [gpu.now_s() for gpu in node.gpus]
    assert times == pytest.approx([1.25 + 0.5 + 0.0005 + 4000e-6] * 4, abs=1e-9)
    assert node.now_s() == times[0]


def test_each_draws_its_share_and_all_draw_the_whole() -> None:
    node = pretend_node(get_gpu("h200"), 3)
    node.advance(2.0, 1800.0)
    joules = [gpu.true_j for gpu in node.gpus]
    assert sum(joules) == pytest.approx(3600.0)
    assert joules == sorted(set(joules))
    idle_w = [gpu.idle_w for gpu in node.gpus]
    assert idle_w == sorted(set(idle_w))
    assert sum(idle_w) == pytest.approx(3 * pretend_node(get_gpu("h200"), 1).gpus[0].idle_w)


def test_no_two_counters_tick_together() -> None:
    node = pretend_node(get_gpu("h200"), 8)
    times = sorted(tick.time_s for tick in next_tick(SimulatedMeter(node)).ticks.values())
    assert len(times) == 8
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.003


def test_one_alone_is_the_simulated_gpu_to_the_last_bit() -> None:
    identity = GpuIdentity(uuid="GPU-a", name="simulated")
    alone, node = (SimulatedGpu(identity, idle_w=147.0) for _ in range(2))
    one, other = SimulatedMeter(alone), SimulatedMeter(SimulatedNode([node]))
    for device in (alone, SimulatedNode([node])):
        device.sleep(0.3)
        device.advance(1.7, 512.3)
    for _ in range(5):
        assert next_tick(one) == next_tick(other)
    assert (one.states(), one.powers(), one.gpus) == (other.states(), other.powers(), other.gpus)
    assert alone.true_j == node.true_j
