"""Commands of vLLM: what is typed for a server is read as that server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infergy.errors import UsageError
from infergy.estimates.candidates import plain_spec
from infergy.estimates.servers import ServerSpec, open_server
from infergy.estimates.vllm_command import command_of, known_flags, parse_command
from infergy.serving.config import EngineOptions
from raising import raises

SERVE = "vllm serve meta-llama/Llama-3.1-8B-Instruct "


@pytest.mark.parametrize(
    "spec",
    [
        ServerSpec(),
        ServerSpec(engine="vllm-fp8"),
        ServerSpec(engine="vllm-eager-tp2", options=EngineOptions(max_num_seqs=64, max_num_batched_tokens=2048)),
        ServerSpec(precision="float16", options=EngineOptions(max_model_len=9000, gpu_memory_utilization=0.8)),
        ServerSpec(options=EngineOptions(enable_prefix_caching=False, long_prefill_token_threshold=512)),
        ServerSpec(replicas=3, router="least_loaded"),
        ServerSpec(options=EngineOptions(block_size=32, num_gpu_blocks=2000, async_scheduling=False)),
        ServerSpec(options=EngineOptions(cudagraph_capture_sizes=(1, 2, 8))),
    ],
)
def test_what_is_typed_is_read_as_the_same_server(spec: ServerSpec) -> None:
    typed = " ".join(command_of(open_server(spec))).replace("MODEL", "llama-3.1-8b")
    assert plain_spec(parse_command(typed).spec) == plain_spec(spec)


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--max-num-seqs 16", {"max_num_seqs": 16}),
        ("--max_num_seqs=16", {"max_num_seqs": 16}),
        ("--max-model-len 16k", {"max_model_len": 16_000}),
        ("--max-model-len 16K", {"max_model_len": 16_384}),
        ("--max-model-len -1", {"max_model_len": None}),
        ("--enable-prefix-caching", {"enable_prefix_caching": True}),
        ("--no-async-scheduling", {"async_scheduling": False}),
        ("--cudagraph-capture-sizes 1 2 4", {"cudagraph_capture_sizes": (1, 2, 4)}),
        ("-tp 2 --num-gpu-blocks-override 99", {"tensor_parallel_size": 2, "num_gpu_blocks": 99}),
    ],
)
def test_flags_are_read_as_vllm_reads_them(flags: str, options: dict[str, object]) -> None:
    assert parse_command(SERVE + flags).spec.options == EngineOptions(**options)  # type: ignore[arg-type]


def test_precision_is_the_narrowest_that_is_named() -> None:
    assert parse_command(SERVE + "--dtype half").spec.precision == "float16"
    assert parse_command(SERVE + "--dtype half -q fp8").spec.precision == "fp8"
    assert parse_command(SERVE + "--dtype auto").spec.precision is None
    assert parse_command("vllm serve RedHatAI/Llama-3.1-8B-Instruct-FP8").spec.precision == "fp8"


def test_the_rest_of_a_command_is_kept_and_what_is_not_simulated_is_named() -> None:
    found = parse_command(f"A=1 {SERVE} --port 80 --kv-cache-dtype fp8 --hf-overrides.x y --speculative-config '{{}}'")
    assert found.model == "meta-llama/Llama-3.1-8B-Instruct"
    assert found.spec.model == "llama-3.1-8b"
    assert found.others == (
        "--port 80",
        "--kv-cache-dtype fp8",
        "--hf-overrides.x y",
        "--speculative-config '{}'",
    )
    assert [note.split()[0] for note in found.notes] == ["--kv-cache-dtype", "--hf-overrides", "--speculative-config"]
    assert parse_command("vllm serve /models/mine", model="qwen3-8b").spec.model == "qwen3-8b"


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve meta-llama/Llama-3.1-8B-Instruct \\\n  --max-num-seqs 64 \\\n  -tp 2",
        "CUDA_VISIBLE_DEVICES=0,1 nohup " + SERVE + "--max-num-seqs 64 -tp=2 > server.log 2>&1 &",
        SERVE + "--max-num-seqs 64 -tp 2 | tee server.log",
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.25.0 --model meta-llama/Llama-3.1-8B-Instruct "
        "--max-num-seqs 64 -tp 2",
        "python -m vllm.entrypoints.openai.api_server --model llama-3.1-8b --max-num-seqs 64 -tp 2",
    ],
)
def test_commands_are_read_as_they_are_pasted(command: str) -> None:
    typed = parse_command(command)
    assert typed.spec.options == EngineOptions(max_num_seqs=64, tensor_parallel_size=2)
    assert (typed.spec.model, typed.others) == ("llama-3.1-8b", ())


def test_a_checkpoint_in_fp8_is_not_quantised_again() -> None:
    typed = parse_command("vllm serve RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 --port 80")
    command = command_of(open_server(replace(typed.spec, options=EngineOptions(max_num_seqs=16))))
    assert " ".join(typed.again(command)) == (
        "vllm serve RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 --max-num-seqs 16 --port 80"
    )


def test_the_llm_class_is_typed_as_one() -> None:
    options = EngineOptions(max_num_seqs=16, enable_prefix_caching=False, cudagraph_capture_sizes=(1, 2))
    command = command_of(open_server(ServerSpec(usage_context="llm", options=options)))
    assert command == ("LLM(MODEL, max_num_seqs=16, enable_prefix_caching=False, cudagraph_capture_sizes=(1, 2))",)


@pytest.mark.parametrize("flags", ["-O3", "-O 3", "-O.mode=3 -O.backend=x", "-cc.mode 3", "--config more.yaml"])
def test_flags_that_are_not_simulated_are_kept_as_typed_and_noted(flags: str) -> None:
    typed = parse_command(SERVE + flags)
    assert " ".join(typed.others) == flags
    assert len(typed.notes) == len(typed.others)


def test_formats_of_weights_are_those_of_the_command_or_rejected_or_noted() -> None:
    for method in ("awq", "gptq_marlin", "bitsandbytes"):
        assert parse_command(SERVE + f"--quantization {method}").spec.precision == "int4"
    awq = parse_command("vllm serve Qwen/Qwen3-8B-AWQ --dtype float16")
    assert awq.spec.precision == "int4"
    assert command_of(open_server(awq.spec))[-1] == "# MODEL: a checkpoint in int4"
    with raises("bad-value", option="--quantization of --present"):
        parse_command(SERVE + "--quantization aqlm")
    stored = "--quantization compressed-tensors"
    assert not parse_command(f"vllm serve RedHatAI/Llama-3.1-8B-Instruct-FP8 {stored}").notes
    assert "format of its weights is not known" in parse_command(SERVE + stored).notes[0]


def test_a_model_that_is_not_known_can_be_named_beside_the_command() -> None:
    with pytest.raises(UsageError, match="--model"):
        parse_command("vllm serve /models/mine")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("vllm chat", "bad-value"),
        ("vllm serve", "bad-value"),
        ("vllm serve 'unclosed", "bad-value"),
        (SERVE + "--max-num-seqs", "bad-value"),
        (SERVE + "-pp 2", "not-supported"),
        (SERVE + "--max-num-seqs many", "bad-value"),
        (SERVE + "--max-num-seqs 1 2", "bad-value"),
        (SERVE + "--dtype int4", "bad-value"),
        (SERVE + "--data-parallel-size 0", "bad-value"),
        (SERVE + "--data-parallel-size 1000000", "bad-value"),
        ("vllm bench serve --model llama-3.1-8b --num-prompts 100", "bad-value"),
    ],
)
def test_what_cannot_be_meant_is_rejected(command: str, code: str) -> None:
    with raises(code):
        parse_command(command)


def test_an_unknown_flag_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(SERVE + "--max-num-sequences 4")
    assert caught.value.code == "unknown-name"
    assert "--max-num-seqs" in caught.value.fields["nearest"]


def test_flags_are_listed_once() -> None:
    known = known_flags()
    names = [*known["no_effect"], *known["not_simulated"]]
    assert len(names) == len(set(names))
    assert set(known["short"].values()) <= {*names, "tensor-parallel-size", "data-parallel-size", "quantization"}
