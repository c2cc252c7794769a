"""What doctor tells of a machine, and what it finds out about a meter whose behaviour is known."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.measure.doctor import diagnose, diagnose_simulated, simulated_gpu
from infergy.measure.loads import FEED_S, FULL, HALF, OFF, QUEUED, SimulatedLoad, TorchLoad
from infergy.measure.square_wave import Wave, measure_behaviour
from infergy.measure.step_response import fit_ramp, integral_j, is_regular, share_from_scatter, step_j
from infergy.meters.simulated import CounterSensor, PowerSensor, Sensors, SimulatedGpu, SimulatedMeter, SteadyMeter
from infergy.records import GpuIdentity, GpuState, Tick
from infergy.records.behaviour import MeterBehaviour
from infergy.records.codec import from_json
from meters.test_nvml import FakeNvml, FakeNvmlError
from raising import raises
from waiting import wait_until

IDLE_W, FULL_W = 120.0, 700.0
QUICK = Wave(settle_s=1.1, steady_s=3.0, half_periods_s=())
STEADY = replace(QUICK, steps=0)
COUNTED = replace(QUICK, hold_s=0.8)  # no field that averages a second is looked at


def behaviour(sensors: Sensors, *, period_s: float = 0.1, wave: Wave = QUICK, phase_s: float = 0.037) -> MeterBehaviour:
    gpu = SimulatedGpu(
        GpuIdentity(uuid="GPU-a", name="simulated"),
        idle_w=IDLE_W,
        period_s=period_s,
        phase_s=phase_s,
        sensors=sensors,
    )
    return measure_behaviour(SimulatedMeter(gpu), SimulatedLoad(gpu, FULL_W), wave)


# --- the meter under a load that steps: the simulated GPU's parameters are found again ---


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("delay_s", [0.0, 0.03])
def test_period_and_delay_of_the_counter_are_found(period_s: float, delay_s: float) -> None:
    found = behaviour(Sensors(counter=CounterSensor(delay_s=delay_s)), period_s=period_s, wave=COUNTED).counter
    assert found.period_s == pytest.approx(period_s, abs=0.001)
    assert found.is_regular
    assert found.delay_s == pytest.approx(delay_s, abs=0.002)
    assert found.sampled_share == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("step", [0.001, 0.015, 0.1, 1.0])
def test_the_step_of_the_counter_is_found(step: float) -> None:
    assert behaviour(Sensors(counter=CounterSensor(step_j=step)), wave=COUNTED).counter.step_j == pytest.approx(step)


@pytest.mark.parametrize(("jitter_s", "regular"), [(0.0, True), (0.005, True), (0.06, False), (0.09, False)])
def test_irregular_ticks_are_told_with_their_spread(jitter_s: float, regular: bool) -> None:
    found = behaviour(Sensors(counter=CounterSensor(jitter_s=jitter_s)), wave=COUNTED).counter
    assert found.is_regular is regular
    assert found.period_s == pytest.approx(0.1, abs=0.15 * jitter_s + 0.002)
    assert found.period_low_s is not None
    assert found.period_high_s is not None
    # The difference of two uniform delays: a triangle from -jitter to jitter, of which 90 % lie within 0.684.
    assert found.period_high_s - found.period_low_s == pytest.approx(2 * 0.684 * jitter_s, abs=0.25 * jitter_s + 0.002)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_a_counter_that_looks_part_of_the_time_is_found_out(share: float) -> None:
    found = behaviour(Sensors(counter=CounterSensor(share=share, delay_s=0.05)), wave=COUNTED).counter
    assert found.sampled_share == pytest.approx(share, abs=0.06)
    # It sees steps early by half of what it skips, as its docstring says.
    assert found.delay_s == pytest.approx(0.05 - (1 - share) * 0.1 / 2, abs=0.005)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([0.05, 0.1, 0.2]),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.05),
    st.floats(0.2, 1.0),
    st.floats(0.0, 0.5),
    st.floats(0.0, 0.0999),
    st.integers(0, 5),
)
def test_period_delay_and_averaging_of_the_power_fields_are_found(
    period_s: float, share: float, delay_s: float, average_s: float, noise_w: float, phase_s: float, seed: int
) -> None:
    sensors = Sensors(
        power=PowerSensor(
            period_s=period_s, window_s=share * period_s, delay_s=delay_s, average_s=average_s, noise_w=0.1 + noise_w
        ),
        seed=seed,
    )
    found = behaviour(sensors, phase_s=phase_s)
    instant, average = found.instant_power, found.average_power
    assert instant.period_s == pytest.approx(period_s, abs=0.002)
    assert instant.averaged_s is not None
    # Twenty steps over a period of the counter lie 5 ms apart.
    resolved_s = 0.1 / 20 + 0.002
    assert instant.averaged_s == pytest.approx(share * period_s, abs=0.04 * period_s + resolved_s)
    assert instant.rise_s == pytest.approx(0.8 * instant.averaged_s)
    assert instant.delay_s == pytest.approx(delay_s, abs=0.04 * period_s + resolved_s)
    assert instant.sampled_share == pytest.approx(share, abs=0.04 + resolved_s / period_s)
    assert average.averaged_s == pytest.approx(average_s, rel=0.02)
    assert average.delay_s == pytest.approx(delay_s, abs=0.012)
    assert average.sampled_share is None
    assert found.reasons == ()


def test_power_fields_that_always_change_have_no_period_but_a_delay() -> None:
    found = behaviour(Sensors(power=PowerSensor(delay_s=0.04, average_s=0.5, noise_w=0.5)))
    assert found.instant_power.period_s is found.instant_power.sampled_share is None
    assert found.instant_power.delay_s == pytest.approx(0.04, abs=0.003)
    assert found.average_power.averaged_s == pytest.approx(0.5, rel=0.02)
    assert any(reason.startswith("instant power changes at each read") for reason in found.reasons)


@pytest.mark.parametrize(("gain", "offset_w"), [(1.0, 0.0), (1.1, 0.0), (1.0, 80.0), (0.9, -20.0)])
def test_the_ratio_of_counter_to_power_is_found_at_each_load(gain: float, offset_w: float) -> None:
    sensors = Sensors(power=PowerSensor(gain=gain, offset_w=offset_w, noise_w=0.3, period_s=0.05))
    found = behaviour(sensors, wave=STEADY)
    true_w = {"idle": IDLE_W, "half": (IDLE_W + FULL_W) / 2, "full": FULL_W}
    assert [one.load for one in found.agreements] == list(true_w)
    for one in found.agreements:
        power_w = true_w[one.load]
        assert one.counter_w == pytest.approx(power_w, rel=0.002)
        assert one.ratio == pytest.approx(power_w / (gain * power_w + offset_w), rel=0.004)


def test_part_time_sampling_makes_waves_of_its_own_period_disagree_and_slow_ones_agree() -> None:
    wave = Wave(steps=0, half_periods_s=(0.5, 0.05))
    sensors = Sensors(power=PowerSensor(period_s=0.1, window_s=0.02, noise_w=0.2))
    off: list[float] = []
    for phase_s in (0.01, 0.035, 0.06, 0.085):
        _, _, _, slow, fast = behaviour(sensors, wave=wave, phase_s=phase_s).agreements
        assert (slow.half_period_s, fast.half_period_s) == (0.5, 0.05)
        assert slow.ratio == pytest.approx(1.0, abs=0.03)
        assert fast.ratio is not None
        off.append(abs(fast.ratio - 1))
    # How far depends on the phase: the sensor sees the load always on, always off, or some of both.
    assert max(off) > 0.5
    whole, alike = behaviour(Sensors(), wave=wave).agreements[3:]
    assert whole.ratio == pytest.approx(1.0, abs=0.005)
    assert alike.ratio == pytest.approx(1.0, abs=0.005)


def test_without_a_load_only_what_an_idle_gpu_tells_is_told_and_the_rest_has_its_reason() -> None:
    gpu = simulated_gpu()
    found = measure_behaviour(SimulatedMeter(gpu), None)
    assert [one.load for one in found.agreements] == ["idle"]
    assert found.counter.period_s == pytest.approx(0.1, abs=0.001)
    assert found.counter.delay_s is found.instant_power.delay_s is found.average_power.delay_s is None
    assert found.load is None
    assert "pip install torch" in found.reasons[0]


class BlindMeter(SteadyMeter):
    """Its power does not answer, and its counter is slower than it is watched."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self.clock = gpu
        self._gpu = gpu

    def read(self) -> Mapping[str, float]:
        return {"GPU-simulated-0": self._gpu.read()}

    def states(self) -> tuple[GpuState, ...]:
        return (GpuState(uuid="GPU-simulated-0"),)


