"""`infergy doctor` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from infergy.cli import app
from infergy.cli.schemas import make_schema
from infergy.records.behaviour import MeterBehaviour
from infergy.records.codec import from_json
from measure.test_doctor import BoardNvml
from raising import seen


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without pynvml, zeus or torch."""
    for name in ("pynvml", "zeus", "zeus.device", "torch"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
def test_where_nothing_can_be_measured_it_says_what_to_type_and_exits_with_3() -> None:
    done = doctor()
    assert done.exit_code == 3
    assert "pip install nvidia-ml-py" in done.stdout
    assert "GPUs: none" in done.stdout
    assert "infergy doctor --simulate" in done.stdout
    found = json.loads((told := doctor("--json")).stdout)
    assert told.exit_code == 3
    assert found["can_measure"] is False
    Draft202012Validator(make_schema("doctor")).validate(found)


@pytest.mark.usefixtures("bare")
def test_the_meter_of_a_missing_gpu_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    done = doctor("--meter", "-o", str(tmp_path / "meter.json"))
    assert done.exit_code == 3
    assert "--meter needs the meter nvml" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_machine_with_a_gpu_exits_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", BoardNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    done = doctor()
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Energy can be measured here, with nvml.")
    for words in ("power limit 700 W of 200 to 700 W", "does not answer: average power, processes"):
        assert words in done.stdout
    assert "GPU-aaaa-1" not in done.stdout
    assert "GPU-aaaa-1" in doctor("--explain").stdout
    found = json.loads(doctor("--json").stdout)
    Draft202012Validator(make_schema("doctor")).validate(found)
    assert found["gpus"][0]["gpu"]["uuid"] == "GPU-aaaa-1"


def test_simulated_all_of_it_runs_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "meter.json"
    done = doctor("--simulate", "--meter", "-o", str(path), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    Draft202012Validator(make_schema("doctor")).validate(found)
    kept = json.loads(path.read_text())
    Draft202012Validator(make_schema("meter")).validate(kept)
    assert kept == found["behaviour"]
    behaviour = from_json(MeterBehaviour, kept, str(path))
    assert behaviour.simulated
    assert behaviour.gpu.uuid == "GPU-simulated-0"
    assert behaviour.instant_power.sampled_share == pytest.approx(0.25, abs=0.05)
    assert {one.half_period_s for one in behaviour.agreements} == {None, 0.5, 0.1, 0.05, 0.02}


def test_simulated_the_tables_say_that_they_say_nothing() -> None:
    done = doctor("--simulate", "--meter")
    assert done.exit_code == 0
    assert "SIMULATED" in done.stdout
    for words in ("energy counter: moves each", "regular)", "counter over the integral of instant power", "half: 1.00"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-o", "x.json"], "option-missing"),
        (["--simulate", "--meter", "-o", "/proc/x.json"], "file-not-writable"),
    ],
)
def test_a_file_that_nothing_would_be_written_to_is_refused(arguments: list[str], code: str) -> None:
    done = doctor(*arguments)
    assert seen(done.exception) == (code, {})
