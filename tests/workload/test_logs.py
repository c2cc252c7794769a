"""Logs that people have, each a small file of its shape: recognised, its tokens those that were processed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infergy.workload import Trace, open_trace
from infergy.workload.formats import format_names


class Log(NamedTuple):
    """A log: its format, its text, and what is right: requests, input, output and cached tokens, seconds, failed."""

    format: str
    text: str
    requests: int
    input: int
    output: int
    cached: int | None = None
    duration_s: float | None = None
    failed: int = 0
    suffix: str = "jsonl"


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def chat(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"usage": {**usage, **more}}


CLAUDE_USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 8000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 50,
    "service_tier": "standard",
}


def claude(own: str, second: int, output: int = 50) -> dict[str, Any]:
    usage = {**CLAUDE_USAGE, "output_tokens": output}
    message = {"id": own, "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    more = {"parentUuid": "p", "isSidechain": False, "sessionId": "s", "requestId": f"req_{own}"}
    return {**more, "type": "assistant", "timestamp": f"2026-01-05T10:00:0{second}.123Z", "message": message}


def otlp(start: int, **counts: int) -> dict[str, Any]:
    attributes = [{"key": f"gen_ai.usage.{name}", "value": {"intValue": str(count)}} for name, count in counts.items()]
    attributes.append({"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}})
    return {"name": "chat m", "startTimeUnixNano": str(1_700_000_000_000_000_000 + start), "attributes": attributes}


def spans(*records: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"scope": {}, "spans": list(records)}]}]}


def otel(second: int, operation: str = "chat", **counts: int) -> dict[str, Any]:
    attributes = {"gen_ai.operation.name": operation, **{f"gen_ai.usage.{name}": n for name, n in counts.items()}}
    return {"name": "chat m", "start_time": f"2026-01-01T00:00:0{second}.000000Z", "attributes": attributes}


LITELLM = (
    "request_id,call_type,api_key,spend,total_tokens,prompt_tokens,completion_tokens,startTime,endTime,"
    "completionStartTime,model,cache_hit,status\n"
)
OPENROUTER = (
    "generation_id,created_at,model_permaslug,provider_name,api_key_name,app_name,tokens_prompt,tokens_completion,"
    "tokens_reasoning,tokens_cached,cost_total,cancelled,finish_reason_normalized\n"
)
AIPERF = {
    "input_sequence_length": {"value": 550, "unit": "tokens"},
    "output_sequence_length": {"value": 40, "unit": "t"},
}
BURSTGPT = "Model,Request tokens,Response tokens,Total tokens,Log Type\n"

LOGS = {
    "chat": Log("openai", lines(chat(9, 3) | {"created": 5}, chat(9, 3) | {"created": 9}, {"error": "x"}), 2, 18, 6, None, 4.0, 1),
    "chat, cached": Log("openai", lines(chat(9, 3, prompt_tokens_details={"cached_tokens": 4}), chat(9, 3)), 2, 18, 6, 4),
    "deepseek": Log("openai", lines(chat(9, 3, prompt_cache_hit_tokens=8, prompt_cache_miss_tokens=1)), 1, 9, 3, 8),
    "llama.cpp, chat": Log("openai", lines(chat(9, 3) | {"timings": {"cache_n": 7, "prompt_n": 2}}), 1, 9, 3, 7),
    "sglang": Log("openai", lines({"text": "", "meta_info": {"prompt_tokens": 9, "completion_tokens": 3, "cached_tokens": 8}}), 1, 9, 3, 8),
    "batch": Log(
        "openai",
        lines({"id": "b", "custom_id": "c", "response": {"status_code": 200, "body": chat(9, 3) | {"created": 7}}, "error": None}),
        1, 9, 3, None, 0.0,
    ),
    "embeddings beside chat": Log("openai", lines(chat(9, 3), {"object": "list", "usage": {"prompt_tokens": 8, "total_tokens": 8}}), 1, 9, 3, None, None, 1),
    "responses": Log(
        "openai",
        lines({"id": "r", "object": "response", "created_at": 5, "usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3}}),
        1, 9, 3, 4, 0.0,
    ),
    "anthropic": Log("anthropic", lines({"id": "m", "type": "message", "usage": CLAUDE_USAGE}), 1, 8103, 50, 8000),
    "claude code": Log(
        "anthropic",
        lines({"type": "user", "timestamp": "2026-01-05T10:00:00.000Z", "message": {"role": "user", "content": "x"}},
              claude("a", 1, 2), claude("a", 2), claude("a", 2), claude("b", 5)),
        2, 16206, 100, 16000, 4.0, 1,
    ),
    "responses of two APIs": Log(
        "openai", lines(chat(9, 3), {"usage": CLAUDE_USAGE}, {"usage": {"input_tokens": 7, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 2}}}),
        3, 9 + 8103 + 7, 54, 8002,
    ),
    "bedrock": Log("bedrock", lines({"usage": {"inputTokens": 5, "outputTokens": 3, "totalTokens": 18, "cacheReadInputTokens": 10, "cacheWriteInputTokens": 0}}), 1, 15, 3, 10),
    "ai sdk": Log("bedrock", lines({"usage": {"inputTokens": 15, "outputTokens": 3, "cachedInputTokens": 10, "reasoningTokens": 1}}), 1, 15, 3, 10),
    "gemini": Log(
        "gemini",
        lines({"createTime": "2026-01-01T00:00:00Z", "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 3, "thoughtsTokenCount": 50, "cachedContentTokenCount": 16}},
              {"createTime": "2026-01-01T00:00:02Z", "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 3}}),
        2, 40, 56, 16, 2.0,
    ),
    "gemini, python": Log("gemini", lines({"usage_metadata": {"prompt_token_count": 20, "candidates_token_count": 3, "thoughts_token_count": 5, "tool_use_prompt_token_count": 4}}), 1, 24, 8),
    "langchain": Log("langchain", lines({"usage_metadata": {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12, "input_token_details": {"cache_read": 4}}}), 1, 9, 3, 4),
    "cohere": Log("cohere", lines({"id": "c", "usage": {"billed_units": {"input_tokens": 5, "output_tokens": 3}, "tokens": {"input_tokens": 71, "output_tokens": 3}}}), 1, 71, 3),
    "ollama": Log(
        "ollama",
        lines({"model": "m", "created_at": "2026-02-01T12:00:00.123456789Z", "done": True, "prompt_eval_count": 26, "eval_count": 259},
              {"model": "m", "created_at": "2026-02-01T12:00:03.123456789Z", "done": True, "prompt_eval_count": 4, "eval_count": 1}),
        2, 30, 260, None, 3.0,
    ),
    "llama.cpp": Log("llamacpp", lines({"content": "x", "tokens_predicted": 3, "tokens_evaluated": 9, "tokens_cached": 11, "timings": {"cache_n": 4, "prompt_n": 5, "predicted_n": 3}}), 1, 9, 3, 4),
    "llama.cpp, timings": Log("llamacpp", lines({"timings": {"cache_n": 4, "prompt_n": 5, "predicted_n": 3}}), 1, 9, 3, 4),
    "litellm": Log(
        "litellm",
        LITELLM + "r1,acompletion,k,0.1,12,9,3,2026-01-01 00:00:00.5,2026-01-01 00:00:02,,m,False,success\n"
        "r2,acompletion,k,0,12,9,3,2026-01-01 00:00:01,2026-01-01 00:00:02,,m,True,success\n"
        "r3,aembedding,k,0,8,8,0,2026-01-01 00:00:02,2026-01-01 00:00:02,,m,False,success\n"
        "r4,acompletion,k,0.1,5,4,1,2026-01-01 00:00:03.5,2026-01-01 00:00:05,,m,False,success\n",
        2, 13, 4, None, 3.0, 2, "csv",
    ),
    "openrouter": Log(
        "openrouter",
        OPENROUTER + "gen-a,2026-04-13T10:00:00Z,m,p,k,a,10,20,3,1,0.1,false,stop\ngen-b,2026-04-13T10:00:09Z,m,p,k,a,15,0,0,0,0,true,\n",
        1, 10, 20, 1, 0.0, 1, "csv",
    ),
    "otel": Log("otel", lines(otel(0, input_tokens=9, output_tokens=3), otel(1, "invoke_agent", input_tokens=90, output_tokens=30), otel(4, input_tokens=9, output_tokens=3)), 2, 18, 6, None, 4.0, 1),
    "otel, old names": Log("otel", lines(otel(0, prompt_tokens=9, completion_tokens=3)), 1, 9, 3, None, 0.0),
    "otel, cached": Log("otel", lines({"attributes": {"gen_ai": {"usage": {"input_tokens": 9, "output_tokens": 3, "cache_read": {"input_tokens": 5}}}}}), 1, 9, 3, 5),
    "otel, flat": Log("otel", lines({"gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 3, "timestamp": 1.0}), 1, 9, 3, None, 0.0),
    "otlp": Log("otel", lines(spans(otlp(0, input_tokens=9, output_tokens=3), otlp(2_000_000_000, input_tokens=9, output_tokens=3)), spans(otlp(5_000_000_000, input_tokens=1, output_tokens=1))), 3, 19, 7, None, 5.0),
    "otlp, a span a line": Log("otel", lines(otlp(0, prompt_tokens=9, completion_tokens=3)), 1, 9, 3, None, 0.0),
    "otlp, one document": Log("otel", json.dumps(spans(otlp(0, input_tokens=9, output_tokens=3)), indent=1), 1, 9, 3, None, 0.0, 0, "json"),
    "openinference": Log("openinference", lines({"start_time": "2026-01-01T00:00:00+00:00", "attributes": {"openinference.span.kind": "LLM", "llm.token_count.prompt": 9, "llm.token_count.completion": 3}}), 1, 9, 3, None, 0.0),
    "langfuse": Log(
        "langfuse",
        json.dumps({"data": [
            {"id": "o", "traceId": "t", "type": "GENERATION", "startTime": "2026-01-01T00:00:00.000Z", "usageDetails": {"input": 5, "input_cached_tokens": 4, "output": 3, "total": 12}},
            {"id": "s", "traceId": "t", "type": "SPAN", "startTime": "2026-01-01T00:00:00.000Z", "usageDetails": {}},
        ], "meta": {"page": 1}}),
        1, 9, 3, 4, 0.0, 1, "json",
    ),
    "langfuse, blob storage": Log("langfuse", lines({"id": "o", "trace_id": "t", "start_time": "2026-01-01 00:00:00.000000", "usage_details": {"input": 5, "cache_read_input_tokens": 9000, "cache_creation_input_tokens": 20, "output": 3}}), 1, 9025, 3, 9000, 0.0),
    "langfuse, older": Log("langfuse", lines({"id": "o", "traceId": "t", "startTime": "2026-01-01T00:00:00.000Z", "usage": {"input": 5, "output": 3, "total": 8, "unit": "TOKENS"}}), 1, 5, 3, None, 0.0),
    "vllm bench": Log("vllm-bench", json.dumps({"date": "x", "backend": "vllm", "num_prompts": 3, "input_lens": [5, 6, 7], "output_lens": [1, 2, 0], "start_times": [10.0, 11.5, 12.0], "ttfts": [0.1, 0.1, 0.1], "itls": [[0.1], [0.1], []], "errors": ["", "", "x"]}), 2, 11, 3, None, 1.5, 1, "json"),
    "sglang bench": Log("vllm-bench", lines({"tag": None, "input_lens": [5, 6], "output_lens": [1, 2], "ttfts": [0.1, 0.1], "itls": [[0.1], [0.1]], "errors": ["", ""]}), 2, 11, 3),
    "aiperf": Log(
        "aiperf",
        lines({"metadata": {"request_start_ns": 1_759_813_207_532_900_363}, "metrics": AIPERF, "error": None},
              {"metadata": {"request_start_ns": 1_759_813_208_532_900_363, "was_cancelled": True}, "metrics": {"error_isl": {"value": 550}}, "error": {"code": 499}},
              {"metadata": {"request_start_ns": 1_759_813_209_532_900_363}, "metrics": AIPERF, "error": None}),
        2, 1100, 80, None, 2.0, 1,
    ),
    "azure 2024": Log("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,9,3\n2024-05-10 00:00:02.009930+00:00,9,3\n", 2, 18, 6, None, 2.0, 0, "csv"),
    "azure lmm": Log("azure", "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-10 00:00:00.0,1,9,3\n", 1, 9, 3, None, 0.0, 0, "csv"),
    "burstgpt": Log("burstgpt", f"Timestamp,{BURSTGPT}5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,10,0,10,Conversation log\n46,GPT-4,10,5,15,API log\n", 2, 482, 23, None, 41.0, 1, "csv"),
    "burstgpt, sessions": Log("burstgpt", f"Timestamp,Session ID,Elapsed time,{BURSTGPT}10.0,a,4,GPT-4,9,3,12,Conversation log\n20.0,a,2,GPT-4,9,3,12,Conversation log\n", 2, 18, 6, None, 10.0, 0, "csv"),
    "bailian": Log("bailian", lines({"chat_id": 0, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 40, "output_length": 3, "type": "text", "turn": 1, "hash_ids": [1, 2, 3]}, {"chat_id": 1, "parent_chat_id": 0, "timestamp": 4.5, "input_length": 50, "output_length": 3, "type": "text", "turn": 2, "hash_ids": [1, 2, 3, 4]}), 2, 90, 6, None, 3.0),
    "mooncake": Log("mooncake", lines({"timestamp": 0, "input_length": 655, "output_length": 52, "hash_ids": [46, 47]}, {"timestamp": 10535, "input_length": 672, "output_length": 26, "hash_ids": [46, 47]}), 2, 1327, 78, None, 10.535),
    "agentic": Log("agentic", lines({"session_id": "a", "pre_gap": 0.0, "input_length": 40, "output_length": 7}), 1, 40, 7),
    "weka": Log("weka", lines({"id": "s", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": [{"t": 0.0, "type": "n", "in": 70, "out": 2, "hash_ids": [0, 1], "api_time": 2.0}, {"t": 5.0, "type": "subagent", "requests": []}, {"t": 9.0, "type": "s", "in": 140, "out": 2, "hash_ids": [0, 1, 2], "api_time": 2.0}]}), 2, 210, 4, None, 9.0, 1),
    "vidur": Log("vidur", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n5.9,396,109\n", 2, 770, 153, None, 5.9, 0, "csv"),
    "swissai": Log("swissai", lines({"id": "1", "status": "DEFAULT", "created_at": "2024-07-17 13:56:49.399", "finished_at": "2024-07-17 13:56:50.527", "reported_token_input": 23, "reported_token_output": 38}, {"id": "2", "status": "ERROR", "created_at": "2024-07-17 13:56:51.399", "reported_token_input": -1, "reported_token_output": -1}), 1, 23, 38, None, 0.0, 1),
    "plain table": Log("tokens", "timestamp,input_tokens,output_tokens\n100,9,3\n104,9,3\n", 2, 18, 6, None, 4.0, 0, "csv"),
    "anthropic table": Log("anthropic", "created_at,input_tokens,cache_creation_input_tokens,cache_read_input_tokens,output_tokens\n2026-01-01T00:00:00Z,5,200,9000,300\n", 1, 9205, 300, 9000, 0.0, 0, "csv"),
    "one json list": Log("openai", json.dumps([chat(9, 3), chat(1, 1)]), 2, 10, 4, None, None, 0, "json"),
}  # fmt: skip


def opened(log: Log, folder: Path, **options: Any) -> Trace:
    path = folder / f"log.{log.suffix}"
    path.write_text(log.text, encoding="utf-8")
    return open_trace(path, **options)


@pytest.mark.parametrize("log", LOGS.values(), ids=list(LOGS))
def test_a_log_is_recognised_and_its_tokens_are_those_processed(log: Log, tmp_path: Path) -> None:
    trace = opened(log, tmp_path)
    summary = trace.describe()
    assert trace.format == log.format
    assert (summary.requests, summary.input.total, summary.output.total) == log[2:5]
    assert summary.cached_input_tokens == log.cached
    assert summary.failed_requests == log.failed
    if log.duration_s is None:
        assert summary.duration_s is None
    else:
        assert summary.duration_s == pytest.approx(log.duration_s)
    requests = trace.requests()
    assert (len(requests), int(requests.input_tokens.sum()), int(requests.output_tokens.sum())) == log[2:5]


def test_each_format_has_a_log_here() -> None:
    sums = {"openai-usage", "litellm-daily", "anthropic-usage", "openrouter-daily"}
    assert {log.format for log in LOGS.values()} == set(format_names()) - sums
