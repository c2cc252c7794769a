"""The catalog of GPUs."""

from __future__ import annotations

import pytest

from infergy.catalog import find_gpu_by_driver_name, get_gpu, gpu_names
from raising import raises

DRIVER_NAMES = {
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "NVIDIA A100-PCIE-40GB": "a100-40gb-pcie",
    "NVIDIA A100 80GB PCIe": "a100-80gb-pcie",
    "NVIDIA A100-SXM4-40GB": "a100-40gb-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-80gb-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA L40S": "l40s",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA A10": "a10",
    "NVIDIA A10G": "a10g",
    "NVIDIA A30": "a30",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA H200 NVL": "h200-nvl",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA GB200": "gb200",
    "NVIDIA L40": "l40",
    "NVIDIA GeForce RTX 3090": "rtx-3090",
    "NVIDIA GeForce RTX 5090": "rtx-5090",
}


def test_every_gpu_is_found_by_the_name_its_driver_gives() -> None:
    found = {driver: find_gpu_by_driver_name(driver) for driver in DRIVER_NAMES}
    assert {driver: gpu and gpu.name for driver, gpu in found.items()} == DRIVER_NAMES
    assert set(DRIVER_NAMES.values()) == set(gpu_names())


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA GH200 144G HBM3e", "Tesla T4", ""])
def test_a_slice_or_another_gpu_is_not_mistaken(name: str) -> None:
    assert find_gpu_by_driver_name(name) is None


def test_no_name_means_two_gpus() -> None:
    names = [name.lower() for known in gpu_names() for name in {known, *get_gpu(known).aliases, get_gpu(known).title}]
    assert len(names) == len(set(names))


def test_case_does_not_matter() -> None:
    assert get_gpu("nvidia h200") is get_gpu("H200")


def test_an_unknown_gpu_is_answered_with_the_nearest_and_the_next_command() -> None:
    with raises("unknown-gpu", name="h20", nearest=["h200", "gh200", "b200"]):
        get_gpu("h20")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("a100", ["a100-40gb-pcie", "a100-80gb-pcie", "a100-40gb-sxm", "a100-80gb-sxm"]),
        ("NVIDIA A100 80GB", ["a100-80gb-pcie", "a100-80gb-sxm"]),
        ("H100", ["h100-pcie", "h100-sxm", "h100-nvl"]),
        ("4090", ["rtx-4090"]),
    ],
)
def test_a_name_that_several_gpus_share_lists_them(name: str, kinds: list[str]) -> None:
    with raises("unknown-gpu", name=name, nearest=kinds):
        get_gpu(name)


@pytest.mark.parametrize("name", ["t4", "Tesla T4", "Tesla V100-SXM2-16GB"])
def test_a_gpu_without_bfloat16_says_so(name: str) -> None:
    with raises("unknown-gpu", name=name) as caught:
        get_gpu(name)
    assert "bfloat16" in str(caught.value)


@pytest.mark.parametrize("name", gpu_names())
def test_figures_of_a_gpu_are_plausible(name: str) -> None:
    gpu = get_gpu(name)
    peaks = gpu.peak_flops
    assert peaks["float32"] <= peaks["tf32"] <= peaks["bfloat16"] == peaks["float16"] < peaks["int8"]
    assert "https://" in gpu.source
    assert 0 < gpu.link.bandwidth < gpu.memory_bandwidth
    # FLOPs a byte and a joule: outside these, a unit or a zero is wrong.
    assert 70 < peaks["bfloat16"] / gpu.memory_bandwidth < 500
    assert 0.2e12 < peaks["bfloat16"] / gpu.tdp_w < 3e12
    assert gpu.memory_bytes % 2**20 == 0


@pytest.mark.parametrize("name", gpu_names())
def test_a_headline_counts_sparsity_or_is_unknown_with_a_reason(name: str) -> None:
    gpu = get_gpu(name)
    if gpu.headline_flops is None:
        assert "dense" in gpu.headline_basis
    else:
        assert gpu.headline_flops > gpu.peak_flops["bfloat16"] * 1.99
        assert "sparsity" in gpu.headline_basis


def test_the_studys_headline_of_the_a6000_is_there() -> None:
    assert get_gpu("rtx-a6000").headline_flops == 309.7e12
    assert get_gpu("rtx-a6000").tdp_w == 300


def test_the_h200_shows_the_memory_its_driver_shows() -> None:
    assert get_gpu("h200").memory_bytes == 143771 * 2**20


def test_a_dtype_without_tensor_cores_is_rejected() -> None:
    with raises("unknown-name", gpu="a100-80gb-sxm", name="fp8"):
        get_gpu("a100-80gb-sxm").dense_flops("fp8")
