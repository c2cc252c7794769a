"""GPUs that a file describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from infergy.catalog import get_gpu, get_model
from infergy.catalog.memory import largest_batch
from raising import raises

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


def test_a_described_gpu_does_what_the_catalogs_does(tmp_path: Path) -> None:
    path = write(tmp_path)
    mine, known = get_gpu(path), get_gpu("h200")
    assert mine.dense_flops("bfloat16") == known.dense_flops("bfloat16")
    assert (mine.memory_bytes, mine.memory_bandwidth, mine.tdp_w) == (143771 * 2**20, 4.8e12, 700.0)
    assert (mine.name, mine.title, mine.link.kind) == (path, "mine", "NVLink 4")
    assert "by hand in mine.toml" in mine.source
    batches = [largest_batch(get_model("qwen3-8b"), gpu, 512, 64, engine="vllm").batch for gpu in (mine, known)]
    assert batches[0] == batches[1] > 0
    with raises("unknown-name", name="int8"):
        mine.dense_flops("int8")


def test_words_are_kept(tmp_path: Path) -> None:
    gpu = get_gpu(write(tmp_path, title='"My GPU"', source='"its datasheet"', compute_capability='"9.0"'))
    assert (gpu.title, gpu.source, gpu.compute_capability) == ("My GPU", "its datasheet", "9.0")


@pytest.mark.parametrize("key", LINES)
def test_a_missing_figure_is_named(tmp_path: Path, key: str) -> None:
    with raises("missing-field", keys=[key]):
        get_gpu(write(tmp_path, **{key: None}))


@pytest.mark.parametrize(
    ("key", "value", "code", "fields"),
    [
        ("memory_bytes", "80", "bad-field", {"key": "memory_bytes", "value": 80}),
        ("memory_bandwidth", "3350", "bad-field", {"key": "memory_bandwidth", "value": 3350}),
        ("memory_bandwidth", "inf", "bad-field", {"key": "memory_bandwidth"}),
        ("memory_bandwidth", "nan", "bad-field", {"key": "memory_bandwidth"}),
        ("tdp_w", '"700 W"', "bad-field", {"key": "tdp_w", "value": "700 W"}),
        ("tdp_w", "true", "bad-field", {"key": "tdp_w", "value": True}),
        ("peak_flops", "{ fp8 = 1e15 }", "missing-field", {"keys": ["peak_flops.bfloat16"]}),
        ("peak_flops", "989.5e12", "missing-field", {"keys": ["peak_flops.bfloat16"]}),
        ("peak_flops", "{ bfloat16 = 989.5 }", "bad-field", {"key": "peak_flops.bfloat16", "value": 989.5}),
        (
            "peak_flops",
            "{ bfloat16 = 1e15, bf16 = 1e15 }",
            "unknown-field",
            {"key": "bf16", "nearest": ["bfloat16", "float16"]},
        ),
        ("link", "450e9", "bad-field", {"key": "link"}),
        ("link", '{ kind = "NVLink 4", bandwidth = 450 }', "bad-field", {"key": "link.bandwidth", "value": 450}),
        ("title", "3", "bad-field", {"key": "title", "value": 3}),
        ("tdp", "700", "unknown-field", {"key": "tdp", "nearest": ["tdp_w"]}),
    ],
)
def test_a_figure_that_cannot_be_meant_is_named_with_its_unit(
    tmp_path: Path, key: str, value: str, code: str, fields: dict[str, object]
) -> None:
    with raises(code, **fields):
        get_gpu(write(tmp_path, **{key: value}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with raises("file-not-found", path=tmp_path / "none.toml"):
        get_gpu(str(tmp_path / "none.toml"))
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    with raises("file-not-readable", path=path):
        get_gpu(str(path))
    path.write_text("tdp_w =", encoding="utf-8")
    with raises("bad-syntax", path=path, form="TOML"):
        get_gpu(str(path))


def test_an_unknown_gpu_is_answered_with_how_to_describe_it() -> None:
    with raises("unknown-gpu", name="mi300x"):
        get_gpu("mi300x")
