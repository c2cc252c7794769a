"""The work of a calibration in torch, on the CPU and at tiny sizes: that it runs, counts its calls and is what it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.errors import EngineError
from infergy.measure import calibrate as calibration
from infergy.measure.calibrate import calibrate
from infergy.measure.calibration_work import (
    IDLE_WORK,
    Traits,
    attention_work,
    cached_copy_work,
    copy_work,
    launch_work,
    product_work,
)
from infergy.measure.torch_bench import TorchBench
from infergy.meters.simulated import SteadyMeter
from infergy.records.calibration import FEWEST_S, Workload, read_calibration_file
from raising import raises

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("default")

TINY = Traits(memory_bytes=2**24, l2_bytes=2**12, has_fp8=False)
WORKS = (
    copy_work(2**16),
    cached_copy_work(TINY),
    product_work(16, 64, 96, "bfloat16", TINY),
    product_work(64, 64, 64, "bfloat16", TINY),
    product_work(16, 64, 96, "fp8", TINY),
    attention_work(2, 64, TINY),
    launch_work(in_graph=True),
)


@pytest.fixture(scope="module")
def bench() -> TorchBench:
    return TorchBench(None)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_work_repeats_and_counts_its_calls(bench: TorchBench, work: Workload) -> None:
    loaded = bench.load(work)
    looks: list[int] = []
    calls = loaded.run(0.05, lambda: looks.append(1))
    assert calls >= 1
    assert calls % work.copies == 0
    assert loaded.in_graph is False
    assert loaded.run(0.0) >= 1
    loaded.close()


@pytest.mark.parametrize("work", WORKS[:6], ids=lambda work: work.name)
def test_operands_take_the_bytes_that_the_plan_counts(bench: TorchBench, work: Workload) -> None:
    made: list[int] = []
    plain = bench._random
    bench._random = lambda *shape: made.append(2 * torch.Size(shape).numel()) or plain(*shape)  # type: ignore[method-assign,func-returns-value]
    try:
        _, calls = bench._calls(work)
    finally:
        del bench._random
    assert len(calls) == work.copies
    if work.kind == "copy":
        assert made == [work.sizes[0]] * 2
    elif work.kind == "attention":
        # Queries beside keys and values.
        assert sum(made) - 2 * 2 * 32 * 128 == work.copies * work.memory_bytes
    elif work.sizes[0] != work.sizes[1]:
        _, depth, columns = work.sizes
        width = 1 if work.dtype == "fp8" else 2
        assert made.count(2 * depth * columns) * depth * columns * width == work.copies * work.memory_bytes


def test_flops_are_those_that_torch_counts(bench: TorchBench) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for work in (one for one in WORKS if one.kind == "product" and one.dtype != "fp8"):
        _, calls = bench._calls(work)
        with FlopCounterMode(display=False) as counter:
            calls[0]()
        assert counter.get_total_flops() == work.flops
    batch, context, heads, cache_heads, head = (attention := attention_work(2, 64, TINY)).sizes
    cache = [torch.randn(batch, cache_heads, context, head) for _ in range(2)]
    query = torch.randn(batch, cache_heads, heads // cache_heads, head)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        # The counter knows no fused kernel of the CPU.
        torch.nn.functional.scaled_dot_product_attention(query, *cache)
    assert counter.get_total_flops() == attention.flops


def test_heads_that_share_a_cache_may_be_grouped(bench: TorchBench) -> None:
    work = attention_work(2, 64, TINY)
    batch, _, heads, _, head = work.sizes
    made: list[Any] = []
    plain = bench._random
    bench._random = lambda *shape: made.append(plain(*shape)) or made[-1]  # type: ignore[method-assign,func-returns-value]
    try:
        _, calls = bench._calls(work)
    finally:
        del bench._random
    query, key, value = made[:3]
    attention = torch.nn.functional.scaled_dot_product_attention
    expected = attention(query.view(batch, heads, 1, head), key, value, enable_gqa=True)
    found: Any = calls[0]()
    torch.testing.assert_close(found.view(expected.shape), expected)


def test_what_torch_cannot_do_is_an_error_in_one_line(bench: TorchBench) -> None:
    with raises("no-kernel", kind="idle"):
        bench.load(IDLE_WORK)
    with pytest.raises(EngineError) as told:
        bench.load(replace(WORKS[2], sizes=(16, -1, 96)))
    assert "negative dimension" in str(told.value)
    assert "\n" not in str(told.value)


def test_without_cuda_a_calibration_says_what_to_install() -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    with raises("package-missing", package="torch with CUDA"):
        TorchBench("GPU-a")


def test_a_whole_calibration_runs_in_torch(bench: TorchBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "make_works", lambda _: WORKS)
    monkeypatch.setattr(calibration, "WARM_S", 0.01)
    path = tmp_path / "cpu.jsonl"
    events = list(calibrate(SteadyMeter(power_w=200.0), lambda: bench, path, budget_s=1e6, window_s=0.3))
    found = read_calibration_file(path)
    assert len(events) == len(found) == len(WORKS) + 1
    for one in found:
        assert (one.calls > 0) == (one.workload.kind != "idle")
        assert {state.uuid for state in one.during} == {gpu.uuid for gpu in one.environment.gpus}
        assert any("the edges weigh" in doubt for doubt in one.doubts) == (one.duration_s < FEWEST_S)
        # How long a window takes, and how late its ticks are stamped, is this machine's: its own bounds must hold the
        # truth, and where stamps are too late for bounds it says so.
        if one.reason is not None:
            assert one.reason.startswith(("ticks of the counter were stamped up to", "a block of"))
            continue
        true_j = one.duration_s * 200.0
        assert one.low_j is not None
        assert one.high_j is not None
        assert one.low_j - 1e-6 <= true_j <= one.high_j + 1e-6
    assert found[1].environment.packages["torch"] == torch.__version__


class PretendedCuda:
    """What the GPU's paths call of torch.cuda, on the CPU: graphs hold calls and replay them."""

    class Stream:
        def wait_stream(self, _: object) -> None:
            pass

    class Event:
        def record(self) -> None:
            PretendedCuda.queued += 1

        def synchronize(self) -> None:
            PretendedCuda.queued -= 1
            PretendedCuda.deepest = max(PretendedCuda.deepest, PretendedCuda.queued)

    class CUDAGraph:
        replays = 0

        def replay(self) -> None:
            PretendedCuda.CUDAGraph.replays += 1

    queued = deepest = 0
    error: RuntimeError | None = None

    @contextmanager
    def graph(self, _: object, capture_error_mode: str = "global") -> Iterator[None]:
        yield
        if self.error is not None:
            raise self.error

    @contextmanager
    def stream(self, _: object) -> Iterator[None]:
        yield

    def current_stream(self) -> Stream:
        return self.Stream()

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        raise RuntimeError("an error that CUDA does not recover from")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> TorchBench:
    """A bench that takes the GPU's paths."""
    found = TorchBench(None)
    for name in ("Stream", "Event", "CUDAGraph", "graph", "stream", "current_stream", "synchronize", "empty_cache"):
        assert hasattr(torch.cuda, name)
    monkeypatch.setattr(torch, "cuda", PretendedCuda())
    monkeypatch.setattr(PretendedCuda.CUDAGraph, "replays", 0)
    found.has_gpu = True
    return found


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_in_a_graph_replays_are_counted_by_the_calls_they_hold(pretended: TorchBench, work: Workload) -> None:
    loaded = pretended.load(work)
    assert loaded.in_graph
    before = PretendedCuda.CUDAGraph.replays
    calls = loaded.run(0.001)
    assert calls == (PretendedCuda.CUDAGraph.replays - before) * loaded._in_step
    assert loaded._in_step % work.copies == 0
    loaded.close()


