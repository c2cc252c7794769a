"""GPUs that a file describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from infergy.errors import DataError, UsageError
from infergy.hardware import get_gpu, get_model, largest_batch

LINES = {
    "memory_bytes": "150_754_820_096",
    "memory_bandwidth": "4.8e12",
    "tdp_w": "700",
    "peak_flops": "{ bfloat16 = 989.5e12, fp8 = 1979e12 }",
    "link": '{ kind = "NVLink 4", bandwidth = 450e9 }',
}


def write(folder: Path, **changes: str | None) -> str:
    """A file of an H200 with `changes`; None removes a line."""
    lines = {key: value for key, value in (LINES | changes).items() if value is not None}
    path = folder / "mine.toml"
    path.write_text("\n".join(f"{key} = {value}" for key, value in lines.items()), encoding="utf-8")
    return str(path)


def test_a_described_gpu_does_what_the_catalogues_does(tmp_path: Path) -> None:
    path = write(tmp_path)
    mine, known = get_gpu(path), get_gpu("h200")
    assert mine.dense_flops("bfloat16") == known.dense_flops("bfloat16")
    assert (mine.memory_bytes, mine.memory_bandwidth, mine.tdp_w) == (143771 * 2**20, 4.8e12, 700.0)
    assert (mine.name, mine.title, mine.link.kind) == (path, "mine", "NVLink 4")
    assert "by hand in mine.toml" in mine.source
    batches = [largest_batch(get_model("qwen3-8b"), gpu, 512, 64, engine="vllm").batch for gpu in (mine, known)]
    assert batches[0] == batches[1] > 0
    with pytest.raises(UsageError, match="unknown dtype of mine 'int8'"):
        mine.dense_flops("int8")


def test_words_are_kept(tmp_path: Path) -> None:
    gpu = get_gpu(write(tmp_path, title='"My GPU"', source='"its datasheet"', compute_capability='"9.0"'))
    assert (gpu.title, gpu.source, gpu.compute_capability) == ("My GPU", "its datasheet", "9.0")


@pytest.mark.parametrize("key", LINES)
def test_a_missing_figure_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=rf"mine\.toml lacks '{key}'; docs/models.md"):
        get_gpu(write(tmp_path, **{key: None}))


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("memory_bytes", "80", "memory_bytes is 80; expected a number of at least .*80 GiB are 85_899_345_920"),
        ("memory_bandwidth", "3350", "memory_bandwidth is 3350.*bytes a second: 3.35 TB/s are 3.35e12"),
        ("memory_bandwidth", "inf", "memory_bandwidth is inf"),
        ("memory_bandwidth", "nan", "memory_bandwidth is nan"),
        ("tdp_w", '"700 W"', "tdp_w is '700 W'; expected a number"),
        ("tdp_w", "true", "tdp_w is True; expected a number"),
        ("peak_flops", "{ fp8 = 1e15 }", "peak_flops must be a table with bfloat16"),
        ("peak_flops", "989.5e12", "peak_flops must be a table with bfloat16"),
        ("peak_flops", "{ bfloat16 = 989.5 }", "peak_flops.bfloat16 is 989.5.*989.5 TFLOP/s are 989.5e12"),
        ("peak_flops", "{ bfloat16 = 1e15, bf16 = 1e15 }", "unknown dtype 'bf16'; did you mean bfloat16"),
        ("link", "450e9", "link must be a table"),
        ("link", '{ kind = "NVLink 4", bandwidth = 450 }', "link.bandwidth is 450.*in one direction"),
        ("title", "3", "title is 3; expected text"),
        ("tdp", "700", "unknown key 'tdp'; did you mean tdp_w"),
    ],
)
def test_a_figure_that_cannot_be_meant_is_named_with_its_unit(tmp_path: Path, key: str, value: str, error: str) -> None:
    with pytest.raises(DataError, match=error):
        get_gpu(write(tmp_path, **{key: value}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.toml: no such file. The GPUs of the catalogue: infergy gpus"):
        get_gpu(str(tmp_path / "none.toml"))
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bad\.toml: cannot be read"):
        get_gpu(str(path))
    path.write_text("tdp_w =", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.toml: not TOML .*docs/models.md"):
        get_gpu(str(path))


def test_an_unknown_gpu_is_answered_with_how_to_describe_it() -> None:
    with pytest.raises(UsageError, match=r"describe yours in a small TOML file: docs/models.md"):
        get_gpu("mi300x")
