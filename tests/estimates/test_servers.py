"""Servers as they are asked for: what an engine lacks is rejected by name, and what is accepted works."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from infergy.catalog import get_gpu, get_model, model_config
from infergy.cli import app
from infergy.cost.constants import prior_fit
from infergy.cost.rates import rates_of
from infergy.cost.work import server_work
from infergy.errors import DataError, UsageError
from infergy.estimates.candidates import Space, layouts, plain_spec
from infergy.estimates.estimate import estimate_server
from infergy.estimates.next_cells import CellChoice, choose_next
from infergy.estimates.paper import estimate_paper
from infergy.estimates.recommend import recommend
from infergy.estimates.servers import STATIC_BATCH, OpenServer, ServerSpec, open_server, shipped_table
from infergy.estimates.vllm_command import command_of, label_of
from infergy.records import FP8
from infergy.records.engine_setup import DTYPES
from infergy.serving.config import EngineOptions
from infergy.workload.requests import Requests, whole
from raising import raises
from served import some_requests

MIXTURE = "gpt-oss-20b"


def requests(lengths: list[tuple[int, int]]) -> Requests:
    inputs, outputs = (np.array(column, dtype=np.int64) for column in zip(*lengths, strict=True))
    return Requests(source="some", input_tokens=inputs, output_tokens=outputs, order_reason="all at once")


def named(lengths: list[tuple[int, int]], server: OpenServer) -> int:
    """How many notes say that batches are smaller than they would be."""
    notes = estimate_server(whole(requests(lengths)), server).notes
    return sum(note.startswith("static batches") for note in notes)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("gpu", ["h200", "a100-80gb-sxm"])
def test_each_accepted_precision_serves(precision: str, gpu: str) -> None:
    server = open_server(ServerSpec(model=MIXTURE, gpu=gpu, precision=precision), shipped_table())
    assert server.serve(requests([(100, 3)])).counts.finished_requests == 1


@pytest.mark.parametrize("precision", ["int2", "float32", "tf32", "fp4"])
def test_other_precisions_are_rejected_with_a_list_of_those(precision: str) -> None:
    with pytest.raises(UsageError) as told:
        open_server(ServerSpec(precision=precision), shipped_table())
    assert precision in str(told.value)
    assert "float16" in str(told.value)


@pytest.mark.parametrize(
    ("spec", "code", "fields"),
    [
        (ServerSpec(precision="mxfp4"), "bad-value", {"option": "--precision", "value": "mxfp4"}),
        (ServerSpec(engine="transformers", precision=FP8), "engine-lacks", {"engine": "transformers", "value": FP8}),
        (ServerSpec(engine="transformers-fp8"), "engine-lacks", {"engine": "transformers", "value": FP8}),
        (ServerSpec(engine="transformers", precision="mxfp4", model=MIXTURE), "engine-lacks", {"value": "mxfp4"}),
    ],
)
def test_a_precision_that_model_or_engine_lacks_is_rejected(
    spec: ServerSpec, code: str, fields: dict[str, object]
) -> None:
    with raises(code, **fields):
        open_server(spec, shipped_table())


def test_fp8_without_units_for_it_is_of_weights_alone() -> None:
    ampere, hopper = get_gpu("a100-80gb-sxm"), get_gpu("h200")
    notes = {
        (gpu.name, dtype): " ".join(open_server(ServerSpec(gpu=gpu.name, precision=dtype), shipped_table()).notes)
        for gpu in (ampere, hopper)
        for dtype in ("bfloat16", FP8)
    }
    assert [key for key, note in notes.items() if "W8A16" in note] == [(ampere.name, FP8)]
    constants = prior_fit("vllm").constants("h200")
    rates = {
        (gpu.name, dtype): rates_of(
            server_work(get_model("llama-3.1-8b"), dtype=dtype), gpu, constants, idle_w=50.0, server=True
        )
        for gpu in (ampere, hopper)
        for dtype in ("bfloat16", FP8)
    }
    wide, narrow = rates[ampere.name, "bfloat16"], rates[ampere.name, FP8]
    # Half the bytes, no fewer seconds or joules of FLOPs, and no activations to quantise.
    assert narrow.matmul_s.weight < 0.8 * wide.matmul_s.weight
    assert narrow.matmul_s.token >= wide.matmul_s.token
    assert narrow.matmul_j.token >= wide.matmul_j.token
    assert narrow.host.launch == wide.host.launch
    wide, narrow = rates[hopper.name, "bfloat16"], rates[hopper.name, FP8]
    assert narrow.matmul_s.token < wide.matmul_s.token
    assert narrow.matmul_j.token < wide.matmul_j.token


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (EngineOptions(max_num_batched_tokens=2048), "--max-num-batched-tokens"),
        (EngineOptions(enable_prefix_caching=False), "--enable-prefix-caching"),
        (EngineOptions(num_gpu_blocks=100), "--num-gpu-blocks"),
        (EngineOptions(gpu_memory_utilization=0.5), "--gpu-memory-utilization"),
        (EngineOptions(long_prefill_token_threshold=8), "--long-prefill-token-threshold"),
    ],
)
def test_transformers_rejects_what_vllm_alone_has(options: EngineOptions, name: str) -> None:
    with raises("engine-lacks", engine="transformers-compiled", option=name):
        open_server(ServerSpec(engine="transformers-compiled", options=options), shipped_table())


@pytest.mark.parametrize(
    "given",
    [
        ("--max-num-batched-tokens", "2048"),
        ("--enable-prefix-caching",),
        ("--no-enable-prefix-caching",),
        ("--gpu-memory-utilization", "0.92"),
        ("--long-prefill-token-threshold", "0"),
        ("--num-gpu-blocks", "100"),
        ("--vllm-version", "0.25"),
        ("--usage-context", "server"),
    ],
)
def test_the_command_line_rejects_them_too_at_their_defaults(given: tuple[str, ...]) -> None:
    arguments = ["estimate", "azure-code-2023", "--requests", "5", "-e", "transformers", *given]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UsageError)
    assert given[0].replace("--no-", "--") in str(done.exception)


def test_transformers_is_bounded_by_the_context_as_vllm_is(tmp_path: Path) -> None:
    for engine in ("vllm", "transformers"):
        spec = ServerSpec(engine=engine, options=EngineOptions(max_model_len=10**9))
        with raises("bad-value", option="--max-model-len", value=10**9):
            open_server(spec, shipped_table())
    server = open_server(ServerSpec(engine="transformers"), shipped_table())
    counts = server.serve(requests([(100, 3), (100, 4 * 10**9)])).counts
    assert (counts.finished_requests, counts.rejected_requests) == (1, 1)
    # Without a context the memory bounds it.
    config = dict(model_config("llama-3.1-8b"))
    del config["max_position_embeddings"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    for most in (None, 10**12):
        spec = ServerSpec(engine="transformers", model=str(path), options=EngineOptions(max_model_len=most))
        unbounded = open_server(spec, shipped_table())
        assert unbounded.config.max_model_len is not None
        kept = unbounded.config.max_model_len * get_model("llama-3.1-8b").kv_bytes_per_token()
        assert kept < get_gpu("h200").memory_bytes
        assert unbounded.serve(requests([(100, 3), (100, 4 * 10**9)])).counts.rejected_requests == 1


def test_a_step_of_too_many_tokens_is_named_as_the_cause() -> None:
    with raises("does-not-fit", option="--max-num-batched-tokens", value=10**11):
        open_server(ServerSpec(options=EngineOptions(max_num_batched_tokens=10**11)), shipped_table())
    with raises("does-not-fit", model="llama-3.1-70b", gpu="l4"):
        open_server(ServerSpec(model="llama-3.1-70b", gpu="l4"), shipped_table())


def test_the_studys_method_rejects_replicas() -> None:
    with raises("options-conflict", options={"--method": "ceiling", "--replicas": 2}):
        estimate_paper(some_requests(5), ServerSpec(replicas=2), shipped_table())


def test_what_to_type_names_all_servers() -> None:
    several = ServerSpec(replicas=3, router="least_loaded")
    assert command_of(open_server(several, shipped_table()))[-1] == "--data-parallel-size 3"
    # Requests in turn, or experts that compute in step: no flag of vLLM serves as it was simulated.
    for spec in (replace(several, router="round_robin"), replace(several, model=MIXTURE)):
        (*_, last) = command_of(open_server(spec, shipped_table()))
        assert last.startswith("# 3 such servers")
        assert spec.router in last
    assert "3" not in command_of(open_server(ServerSpec(), shipped_table()))[-1]


def test_candidates_of_a_configured_server_can_all_be_opened() -> None:
    options = EngineOptions(enable_prefix_caching=False, gpu_memory_utilization=0.8, max_num_batched_tokens=4096)
    present = ServerSpec(options=options)
    for spec in layouts(present, Space.around(present), shares_prefixes=False):
        open_server(spec, shipped_table())


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("vllm-bt512", EngineOptions(max_num_batched_tokens=512)),
        ("vllm-len4096", EngineOptions(max_model_len=4096)),
        ("vllm-mem0.5", EngineOptions(gpu_memory_utilization=0.5)),
        ("vllm-pc", EngineOptions(enable_prefix_caching=True)),
        ("vllm-server-s16-tp2", EngineOptions(max_num_seqs=16, tensor_parallel_size=2)),
        ("vllm-eager", EngineOptions(enforce_eager=True)),
        ("transformers-len2048", EngineOptions(max_model_len=2048)),
    ],
)
def test_each_part_of_a_label_is_an_option(label: str, options: EngineOptions) -> None:
    by_label, by_options = (
        open_server(spec, shipped_table())
        for spec in (ServerSpec(engine=label), ServerSpec(engine=label.partition("-")[0], options=options))
    )
    assert by_label.config == by_options.config
    assert by_label.spec.options == options
    assert label_of(by_label) == label_of(by_options)
    # Options of the present server are those of the candidates, however they were given.
    specs = [plain_spec(spec) for spec in (by_label.spec, by_options.spec, ServerSpec(engine=label))]
    assert specs[0] == specs[1] == specs[2]


@pytest.mark.parametrize(
    ("label", "option"),
    [
        ("vllm-compiled", "--engine"),
        ("transformers-bt512", "--max-num-batched-tokens"),
        ("transformers-pc", "--enable-prefix-caching"),
        ("transformers-mem0.5", "--gpu-memory-utilization"),
        ("transformers-server", "--usage-context"),
    ],
)
def test_a_part_of_a_label_that_the_engine_lacks_is_rejected(label: str, option: str) -> None:
    with raises("engine-lacks", option=option):
        open_server(ServerSpec(engine=label), shipped_table())


@pytest.mark.parametrize(
    ("spec", "option"),
    [
        (ServerSpec(options=EngineOptions(max_num_seqs=0)), "--max-num-seqs"),
        (ServerSpec(options=EngineOptions(tensor_parallel_size=0)), "--tensor-parallel-size"),
        (ServerSpec(engine="vllm-s0"), "--max-num-seqs"),
        (ServerSpec(engine="transformers", options=EngineOptions(max_model_len=0)), "--max-model-len"),
    ],
)
def test_nought_is_no_default(spec: ServerSpec, option: str) -> None:
    with raises("bad-value", option=option, value=0, expected="at least 1"):
        open_server(spec, shipped_table())


def test_a_static_batch_is_as_large_as_fits_where_no_size_was_given() -> None:
    lengths = [(2048, 64)] * 40
    small = ServerSpec(engine="transformers", gpu="l4")
    server = open_server(small, shipped_table())
    run = server.serve(requests(lengths))
    assert run.counts.finished_requests == 40
    assert 1 < run.counts.peak_running < STATIC_BATCH
    assert named(lengths, server) == 1
    assert named([(128, 32)] * 40 + [(1, 100)], server) == 0
    # That size fits where it is given, too; one more is an error.
    most = run.counts.peak_running
    for size in (most, most + 1):
        given = open_server(replace(small, options=EngineOptions(max_num_seqs=size)), shipped_table())
        if size == most:
            assert named(lengths, given) == 0
            assert given.serve(requests(lengths)).energy_j == run.energy_j
            continue
        with raises("does-not-fit", option="--max-num-seqs", value=size, gpu="l4"):
            given.serve(requests(lengths))
    large = open_server(ServerSpec(engine="transformers"), shipped_table())
    assert large.serve(requests(lengths)).counts.peak_running == STATIC_BATCH
    assert named(lengths, large) == 0


def test_a_request_that_does_not_fit_alone_is_rejected_in_any_batch() -> None:
    for size in (None, 1):
        spec = ServerSpec(engine="transformers", gpu="l4", options=EngineOptions(max_num_seqs=size))
        counts = open_server(spec, shipped_table()).serve(requests([(100, 3), (100_000, 3), (100, 3)])).counts
        assert (counts.finished_requests, counts.rejected_requests) == (2, 1)


def test_static_batches_are_as_large_as_fit_unless_their_size_is_given() -> None:
    present = ServerSpec(gpu="l4")
    found = recommend(requests([(2048, 64)] * 40), None, shipped_table(), present=present)
    assert found.static_batches is not None
    assert "transformers" in {one.label for one in found.configurations}
    with raises("does-not-fit", option="--max-num-seqs"):
        static = ServerSpec(engine="transformers-s32", gpu="l4")
        recommend(requests([(2048, 64)] * 40), [static], shipped_table(), present=present)


def test_cells_of_static_batches_that_do_not_fit_are_not_chosen() -> None:
    spec, choice = ServerSpec(engine="transformers", gpu="l4"), {"input_tokens": 2048, "output_tokens": 64}
    choices = [CellChoice(batch=size, **choice) for size in (2, 32)]
    found = choose_next(
        requests([(2048, 64)] * 4), spec, shipped_table(), choices=[choices], target=0.001, budget_s=1e6
    )
    assert {cell.batch for cell in found.cells} == {2}


def test_a_missing_file_of_servers_is_named_in_plain_words() -> None:
    done = CliRunner().invoke(app, ["estimate", "azure-code-2023", "--compare", "no-such-file.toml"])
    assert isinstance(done.exception, DataError)
    assert "no-such-file.toml" in str(done.exception)
    assert "Errno" not in str(done.exception)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_longer_request_takes_more_until_it_is_rejected(engine: str) -> None:
    server = open_server(ServerSpec(engine=engine))

    def energy_j(input_tokens: int) -> float:
        return estimate_server(whole(requests([(input_tokens, 10)])), server).run.energy_j

    energies = [energy_j(2**power) for power in (10, 13, 16)]
    assert energies == sorted(set(energies))
    for power in (17, 20, 32):
        with raises("does-not-fit"):
            energy_j(2**power)
    beside = estimate_server(whole(requests([(100, 10), (2**20, 10)])), server).run
    assert (beside.requests, beside.rejected_requests) == (2, 1)
