"""`infergy calibrate` as a user meets it, and an estimate that rests on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from infergy.cli import app
from infergy.cli.schemas import make_schema
from infergy.errors import DataError
from raising import seen

ESTIMATE = ("estimate", "azure-code-2023", "--requests", "50")
UNMEASURED = (*ESTIMATE, "--model", "qwen3-30b-a3b", "--gpu", "h200")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "h200.jsonl"
    done = invoke("calibrate", "--simulate", "h200", "-o", path, "--budget", "10m")
    assert done.exit_code == 0, done.output
    return path


def test_it_tells_each_window_and_then_the_constants(tmp_path: Path) -> None:
    done = invoke("calibrate", "--simulate", "h200", "-o", tmp_path / "h200.jsonl", "--budget", "60s")
    assert done.exit_code == 0, done.output
    assert "product 16 x 8192 x 28672 bfloat16:" in done.stderr
    assert "the budget leaves no time for" in done.stderr
    assert "--calibration" in done.stderr
    for words in ("SIMULATED", "weight_efficiency", "0.800", "of bandwidth"):
        assert words in done.stdout
    assert "product 16 x 8192" not in done.stdout


@pytest.mark.parametrize("name", ["README.md", "docs/calibration.md"])
def test_the_constants_that_are_shown_are_those_that_are_printed(name: str) -> None:
    printed = {line.rstrip() for line in invoke("calibrate", "--show", "h100-sxm").stdout.splitlines()}
    text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if re.match(r" [a-z0-9_]+ {2,}\d", line)]
    assert len(shown) >= 4
    assert set(shown) <= printed


def test_a_file_is_shown_without_measuring_and_as_json(file: Path) -> None:
    before = file.read_bytes()
    shown = invoke("calibrate", "--show", file)
    assert shown.exit_code == 0, shown.output
    assert "fp8_byte_energy" in shown.stdout
    found = json.loads(invoke("calibrate", "--show", file, "--json").stdout)
    Draft202012Validator(make_schema("calibration")).validate(found)
    assert found["gpu"] == "h200"
    assert found["simulated"] is True
    for one in found["constants"]:
        assert one["low"] < one["value"] < one["high"]
    assert file.read_bytes() == before


def test_a_constant_without_a_window_is_said_to_be_the_datasheets(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(file.read_text())
    (row,) = (line for line in invoke("calibrate", "--show", path).stdout.splitlines() if "reduce_s" in line)
    assert "as datasheet" in row


def run_of(*arguments: object) -> dict[str, float]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    (one,) = json.loads(done.stdout)["estimates"]
    run: dict[str, float] = one["served"]
    return run


@pytest.mark.parametrize("asked", [(*ESTIMATE, "--gpu", "h200"), UNMEASURED], ids=["measured", "not measured"])
def test_an_estimate_takes_the_constants(file: Path, asked: tuple[str, ...]) -> None:
    calibrated, plain = (run_of(*asked, *more) for more in (("--calibration", file, "--allow-simulated"), ()))
    assert calibrated["energy_j"] != plain["energy_j"]
    assert calibrated["low_j"] < calibrated["energy_j"] < calibrated["high_j"]
    assert calibrated["energy_j"] == pytest.approx(plain["energy_j"], rel=0.3)


def test_a_shipped_calibration_goes_by_its_name_and_concerns_its_gpu_alone() -> None:
    named = ("--calibration", "h100-sxm")
    there, here = ((*ESTIMATE, "--gpu", gpu) for gpu in ("h100-sxm", "h200"))
    assert run_of(*there, *named)["energy_j"] != run_of(*there)["energy_j"]
    assert run_of(*here, *named)["energy_j"] == pytest.approx(run_of(*here)["energy_j"], rel=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        (*ESTIMATE, "--gpu", "h100-sxm", "--calibration", "h100"),
        ("next", "azure-code-2023", "--gpu", "h100-sxm", "--calibration", "h100"),
        ("replay", "azure-code-2023", "--gpu", "h100-sxm", "--calibration", "h100"),
        ("calibrate", "--show", "h100"),
    ],
)
def test_an_unknown_calibration_is_told_those_that_ship_and_how_to_make_one(arguments: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert seen(done.exception, "name", "known") == ("unknown-calibration", {"name": "h100", "known": ["h100-sxm"]})
    assert "infergy calibrate -o h100.jsonl" in str(done.exception)


@pytest.mark.parametrize("verb", ["estimate", "next", "replay", "recommend", "breakdown"])
def test_a_calibration_of_a_simulated_gpu_needs_the_option_that_allows_it(file: Path, verb: str) -> None:
    done = invoke(verb, "azure-code-2023", "--requests", "50", "--calibration", file)
    assert isinstance(done.exception, DataError), done.output
    assert str(file) in str(done.exception)
    assert "--allow-simulated" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "code", "fields"),
    [
        (("--budget", "soon"), "bad-value", {"option": "--budget", "value": "soon"}),
        (("--budget", "3s"), "bad-value", {"option": "--budget", "value": 3.0}),
        (("--simulate", "h20"), "unknown-gpu", {"name": "h20"}),
        (("--gpu", "b200"), "other-gpu", {"expected": "b200"}),
        (("--show", "none.jsonl"), "file-not-found", {"path": "none.jsonl"}),
        (("-o", "/proc/none/h200.jsonl"), "file-not-writable", {}),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(
    tmp_path: Path, arguments: tuple[str, ...], code: str, fields: dict[str, object]
) -> None:
    path = tmp_path / "h200.jsonl"
    done = invoke("calibrate", "--simulate", "h200", "-o", path, *arguments)
    assert seen(done.exception, *fields) == (code, fields)
    assert not path.exists()


def test_without_a_gpu_or_torch_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infergy.measure import calibrate
    from infergy.measure.block import BlockEnergy  # noqa: F401 - loaded before torch is hidden
    from infergy.meters.simulated import SteadyMeter

    path = tmp_path / "h200.jsonl"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(invoke("calibrate", "-o", path).exception)

    class Nvml:
        @staticmethod
        def open(count: int) -> SteadyMeter:
            return SteadyMeter(count=count)

    monkeypatch.setattr(calibrate, "NvmlMeter", Nvml)
    monkeypatch.setattr(calibrate, "find_spec", lambda _: None)
    assert "needs torch: pip install torch" in str(invoke("calibrate", "-o", path).exception)
    assert not path.exists()


def test_measuring_needs_the_standard_library_alone(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "for name in ('typer', 'rich', 'numpy', 'scipy', 'polars', 'pydantic', 'pandas', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from infergy.measure.calibrate import run_here\n"
        "run_here(Path(sys.argv[1]), budget_s=30.0, simulate='h200', report=print)\n"
    )
    path = tmp_path / "h200.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(path.read_text().splitlines()) > 3
    assert invoke("calibrate", "--show", path).exit_code == 0


def test_choosing_cells_and_predicting_a_replay_take_it_too(file: Path) -> None:
    known = ("--calibration", file, "--allow-simulated")
    asked = ("azure-code-2023", "--requests", "50", "--gpu", "h200", "-e", "vllm-fp8", "--json")

    def answer(verb: str, *arguments: object) -> dict[str, Any]:
        done = invoke(verb, *asked, *arguments)
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    calibrated, plain = (answer("next", *more)["servers"][0]["half_width"] for more in (known, ()))
    assert calibrated != plain
    calibrated, plain = (answer("replay", *more)["predicted"]["energy_j"] for more in (known, ()))
    assert calibrated != plain