class Ticking:
    """A clock that moves on by a millisecond a look, however slow the machine; first it shows what it is told to."""

    def __init__(self, *shown_s: float) -> None:
        self.shown_s = list(shown_s)
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s = self.shown_s.pop(0) if self.shown_s else self.now_s + 0.001
        return self.now_s


def test_the_queue_is_kept_some_chunks_deep(pretended: TorchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infergy.measure.torch_bench.time", Ticking())
    monkeypatch.setattr(PretendedCuda, "queued", 0)
    monkeypatch.setattr(PretendedCuda, "deepest", 0)
    loaded = pretended.load(WORKS[0])
    loaded._steps = 1
    loaded.run(0.05)
    assert PretendedCuda.deepest == PretendedCuda.queued == 2


def test_it_looks_at_the_gpu_once_a_run_however_late_the_first_chunk_ends(
    bench: TorchBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the last look at the clock, the run is over when its middle is found to have passed."""
    loaded = bench.load(WORKS[0])
    monkeypatch.setattr("infergy.measure.torch_bench.time", Ticking(0.0, 0.01, 5.0))
    looks: list[int] = []
    loaded.run(0.1, lambda: looks.append(1))
    assert looks == [1]


def test_what_cannot_be_captured_runs_one_by_one_and_says_so(pretended: TorchBench) -> None:
    pretended.torch.cuda.error = RuntimeError("operation not permitted when stream is capturing")
    loaded = pretended.load(WORKS[2])
    assert loaded.how == "mm, one by one"
    assert loaded.run(0.001) >= 1


def test_out_of_memory_is_distinguished(pretended: TorchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")

    monkeypatch.setattr(pretended, "_random", full)
    with raises("out-of-memory"):
        pretended.load(WORKS[0])