def test_power_that_does_not_answer_is_none_with_a_reason() -> None:
    gpu = simulated_gpu()
    found = measure_behaviour(BlindMeter(gpu), SimulatedLoad(gpu, FULL_W), QUICK)
    assert {one.ratio for one in found.agreements} == {one.instant_w for one in found.agreements} == {None}
    assert found.counter.delay_s == pytest.approx(0.0, abs=0.002)
    for name in ("instant", "average"):
        assert f"{name} power does not answer on this GPU and driver" in found.reasons


class FrozenMeter(SimulatedMeter):
    def read(self) -> Mapping[str, float]:
        return dict.fromkeys(super().read(), 5.0)


def test_a_counter_that_stands_still_is_an_error_and_the_load_is_taken_off() -> None:
    gpu = simulated_gpu()
    load = SimulatedLoad(gpu, FULL_W)
    with raises("counter-stuck", waited_s=3.0):
        measure_behaviour(FrozenMeter(gpu), load)
    assert gpu.load_w == gpu.idle_w


class StoppedMeter(SimulatedMeter):
    """Its process is stopped for longer than a counter may stand still, once, after a read and before its stamp."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__(gpu)
        self.gpu, self.reads = gpu, 0

    def read(self) -> Mapping[str, float]:
        found = super().read()
        self.reads += 1
        if self.reads == 1000:
            self.gpu.sleep(5.0)
        return found


def test_a_process_that_was_stopped_blames_no_counter() -> None:
    gpu = simulated_gpu()
    meter = StoppedMeter(gpu)
    assert measure_behaviour(meter, None).counter.period_s == pytest.approx(0.1, abs=0.001)
    assert meter.reads > 1000


def test_what_is_kept_reads_back(tmp_path: Path) -> None:
    found = behaviour(Sensors(power=PowerSensor(period_s=0.1, window_s=0.025, noise_w=0.5)), wave=Wave(steps=5))
    path = tmp_path / "meter.json"
    found.save(path)
    assert from_json(MeterBehaviour, json.loads(path.read_text()), str(path)) == found


# --- the laws, on figures whose answer is known ---


@given(st.floats(0.0, 0.3), st.floats(0.01, 0.5))
def test_a_ramp_is_fitted(delay_s: float, length_s: float) -> None:
    points = [(y / 200, min(1.0, max(0.0, (y / 200 - delay_s) / length_s))) for y in range(240)]
    fitted = fit_ramp(points)
    assert fitted is not None
    assert fitted[0] == pytest.approx(delay_s, abs=0.006)
    assert fitted[1] == pytest.approx(length_s, abs=0.012)


def test_integrals_interpolate_at_their_edges_and_are_unknown_beyond_the_samples() -> None:
    samples = [(float(t), 10.0 * t) for t in range(5)]
    assert integral_j(samples, 0.5, 3.25) == pytest.approx(5 * (3.25**2 - 0.5**2))
    assert integral_j(samples, 0.5, 4.5) is None
    assert integral_j([], 0.0, 1.0) is None


def test_steps_regularity_and_scatter() -> None:
    assert step_j([Tick(time_s=t, energy_j=t * 0.006) for t in (0, 2, 5, 7)]) == pytest.approx(0.006)
    assert step_j([Tick(time_s=t, energy_j=t * 0.006) for t in (0, 1, 2, 3)]) is None
    assert is_regular([0.1] * 20 + [0.2], gap_s=0.0)
    assert not is_regular([0.1] * 10 + [0.2] * 5, gap_s=0.0)
    assert share_from_scatter([0.0] * 4, 0.1) is None
    assert share_from_scatter([i / 1000 for i in range(50)], 0.1) == pytest.approx(0.5, abs=0.02)


# --- the machine ---


class BoardNvml(FakeNvml):
    """Boards that tell all that doctor asks; the counter moves at every read, however long ago the last one was."""

    def __init__(self) -> None:
        super().__init__()
        self.mig = 0
        self.started = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.started += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.started -= 1

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self.energy_mj += 100
        return super().nvmlDeviceGetTotalEnergyConsumption(handle)

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: str) -> list[int]:  # noqa: N802
        return [200_000, 700_000]

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [self.mig, self.mig]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> BoardNvml:
    fake = BoardNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_a_gpu_is_described_with_what_answers_and_what_does_not(nvml: BoardNvml, tmp_path: Path) -> None:
    found = diagnose(tmp_path)
    (gpu,) = found.gpus
    assert found.can_measure
    assert found.meters[0].scope == "gpu-board"
    assert (found.driver, found.cuda) == ("580.1", "13.0")
    assert (gpu.gpu.uuid, gpu.index, gpu.catalog, gpu.has_mig) == ("GPU-aaaa-1", 0, None, False)
    assert (gpu.gpu.power_limit_w, gpu.power_limit_low_w, gpu.power_limit_high_w) == (700.0, 200.0, 700.0)
    assert gpu.has_counter
    assert gpu.is_visible
    assert gpu.read_median_s is not None
    assert gpu.read_worst_s is not None
    assert gpu.read_worst_s >= gpu.read_median_s > 0
    assert {name for name, answers in gpu.answers.items() if not answers} == {"average_power", "processes"}
    assert nvml.started == 0


def test_a_known_gpu_is_named_as_in_the_catalog(nvml: BoardNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetName", lambda *_: "NVIDIA H200")
    assert diagnose().gpus[0].catalog == "h200"


def test_a_gpu_without_a_counter_is_described_and_cannot_be_measured(nvml: BoardNvml) -> None:
    nvml.has_counter = False
    found = diagnose()
    assert not found.can_measure
    (gpu,) = found.gpus
    assert not gpu.has_counter
    assert gpu.counter_period_s is gpu.read_median_s is None
    assert "no energy counter" in str(gpu.reason)
    assert "no energy counter" in str(found.meters[0].reason)
    assert nvml.started == 0


def test_a_board_that_may_not_be_opened_is_told_not_raised(nvml: BoardNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise FakeNvmlError("Insufficient Permissions")

    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetHandleByIndex", refuse)
    found = diagnose()
    assert not found.can_measure
    assert "Insufficient Permissions" in str(found.meters[0].reason)
    assert nvml.started == 0


@pytest.mark.parametrize(
    ("visible", "words"),
    [("", "leaves no GPU visible"), ("7", "expected a GPU of this machine"), ("MIG-1", "MIG slice")],
)
def test_pitfalls_of_cuda_visible_devices_are_told(
    nvml: BoardNvml, monkeypatch: pytest.MonkeyPatch, visible: str, words: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = diagnose()
    assert not found.can_measure
    assert len(found.gpus) == 1
    assert any(words in warning for warning in found.warnings)


def test_mig_other_processes_and_unlike_gpus_are_warned_of(nvml: BoardNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetMigMode", lambda _, handle: [handle == "handle0"] * 2)
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetCount", lambda _: 2)
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetUUID", lambda _, handle: f"GPU-{handle}")
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetName", lambda _, handle: f"NVIDIA {handle}")
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetComputeRunningProcesses", lambda *_: [1, 2])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    found = diagnose()
    text = " ".join(found.warnings)
    assert "export CUDA_DEVICE_ORDER=PCI_BUS_ID" in text
    assert "GPU 0 is cut into MIG slices" in text
    assert "2 processes are on GPU 1" in text
    assert [gpu.is_visible for gpu in found.gpus] == [False, True]
    assert found.can_measure


def test_without_nvml_the_diagnosis_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = diagnose()
    assert found.gpus == ()
    assert not found.meters[0].is_usable
    assert "pip install nvidia-ml-py" in str(found.meters[0].reason)


def test_files_that_may_not_be_read_are_named_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counter = tmp_path / "sys" / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir(parents=True)
    counter.write_text("1")
    device = tmp_path / "dev" / "nvidia0"
    device.parent.mkdir()
    device.write_text("")
    monkeypatch.setattr("os.access", lambda path, _: Path(path) == device)
    granted = {one.path: (one.is_granted, one.fix) for one in diagnose(tmp_path).permissions}
    assert granted == {str(device): (True, None), str(counter): (False, f"sudo chmod a+r {counter}")}


def test_the_simulated_gpu_is_described_in_the_same_words() -> None:
    found = diagnose_simulated(SimulatedMeter(simulated_gpu()))
    assert found.simulated
    assert found.can_measure
    (gpu,) = found.gpus
    assert gpu.counter_period_s == pytest.approx(0.1, abs=0.001)
    assert gpu.read_median_s == pytest.approx(1e-6)
    assert gpu.read_worst_s == pytest.approx(1e-6)
    assert gpu.counter_over_power == pytest.approx(1.0, rel=0.02)
    assert gpu.answers["average_power"]
    assert not gpu.answers["temperature"]
    assert not found.warnings


def test_a_counter_that_gives_half_of_the_power_is_warned_of() -> None:
    class HalfMeter(SimulatedMeter):
        def read(self) -> Mapping[str, float]:
            return {uuid: energy_j / 2 for uuid, energy_j in super().read().items()}

    found = diagnose_simulated(HalfMeter(simulated_gpu()))
    assert found.gpus[0].counter_over_power == pytest.approx(0.5, rel=0.02)
    assert "0.5 times its power" in found.warnings[0]


def test_a_gpu_that_may_not_be_opened_is_named_beside_those_that_may(
    nvml: BoardNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object, index: int) -> str:
        if index:
            raise FakeNvmlError("Insufficient Permissions")
        return "handle0"

    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetHandleByIndex", refuse)
    monkeypatch.setattr(BoardNvml, "nvmlDeviceGetCount", lambda _: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    found = diagnose()
    assert found.can_measure
    assert [gpu.index for gpu in found.gpus] == [0]
    assert any("GPU 1 cannot be opened" in warning for warning in found.warnings)


# --- the load on a real GPU, with a torch that counts ---


class FakeTorch:
    """The part of torch that the load calls: a queue that is done when told."""

    __version__ = "0"
    float16 = "float16"

    def __init__(self, uuid: str = "aaaa-1", available: bool = True) -> None:
        self.launched: list[str] = []
        self.done = 0
        events: list[int] = []

        class Event:
            def __init__(self) -> None:
                events.append(len(events))
                self.number = events[-1]

            def record(self) -> None: ...

            def query(event) -> bool:  # noqa: N805
                return event.number < self.done

        self.cuda = SimpleNamespace(
            Event=Event,
            is_available=lambda: available,
            synchronize=lambda: setattr(self, "done", len(events)),
            get_device_properties=lambda _: SimpleNamespace(uuid=uuid),
        )

    def randn(self, *_: object, **__: object) -> object:
        return object()

    def matmul(self, *_: object, **__: object) -> None:
        self.launched.append("product")

    def add(self, *_: object, **__: object) -> None:
        self.launched.append("addition")


def test_the_load_keeps_a_short_queue_full_and_stops_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    load = TorchLoad("GPU-aaaa-1")
    torch.launched.clear()
    time.sleep(10 * FEED_S)
    assert torch.launched == []
    load.set(FULL)
    time.sleep(10 * FEED_S)
    assert torch.launched == ["product"] * QUEUED
    torch.done += 1
    # Whoever reads the meter does nothing for it.
    wait_until(lambda: len(torch.launched) > QUEUED)
    assert torch.launched == ["product"] * (QUEUED + 1)
    load.set(HALF)
    assert set(torch.launched[QUEUED + 1 :]) == {"addition"}
    load.set(OFF)
    torch.launched.clear()
    time.sleep(10 * FEED_S)
    assert torch.launched == []


@pytest.mark.parametrize(
    ("torch", "code", "fields"),
    [
        (None, "package-missing", {"package": "torch"}),
        (FakeTorch(available=False), "package-missing", {"package": "torch with CUDA"}),
        (FakeTorch(uuid="bbbb-2"), "gpus-differ", {"expected": "GPU-aaaa-1"}),
    ],
)
def test_a_load_that_cannot_run_on_the_metered_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, torch: FakeTorch | None, code: str, fields: dict[str, object]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with raises(code, **fields):
        TorchLoad("GPU-aaaa-1")
