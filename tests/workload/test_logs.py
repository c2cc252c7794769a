"""Logs that people have, each a small file of its shape: recognised, its tokens those that were processed."""

from __future__ import annotations

import io
import json
import sys
import types
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import DataError
from infergy.workload import Columns, Trace, open_trace
from infergy.workload.formats import format_names
from raising import raises


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
    "zeros of the other api": Log("openai", lines({"usage": {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 9, "output_tokens": 3}}, {"usage": {"prompt_tokens": 9, "completion_tokens": 3, "input_tokens": 0, "output_tokens": 0}}, {"usage": {"prompt_tokens": 9, "completion_tokens": 0}}), 2, 18, 6, None, None, 1),
    "bedrock": Log("bedrock", lines({"usage": {"inputTokens": 5, "outputTokens": 3, "totalTokens": 18, "cacheReadInputTokens": 10, "cacheWriteInputTokens": 0}}), 1, 15, 3, 10),
    "ai sdk": Log("bedrock", lines({"usage": {"inputTokens": 15, "outputTokens": 3, "cachedInputTokens": 10, "reasoningTokens": 1}}), 1, 15, 3, 10),
    "gemini": Log(
        "gemini",
        lines({"createTime": "2026-01-01T00:00:00Z", "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 3, "thoughtsTokenCount": 50, "cachedContentTokenCount": 16}},
              {"createTime": "2026-01-01T00:00:02Z", "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 3}}),
        2, 40, 56, 16, 2.0,
    ),
    "gemini, python": Log("gemini", lines({"usage_metadata": {"prompt_token_count": 20, "candidates_token_count": 3, "thoughts_token_count": 5, "tool_use_prompt_token_count": 4}}), 1, 24, 8),
    "thoughts beside the output": Log("openai", lines({"usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 112, "completion_tokens_details": {"reasoning_tokens": 100}}}, chat(9, 103, completion_tokens_details={"reasoning_tokens": 100})), 2, 18, 206),
    "ai sdk, details": Log("bedrock", lines({"usage": {"inputTokens": 15, "inputTokenDetails": {"noCacheTokens": 5, "cacheReadTokens": 10}, "outputTokens": 3}}), 1, 15, 3, 10),
    "gemini, streamed": Log("gemini", lines(*({"responseId": own, "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": tokens}} for own in "ab" for tokens in (1, 2, 3))), 2, 40, 6),
    "codex": Log(
        "codex",
        lines(
            {"timestamp": "2026-01-05T10:00:00.000Z", "type": "session_meta", "payload": {"id": "s"}},
            *(
                {
                    "timestamp": f"2026-01-05T10:00:0{second}.000Z",
                    "type": "event_msg",
                    "payload": {
                        "type": "token_count",
                        "info": {
                            "total_token_usage": {"input_tokens": 9 * second, "output_tokens": 3 * second},
                            "last_token_usage": {"input_tokens": 9, "cached_input_tokens": 4, "output_tokens": 3},
                        },
                    },
                }
                for second in (1, 2)
            ),
        ),
        2, 18, 6, 8, 1.0, 1,
    ),
    "elsewhere": Log("openai", lines({"at": 1, "event": {"body": {"total_usage": chat(90, 30)["usage"], **chat(9, 3)}}}), 1, 9, 3),
    "gemini cli": Log("gemini", lines({"attributes": {"event.name": "gemini_cli.api_response", "event.timestamp": "2026-01-01T00:00:00Z", "input_token_count": 9, "output_token_count": 3, "thoughts_token_count": 2, "cached_content_token_count": 4}}), 1, 9, 5, 4, 0.0),
    "langchain": Log("langchain", lines({"usage_metadata": {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12, "input_token_details": {"cache_read": 4}}}), 1, 9, 3, 4),
    "cohere": Log("cohere", lines({"id": "c", "usage": {"billed_units": {"input_tokens": 5, "output_tokens": 3}, "tokens": {"input_tokens": 71, "output_tokens": 3}}}), 1, 71, 3),
    "ollama": Log(
        "ollama",
        lines({"model": "m", "created_at": "2026-02-01T12:00:00.123456789Z", "done": True, "prompt_eval_count": 26, "eval_count": 259},
              {"model": "m", "created_at": "2026-02-01T12:00:03.123456789Z", "done": True, "prompt_eval_count": 4, "eval_count": 1}),
        2, 30, 260, None, 3.0,
    ),
    "ollama, streamed": Log("ollama", lines({"model": "m", "created_at": "2026-02-01T12:00:00Z", "response": "a", "done": False}, {"model": "m", "created_at": "2026-02-01T12:00:01Z", "response": "", "done": True, "prompt_eval_count": 26, "eval_count": 259}), 1, 26, 259, None, 0.0, 1),
    "ollama beside another api": Log("openai", lines(chat(9, 3), {"model": "m", "done": True, "prompt_eval_count": 26, "eval_count": 259}), 2, 35, 262),
    "helicone": Log("openai", "request_id,request_created_at,status,prompt_tokens,completion_tokens\na,2026-01-01T00:00:00Z,200,9,3\nb,2026-01-01T00:00:02Z,200,9,3\n", 2, 18, 6, None, 2.0, 0, "csv"),
    "langsmith": Log("openai", "id,run_type,start_time,prompt_tokens,completion_tokens\na,chain,2026-01-01T00:00:00Z,9,3\nb,llm,2026-01-01T00:00:00Z,9,3\n", 1, 9, 3, None, 0.0, 1, "csv"),
    "claude code, camel case": Log("bedrock", lines({"timestamp": "2026-01-01T00:00:00Z", "inputTokens": 5, "outputTokens": 3, "cacheCreationTokens": 200, "cacheReadTokens": 9000}), 1, 9205, 3, 9000, 0.0),
    "litellm, payload": Log("litellm", lines({"call_type": "acompletion", "startTime": 7.5, "prompt_tokens": 9, "completion_tokens": 3, "response": chat(9, 3, prompt_tokens_details={"cached_tokens": 4})}), 1, 9, 3, 4, 0.0),
    "cached as in pydantic ai": Log("tokens", "input_tokens,cache_read_tokens,output_tokens\n9,4,3\n", 1, 9, 3, 4, None, 0, "csv"),
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
    "jaeger": Log("otel", json.dumps({"data": [{"traceID": "t", "spans": [{"startTime": 1_700_000_000_000_000 + at, "tags": [{"key": "gen_ai.usage.input_tokens", "type": "int64", "value": 9}, {"key": "gen_ai.usage.output_tokens", "type": "int64", "value": 3}]} for at in (0, 2_000_000)]}]}), 2, 18, 6, None, 2.0, 0, "json"),
    "text of a monitor": Log("otel", 'timestamp,name,customDimensions\n2026-01-01T00:00:00Z,chat,"{""gen_ai.usage.input_tokens"":""9"",""gen_ai.usage.output_tokens"":""3""}"\n', 1, 9, 3, None, 0.0, 0, "csv"),
    "anthropic batch": Log("anthropic", lines({"custom_id": "c", "result": {"type": "succeeded", "message": {"id": "m", "usage": CLAUDE_USAGE}}}, {"custom_id": "d", "result": {"type": "errored", "error": {}}}), 1, 8103, 50, 8000, None, 1),
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
    "weka": Log("weka", lines({"id": "s", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": [{"t": 0.0, "type": "n", "in": 70, "out": 2, "hash_ids": [0, 1], "api_time": 2.0}, {"t": 5.0, "type": "subagent", "requests": [{"t": 5.0, "type": "n", "in": 10, "out": 1, "hash_ids": [7]}]}, {"t": 9.0, "type": "s", "in": 140, "out": 2, "hash_ids": [0, 1, 2], "api_time": 2.0}]}), 3, 220, 5, None, 9.0),
    "vidur": Log("vidur", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n5.9,396,109\n", 2, 770, 153, None, 5.9, 0, "csv"),
    "swissai": Log("swissai", lines({"id": "1", "status": "DEFAULT", "created_at": "2024-07-17 13:56:49.399", "finished_at": "2024-07-17 13:56:50.527", "reported_token_input": 23, "reported_token_output": 38}, {"id": "2", "status": "ERROR", "created_at": "2024-07-17 13:56:51.399", "reported_token_input": -1, "reported_token_output": -1}), 1, 23, 38, None, 0.0, 1),
    "splitwise": Log("splitwise", "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n0,2,0,0.0,1,9,3\n1,2,0,4.0,1,9,3\n", 2, 18, 6, None, 4.0, 0, "csv"),
    "guidellm": Log("guidellm", json.dumps({"benchmarks": [{"args": {}, "requests": {"successful": [{"request_id": "a", "start_time": 1.5, "prompt_tokens": 9, "output_tokens": 3}, {"request_id": "b", "start_time": 4.5, "prompt_tokens": 9, "output_tokens": 3}], "errored": []}}]}), 2, 18, 6, None, 3.0, 0, "json"),
    "llmperf": Log("llmperf", json.dumps([{"error_code": None, "number_total_tokens": 12, "number_output_tokens": 3, "number_input_tokens": 9}]), 1, 9, 3, None, None, 0, "json"),
    "bedrock, invocations": Log("bedrock", lines({"schemaType": "ModelInvocationLog", "timestamp": "2026-01-01T00:00:00Z", "input": {"inputTokenCount": 5, "cacheReadInputTokenCount": 10}, "output": {"outputTokenCount": 3}}), 1, 15, 3, 10, 0.0),
    "plain table": Log("tokens", "timestamp,input_tokens,output_tokens\n100,9,3\n104,9,3\n", 2, 18, 6, None, 4.0, 0, "csv"),
    "anthropic table": Log("anthropic", "created_at,input_tokens,cache_creation_input_tokens,cache_read_input_tokens,output_tokens\n2026-01-01T00:00:00Z,5,200,9000,300\n", 1, 9205, 300, 9000, 0.0, 0, "csv"),
    "anthropic, cache writes by their time": Log("anthropic", lines({"id": "m", "usage": {k: v for k, v in CLAUDE_USAGE.items() if k != "cache_creation_input_tokens"}}), 1, 8103, 50, 8000),
    "anthropic, only cache writes": Log("anthropic", lines({"id": "m", "usage": {"input_tokens": 3, "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 50}, "output_tokens": 5}}), 1, 153, 5),
    "langfuse, cache writes by their time": Log("langfuse", lines({"traceId": "t", "startTime": "2026-01-01T00:00:00Z", "usageDetails": {"input": 3, "input_cache_creation_5m": 100, "input_cache_creation_1h": 50, "cache_read_input_tokens": 8000, "output": 5}}), 1, 8153, 5, 8000, 0.0),
    "gemini's openai endpoint": Log("openai", lines({"object": "chat.completion", "created": 7, "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 112}}), 1, 9, 103, None, 0.0),
    "otel, cached beside the input": Log("otel", lines(otel(0, input_tokens=5, output_tokens=3) | {"attributes": {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.cache_read_input_tokens": 9000, "gen_ai.usage.output_tokens": 3}}), 1, 9005, 3, 9000, 0.0),
    "deepseek, without prompt_tokens": Log("openai", lines(*({"usage": {"prompt_cache_hit_tokens": hit, "prompt_cache_miss_tokens": 9, "completion_tokens": 3}} for hit in (64, 0))), 2, 82, 6, 64),
    "posthog": Log("posthog", lines({"event": "$ai_generation", "timestamp": "2026-01-01T00:00:00Z", "properties": {"$ai_input_tokens": 9, "$ai_output_tokens": 3, "$ai_cache_read_input_tokens": 40}}, {"event": "$ai_trace", "properties": {"$ai_input_tokens": 9, "$ai_output_tokens": 3}}), 1, 49, 3, 40, 0.0, 1),
    "watsonx": Log("watsonx", lines({"model_id": "m", "created_at": "2026-01-01T00:00:00.123Z", "results": [{"generated_text": "x", "generated_token_count": 3, "input_token_count": 9}]}), 1, 9, 3, None, 0.0),
    "replicate": Log("replicate", lines({"id": "p", "created_at": "2026-01-01T00:00:00.123Z", "metrics": {"input_token_count": 9, "output_token_count": 3, "predict_time": 1.2}}), 1, 9, 3, None, 0.0),
    "opencode": Log("opencode", lines({"id": "m", "time": {"created": 1_700_000_000_000}, "tokens": {"total": 930, "input": 5, "output": 3, "reasoning": 2, "cache": {"read": 900, "write": 20}}}, {"id": "n", "time": {"created": 1_700_000_002_000}, "tokens": {"input": 5, "output": 3, "reasoning": 2, "cache": {"read": 0, "write": 0}}}), 2, 930, 8, 900, 2.0),
    "names in other spellings": Log("tokens", "# Created At,# Input Tokens,# Output Tokens,Cached Tokens\n100,9,3,4\n104,9,3,4\n", 2, 18, 6, 8, 4.0, 0, "csv"),
    "capitals": Log("openai", "CREATED_AT,PROMPT_TOKENS,COMPLETION_TOKENS\n2025-01-01 00:00:00,9,3\n2025-01-01 00:00:04,9,3\n", 2, 18, 6, None, 4.0, 0, "csv"),
    "thousands": Log("openai", 'prompt_tokens,completion_tokens\n"1,234",3\n"12,345,678",1\n56,2\n', 3, 12_346_968, 6, None, None, 0, "csv"),
    "mongodb": Log("openai", lines(*({"created_at": {"$date": {"$numberLong": str(1_700_000_000_000 + at)}}, "prompt_tokens": {"$numberInt": "9"}, "completion_tokens": {"$numberInt": "3"}} for at in (0, 2000))), 2, 18, 6, None, 2.0),
    "mongodb, relaxed": Log("openai", json.dumps([{"created_at": {"$date": f"2026-01-01T00:00:0{at}Z"}, "prompt_tokens": 9, "completion_tokens": 3} for at in (0, 2)]), 2, 18, 6, None, 2.0, 0, "json"),
    "date and time": Log("openai", "Date,Time,prompt_tokens,completion_tokens\n03/14/2026,10:00:00 AM,9,3\n03/14/2026,10:00:05 PM,9,3\n", 2, 18, 6, None, 43_205.0, 0, "csv"),
    "date and time beside a timestamp": Log("openai", "date,time,timestamp,prompt_tokens,completion_tokens\n2026-03-14,10:00:00,100,9,3\n2026-03-14,10:00:05,103,9,3\n", 2, 18, 6, None, 3.0, 0, "csv"),
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
    sums = {
        "openai-usage",
        "litellm-daily",
        "anthropic-usage",
        "openrouter-daily",
        "deepseek-usage",
        "ccusage",
        "texts",
    }
    assert {log.format for log in LOGS.values()} == set(format_names()) - sums


@pytest.mark.parametrize("name", ["swissai", "litellm", "claude code", "responses of two APIs"])
def test_a_frame_of_a_log_is_read_as_its_file(name: str, tmp_path: Path) -> None:
    log = LOGS[name]
    text = io.StringIO(log.text)
    frame = (
        pl.read_csv(text)
        if log.suffix == "csv"
        else pl.DataFrame(list(map(json.loads, text)), infer_schema_length=None)
    )
    path = tmp_path / "log.parquet"
    frame.write_parquet(path)
    joins = name == "claude code"  # what only polars does
    for held in (frame, path, *(() if joins else (frame.to_arrow(), duckdb.from_arrow(frame.to_arrow())))):
        summary = open_trace(held).describe()
        assert (summary.requests, summary.input.total, summary.output.total) == log[2:5]
        assert (summary.cached_input_tokens, summary.failed_requests) == (log.cached, log.failed)
    if name in ("swissai", "litellm"):
        assert open_trace(frame.to_pandas()).describe().input.total == log.input


def test_attributes_of_a_table_are_read_in_the_forms_they_have(tmp_path: Path) -> None:
    counts = {"gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 3}
    times = [datetime(2026, 1, 1, second=second) for second in (0, 2)]
    values = {name: str(count) for name, count in counts.items()}
    typed = [{"key": name, "value": {"string_value": None, "int_value": count}} for name, count in counts.items()]
    for attributes in ([{"key": name, "value": value} for name, value in values.items()], typed):
        frame = pl.DataFrame({"Timestamp": times, "SpanAttributes": [attributes] * 2})
        frame.write_parquet(tmp_path / "log.parquet")
        for source in (frame, tmp_path / "log.parquet"):
            summary = open_trace(source).describe()
            assert (summary.format, summary.requests, summary.input.total, summary.duration_s) == ("otel", 2, 18, 2.0)
    maps = pa.array([list(values.items())] * 2, type=pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"Timestamp": times, "SpanAttributes": maps}), tmp_path / "log.parquet")
    assert open_trace(tmp_path / "log.parquet").describe().output.total == 6
    # As ClickHouse writes its maps.
    quoted = str(values | {"gen_ai.prompt": "x"}).replace("'x'", "'don\\'t'")
    pl.DataFrame({"Timestamp": times, "SpanAttributes": quoted}).write_csv(tmp_path / "log.csv")
    assert open_trace(tmp_path / "log.csv").describe().output.total == 6


def test_calls_of_a_record_are_requests_though_they_share_its_id(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    call = {"prompt_tokens": 9, "completion_tokens": 3}
    path.write_text(lines({"id": "a", "calls": [call]}, {"id": "b", "calls": [call, call]}), encoding="utf-8")
    assert open_trace(path).histogram().requests == 3


# --- rows that are no single request

USAGE_EXPORT = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,"
    "service_tier,input_tokens,output_tokens,input_cached_tokens,input_uncached_tokens\n"
    "1759276800,1759276860,2025-10-01T00:00:00+00:00,2025-10-01T00:01:00+00:00,p,3,,,m,false,default,301,10,100,201\n"
    "1759276860,1759276920,2025-10-01T00:01:00+00:00,2025-10-01T00:02:00+00:00,p,2,,,m,false,default,4,3,0,4\n"
    "1759276920,1759276980,2025-10-01T00:02:00+00:00,2025-10-01T00:03:00+00:00,p,0,,,m,false,default,0,0,0,0\n"
)
USAGE_PAGE = {
    "object": "page",
    "data": [
        {
            "object": "bucket",
            "start_time": 1759276800,
            "end_time": 1759276860,
            "results": [
                {
                    "object": "organization.usage.completions.result",
                    "input_tokens": 30,
                    "output_tokens": 6,
                    "input_cached_tokens": 0,
                    "num_model_requests": 3,
                }
            ],
        }
    ],
    "has_more": False,
}
LITELLM_DAILY = (
    "id,user_id,date,api_key,model,model_group,custom_llm_provider,prompt_tokens,completion_tokens,"
    "cache_read_input_tokens,cache_creation_input_tokens,spend,api_requests,successful_requests,failed_requests\n"
    "1,u,2026-01-01,k,m,m,openai,100,40,20,0,0.1,4,4,0\n"
)
SUMS = {
    "usage export": (USAGE_EXPORT, "csv", "num_model_requests"),
    "usage api": (lines(USAGE_PAGE["data"][0]["results"][0]), "jsonl", "num_model_requests"),  # type: ignore[index]
    "usage page": (json.dumps(USAGE_PAGE), "json", "num_model_requests"),
    "usage page before 2025": ("aggregation_timestamp,n_requests,n_context_tokens_total,n_generated_tokens_total\n1,2,4,6\n", "csv", "n_requests"),
    "unknown, by length": ("date,model,input_tokens,output_tokens\n2026-01-01,m,4000000,500000\n2026-01-02,m,4000000,500000\n", "csv", None),
    "litellm": (LITELLM_DAILY, "csv", "api_requests"),
    "openrouter": (lines({"date": "2026-01-01", "model": "m", "requests": 2, "prompt_tokens": 9, "completion_tokens": 4}), "jsonl", "requests"),
    "unknown, several": ("time,requests,prompt_tokens,completion_tokens\n1,1,9,3\n2,5,90,30\n", "csv", "requests"),
    "unknown, a day": ("day,num_requests,input_tokens,output_tokens\n2026-01-01,1,9,3\n", "csv", "num_requests"),
    "anthropic console": ("usage_date_utc,model_version,usage_input_tokens_no_cache,usage_input_tokens_cache_read,usage_output_tokens\n2026-01-01,m,9,3,2\n", "csv", None),
    "deepseek": ("user_id,start_time_iso,end_time_iso,model,api_key_name,api_key,type,price,amount\nu,2026-01-01T00:00:00Z,2026-01-02T00:00:00Z,m,k,k,output_tokens,1,9\n", "csv", None),
    "ccusage": (json.dumps({"daily": [{"date": "2026-01-01", "inputTokens": 9, "outputTokens": 3, "cacheCreationTokens": 1, "cacheReadTokens": 2, "modelsUsed": ["m"]}]}), "json", None),
    "a day and n": ("day,n,input_tokens,output_tokens\n2026-01-01,40,9000,300\n2026-01-02,50,9000,300\n", "csv", "n"),
    "capitals": ("Date,Requests,prompt_tokens,completion_tokens\n2026-01-01,4,9000,300\n", "csv", "Requests"),
    "a day, no count": ("day,input_tokens,output_tokens\n2026-01-01,9000,300\n2026-01-02,9000,300\n", "csv", None),
    "a date and a model": ("date,model,prompt_tokens,completion_tokens\n2026-01-01,a,9000,300\n2026-01-01,b,90,30\n", "csv", None),
    "hours as numbers": ("hour,input_tokens,output_tokens\n0,9000,300\n1,9000,300\n", "csv", None),
    "whole hours": ("timestamp,input_tokens,output_tokens\n" + "".join(f"2026-01-01T{hour:02}:00:00Z,9000,300\n" for hour in range(5)), "csv", None),
    "grouped": ("hour,input_tokens,output_tokens,count\n0,60,5,6\n1,60,5,6\n", "csv", "count"),
    "anthropic": (lines({"starting_at": "2026-01-01T00:00:00Z", "ending_at": "2026-01-02T00:00:00Z", "uncached_input_tokens": 9, "cache_read_input_tokens": 2, "output_tokens": 4}), "jsonl", None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "suffix", "column"), SUMS.values(), ids=list(SUMS))
def test_sums_over_many_requests_are_rejected_by_name(
    text: str, suffix: str, column: str | None, tmp_path: Path
) -> None:
    path = tmp_path / f"log.{suffix}"
    path.write_text(text, encoding="utf-8")
    with raises("bucketed", column=column, option="--requests-column") as told:
        open_trace(path)
    if column is not None:
        assert f"--requests-column {column}" in str(told.value)
        assert open_trace(path, columns=Columns(requests=column)).histogram().requests >= 1


def test_sums_are_spread_over_their_requests_and_time(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(USAGE_EXPORT, encoding="utf-8")
    trace = open_trace(path, columns=Columns(requests="num_model_requests"))
    requests = trace.requests()
    assert requests.input_tokens.tolist() == [101, 100, 100, 2, 2]
    assert requests.output_tokens.tolist() == [4, 3, 3, 2, 1]
    assert requests.cached_tokens is not None
    assert requests.cached_tokens.tolist() == [34, 33, 33, 0, 0]
    assert requests.arrival_s is not None
    assert requests.arrival_s.tolist() == pytest.approx([0, 20, 40, 65, 95])
    summary, histogram = trace.describe(), trace.histogram()
    assert (summary.requests, summary.input.total, histogram.requests) == (5, 305, 5)
    assert "mean lengths of its row" in str(requests.lengths_from)


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 9999), st.integers(0, 9999)), min_size=1, max_size=9))
def test_spreading_keeps_all_tokens_and_no_request_differs_by_more_than_one(rows: list[tuple[int, int, int]]) -> None:
    frame = pl.DataFrame(rows, schema=["requests", "input_tokens", "output_tokens"], orient="row")
    declared = open_trace(frame, columns=Columns(requests="requests")).frame.collect()
    assert len(declared) == sum(row[0] for row in rows)
    assert declared["input_tokens"].sum() == sum(row[1] for row in rows)
    assert declared["output_tokens"].sum() == sum(row[2] for row in rows)
    start = 0
    for count, *_ in rows:
        lengths = declared[start : start + count]["input_tokens"]
        assert lengths.max() - lengths.min() <= 1
        start += count


def test_sums_without_an_end_have_no_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines({"created_at": 7, "input_tokens": 7, "output_tokens": 4, "requests": 2}), encoding="utf-8")
    requests = open_trace(path, columns=Columns(requests="requests")).requests()
    assert requests.arrival_s is None
    assert requests.input_tokens.tolist() == [4, 3]


def test_a_count_that_is_no_number_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(USAGE_EXPORT.replace(",p,3,", ",p,x,"), encoding="utf-8")
    with raises("bad-trace", rows={"requests": 1}) as told:
        open_trace(path, columns=Columns(requests="num_model_requests")).requests()
    assert "row 1: 'x'" in str(told.value)
    assert "--requests-column NAME" in str(told.value)


def test_one_request_a_row_is_no_sum(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("requests,prompt_tokens,completion_tokens\n1,9,3\n1,9,3\n", encoding="utf-8")
    assert open_trace(path).histogram().requests == 2
    # A log that is known to have a row per request is read as one.
    path.write_text("requests,prompt_tokens,completion_tokens\n5,9,3\n1,9,3\n", encoding="utf-8")
    assert open_trace(path, format="openai").histogram().requests == 2


def chunk(own: str, usage: Any, second: int = 0) -> dict[str, Any]:
    head = {"id": own, "object": "chat.completion.chunk", "created": 1_700_000_000 + second}
    return {**head, "choices": [{"delta": {"content": "x"}}], "usage": usage}


def test_rows_with_times_of_their_own_are_no_sums(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for text in (
        "date,input_tokens,output_tokens\n2026-01-01T10:00:01Z,9,3\n",
        "timestamp,hour,input_tokens,output_tokens\n2026-01-01T10:00:01Z,10,9,3\n",
        "timestamp,day,input_tokens,output_tokens\n0,1,9,3\n1,1,9,3\n2,1,9,3\n",
        "n,input_tokens,output_tokens\n2,9,3\n",
    ):
        path.write_text(text, encoding="utf-8")
        assert open_trace(path).histogram().requests == text.count("\n") - 1
    path.write_text("date,input_tokens,output_tokens\n2026-01-01,9,3\n", encoding="utf-8")
    with raises("bucketed") as told:
        open_trace(path)
    assert "--format tokens" in str(told.value)
    assert open_trace(path, format="tokens").histogram().requests == 1


def test_a_date_and_its_time_are_joined_where_polars_reads_them(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"date": ["2026-03-14"] * 2, "time": ["10:00:00", "10:00:05"]}
    frame = pl.DataFrame(columns | {"prompt_tokens": [9, 9], "completion_tokens": [3, 3]})
    frame.write_parquet(tmp_path / "log.parquet")
    for source in (frame, tmp_path / "log.parquet"):
        assert open_trace(source).describe().duration_s == 5.0
        assert open_trace(source, columns=Columns(time="date + time")).describe().duration_s == 5.0
    assert "'date + time'" in str(open_trace(frame.to_pandas()).describe().arrival_reason)
    with raises("no-column", column="clock"):
        open_trace(frame, columns=Columns(time="date + clock"))


def test_fractions_are_no_thousands(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for text in ("1.234", "1.000", "1,5", "12,34"):
        path.write_text(f"prompt_tokens;completion_tokens\n{text};3\n56;2\n", encoding="utf-8")
        with raises("bad-trace", rows={"input": 1}):
            open_trace(path).histogram()
    path.write_text("prompt_tokens;completion_tokens\n1.234.567;3\n1 234;2\n", encoding="utf-8")
    assert open_trace(path).histogram().input_tokens == 1_234_567 + 1_234


def test_names_in_other_spellings_are_read_in_tables_too(tmp_path: Path) -> None:
    frame = pl.DataFrame({"Timestamp": [0, 4], "Prompt Tokens": [9, 9], "Completion Tokens": [3, 3]})
    frame.write_parquet(tmp_path / "log.parquet")
    for source in (frame, frame.to_pandas(), tmp_path / "log.parquet"):
        summary = open_trace(source).describe()
        assert (summary.requests, summary.input.total, summary.duration_s) == (2, 18, 4.0)
    path = tmp_path / "log.csv"
    path.write_text("Input Tokens,INPUT_TOKENS,Output Tokens\n9,8,3\n", encoding="utf-8")
    with raises("unknown-format"):
        open_trace(path)
    # A line too many in a table whose names are spelled so.
    path = tmp_path / "log.csv"
    path.write_text("Prompt Tokens,Completion Tokens\n" + "9,3\n" * 2000 + "9,3,7\n", encoding="utf-8")
    assert open_trace(path).describe().unreadable_rows == 1


def test_chunks_of_an_answer_are_one_request(tmp_path: Path) -> None:
    running = [chunk(own, chat(100, n)["usage"], k) for n in range(1, 5) for k, own in enumerate("abc")]
    at_end = [chunk(own, None if n < 4 else chat(100, 4)["usage"], k) for k, own in enumerate("abc") for n in range(5)]
    for records in (running, at_end, [{**one, "object": None} for one in running]):
        path = tmp_path / "log.jsonl"
        path.write_text(lines(*records), encoding="utf-8")
        trace = open_trace(path)
        summary, requests = trace.describe(), trace.requests()
        assert (summary.requests, summary.input.total, summary.output.total) == (3, 300, 12)
        assert (summary.stream_chunks, requests.set_aside.chunks) == (len(records) - 3, len(records) - 3)
        assert summary.failed_requests == requests.set_aside.failed == 0
        assert summary.duration_s == 2.0
        assert trace.histogram().requests == len(requests) == 3


def test_chunks_and_sums_in_frames_are_found_too(tmp_path: Path) -> None:
    records = [chunk(own, chat(100, n)["usage"], k) for n in range(1, 5) for k, own in enumerate("abc")]
    frame = pl.DataFrame(records)
    frame.write_parquet(tmp_path / "log.parquet")
    for source in (frame, frame.lazy(), tmp_path / "log.parquet"):
        summary = open_trace(source).describe()
        assert (summary.requests, summary.output.total, summary.stream_chunks) == (3, 12, 9)
    flat = pl.DataFrame([{"id": one["id"], "object": one["object"], **one["usage"]} for one in records])
    for held in (flat.to_pandas(), flat.to_arrow()):
        with raises("not-supported"):
            open_trace(held).describe()
    sums = pl.DataFrame({"requests": [1, 7], "input_tokens": [9, 70], "output_tokens": [1, 7]})
    with raises("bucketed", column="requests"):
        open_trace(sums)
    assert open_trace(sums.head(1)).histogram().requests == 1
    assert open_trace(sums, columns=Columns(requests="requests")).histogram().requests == 8
    with raises("not-supported"):
        open_trace(sums.to_pandas(), columns=Columns(requests="requests"))


def test_the_cached_tokens_of_a_stream_are_those_of_its_last_chunk(tmp_path: Path) -> None:
    last = chat(100, 4, prompt_tokens_details={"cached_tokens": 60})["usage"]
    path = tmp_path / "log.jsonl"
    path.write_text(lines(chunk("a", chat(100, 4)["usage"]), chunk("a", last)), encoding="utf-8")
    summary = open_trace(path).describe()
    assert (summary.requests, summary.cached_input_tokens) == (1, 60)
    assert open_trace(path).histogram().input_tokens == 40


def test_chunks_without_an_id_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    chunk = {"object": "chat.completion.chunk", "created": 7}
    path.write_text(lines(*(chunk | chat(100, tokens) for _ in range(3) for tokens in (1, 2, 3, 4))))
    with raises("bad-trace"):
        open_trace(path).histogram()
    path.write_text(lines(*(chunk | (chat(100, 4 + n) if last else {}) for n in range(3) for last in (0, 0, 1))))
    assert open_trace(path).histogram().requests == 3


def test_chunks_may_repeat_another_id(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    chunks = [
        chunk(str(k), chat(100, n)["usage"]) | {"request_id": own}
        for k, (n, own) in enumerate(((1, "a"), (2, "a"), (1, "b")))
    ]
    path.write_text(lines(*chunks), encoding="utf-8")
    summary = open_trace(path).describe()
    assert (summary.requests, summary.output.total) == (2, 3)


def test_the_start_of_a_stream_of_anthropic_is_no_request(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    start = {"type": "message_start", "message": {"id": "m", "usage": {**CLAUDE_USAGE, "output_tokens": 1}}}
    path.write_text(
        lines(start, {"type": "message_delta", "usage": CLAUDE_USAGE}, {"type": "message_stop"}), encoding="utf-8"
    )
    summary = open_trace(path).describe()
    assert (summary.requests, summary.input.total, summary.output.total) == (1, 8103, 50)
    # Where the prompt stands in the one event and the answer in another, no row has both.
    path.write_text(lines(start, {"type": "message_delta", "usage": {"output_tokens": 15}}), encoding="utf-8")
    with raises("no-requests"):
        open_trace(path).describe()


def test_the_same_id_of_other_requests_joins_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({"id": "x", **chat(9 + n, 3)} for n in range(5))), encoding="utf-8")
    assert open_trace(path).histogram().requests == 5
    path.write_text(lines(*({"id": None, **chat(9, n)} for n in range(1, 5))), encoding="utf-8")
    assert open_trace(path).histogram().requests == 4


def test_a_stream_whose_counts_come_late_is_read_whatever_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records = [chunk(own, None if n < 299 else chat(100, 300)["usage"]) for own in "abc" for n in range(300)]
    path.write_text(lines(*records), encoding="utf-8")
    named = Columns(input="usage.prompt_tokens", output="usage.completion_tokens")
    for options in ({}, {"format": "openai"}, {"columns": named}):
        summary = open_trace(path, **options).describe()
        assert (summary.requests, summary.input.total, summary.output.total) == (3, 300, 900)


def test_failed_rows_are_set_aside_with_named_columns_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines({"p": 9, "c": 3}, {"p": None, "c": None}, {"error": "x"}), encoding="utf-8")
    summary = open_trace(path, columns=Columns(input="p", output="c")).describe()
    assert (summary.requests, summary.failed_requests) == (1, 2)
    path.write_text(lines({"p": 9, "c": 3}, {"p": 9, "status": "cancelled"}), encoding="utf-8")
    assert open_trace(path, columns=Columns(input="p", output="c")).describe().failed_requests == 1
    path.write_text("p,c,status\n9,3,ok\n9,,cancelled\n", encoding="utf-8")
    assert open_trace(path, columns=Columns(input="p", output="c")).describe().failed_requests == 1
    path.write_text("p,c\n9,3\n9,\n", encoding="utf-8")
    with raises("bad-trace", rows={"output": 1}):
        open_trace(path, columns=Columns(input="p", output="c")).describe()
    path.write_text("p,c\n9,3\n,\n", encoding="utf-8")
    assert open_trace(path, columns=Columns(input="p", output="c")).describe().failed_requests == 1


def outcome(path: Path) -> int | str:
    try:
        return open_trace(path).histogram().requests
    except DataError as error:
        return error.code


def test_records_that_go_deep_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for depth in (30, 200, 900, 50_000):
        deep = '{"a":' * depth + '[{"key": "x", "value": {}}]' + "}" * depth
        usage = '"usage": {"prompt_tokens": 9, "completion_tokens": 3}'
        for text in (f'{{"deep": {deep}}}\n', f"[{deep}]", f'{{"deep": {deep}, {usage}}}\n'):
            path.write_text(text, encoding="utf-8")
            assert outcome(path) in (1, "unknown-format", "bad-syntax")


# --- columns that add up


def test_columns_may_be_sums(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("fresh,hit,more,said,thought\n3,8000,100,50,7\n3,,,50,\n", encoding="utf-8")
    columns = Columns(input="fresh + hit+more", output="said+thought", cached="hit")
    trace = open_trace(path, columns=columns)
    requests = trace.requests()
    assert requests.input_tokens.tolist() == [8103, 3]
    assert requests.output_tokens.tolist() == [57, 50]
    assert requests.cached_tokens is not None
    assert requests.cached_tokens.tolist() == [8000, 0]
    for frame in (pl.read_csv(path), pl.read_csv(path).to_pandas(), pl.read_csv(path).to_arrow()):
        assert open_trace(frame, columns=columns).requests().input_tokens.tolist() == [8103, 3]


def test_a_bad_part_of_a_sum_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("a,b,c\n3,x,1\n", encoding="utf-8")
    with raises("bad-trace") as told:
        open_trace(path, columns=Columns(input="a+b", output="c")).histogram()
    assert "'a' + 'b'" in str(told.value)
    assert "'3 + x'" in str(told.value)
    with raises("no-column", column="d", option="--input-column"):
        open_trace(path, columns=Columns(input="a+d", output="c"))


def test_a_name_with_a_plus_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("in+cached,out\n9,3\n", encoding="utf-8")
    assert open_trace(path, columns=Columns(input="in+cached", output="out")).histogram().input_tokens == 9


def test_counts_of_two_apis_in_one_log_are_read_row_by_row_wherever_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*[chat(10, 1)] * 500, *[{"usage": CLAUDE_USAGE}] * 500), encoding="utf-8")
    summary = open_trace(path).describe()
    assert (summary.requests, summary.input.total) == (1000, 500 * (10 + 8103))
    path.write_text(lines(*[chat(10, 1)] * 500, *[{"response": {"body": chat(7, 1)}}] * 500), encoding="utf-8")
    assert open_trace(path).describe().input.total == 500 * 17


def test_json_that_stands_as_text_in_a_column_is_read(tmp_path: Path) -> None:
    usage = [
        {"usage": {"prompt_tokens": 9, "completion_tokens": 3}, "a.b": 4},
        {"usage": None},
        {"usage": CLAUDE_USAGE},
    ]
    path = tmp_path / "log.csv"
    frame = pl.DataFrame({"startTime": [0, 1, 4], "body": list(map(json.dumps, usage)), "note": ["{", "", "{}"]})
    frame.write_csv(path)
    records = tmp_path / "log.jsonl"
    frame.write_ndjson(records)
    table = tmp_path / "log.parquet"
    frame.write_parquet(table)
    for source in (path, records, table, frame):
        trace = open_trace(source)
        assert trace.format == "openai"
        summary = trace.describe()
        assert (summary.requests, summary.input.total, summary.failed_requests) == (2, 9 + 8103, 1)
        assert (summary.cached_input_tokens, summary.duration_s) == (8000, 4.0)
        named = Columns(input="body.a.b", output="body.usage.completion_tokens")
        assert open_trace(source, columns=named, bad_rows=0.9).describe().input.total == 4


# --- arrivals

NAMES = [
    "timestamp",
    "time",
    "arrived_at",
    "created",
    "created_at",
    "start_time",
    "startTime",
    "Start Time",
    "@timestamp",
]


@pytest.mark.parametrize("name", [*NAMES, "arrival_s", "request_time", "ts", "start_time_seconds"])
def test_plain_names_of_arrivals_are_recognised(name: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{name},input_tokens,output_tokens,end_time\n0,9,3,9\n4,9,3,9\n", encoding="utf-8")
    assert open_trace(path).describe().duration_s == 4.0
    records = [{"meta": {"at": 1, name: at}, "usage": {"prompt_tokens": 1, "completion_tokens": 1}} for at in (0, 4)]
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({name: record["meta"][name], **record} for record in records)), encoding="utf-8")
    assert open_trace(path).describe().duration_s == 4.0


@pytest.mark.parametrize(
    ("name", "unit"), [("start_ms", 1e-3), ("startTimeUnixNano", 1e-9), ("ts_us", 1e-6), ("start_ns", 1e-9)]
)
def test_a_unit_may_end_the_name_of_arrivals(name: str, unit: float, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"{name},input_tokens,output_tokens\n0,9,3\n{round(4 / unit)},9,3\n", encoding="utf-8")
    assert open_trace(path).describe().duration_s == pytest.approx(4.0)


def test_latencies_are_no_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    latencies = [1.2, 0.3, 2.5, 0.9, 1.1, 0.4, 3.3, 0.2, 1.9, 0.8, 2.2, 0.1]
    rows = "".join(f"{value},9,3\n" for value in latencies)
    path.write_text(f"time,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    assert open_trace(path).layout.time == ()
    assert open_trace(path, columns=Columns(time="time")).layout.time == ("time",)


def test_a_time_that_is_no_arrival_is_none(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("end_time,time_to_first_token,input_tokens,output_tokens\n5,1,9,3\n", encoding="utf-8")
    assert open_trace(path).layout.time == ()


# --- what links requests


def test_a_session_waits_for_its_answers(tmp_path: Path) -> None:
    requests = opened(LOGS["burstgpt, sessions"], tmp_path).requests()
    assert requests.after is not None
    assert requests.gap_s is not None
    assert (requests.after.tolist(), requests.gap_s.tolist()) == ([-1, 0], [0.0, 6.0])


def test_blocks_known_only_in_their_session_are_shared_in_it_alone(tmp_path: Path) -> None:
    rows = [{"t": 0.0, "in": 70, "out": 2, "hash_ids": [0, 1]}, {"t": 3.0, "in": 128, "out": 2, "hash_ids": [0, 1]}]
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({"id": own, "hash_id_scope": "local", "requests": rows} for own in "ab")), encoding="utf-8")
    blocks = open_trace(path).requests().prefix_blocks
    assert blocks is not None
    by_request = [set(blocks.of(k).tolist()) for k in range(4)]
    assert blocks.block_tokens == 64
    assert len(set.union(*by_request)) == 4
    assert sorted(map(len, by_request)) == [2, 2, 2, 2]


# --- what is no log, and what is unknown


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", encoding="utf-8")
    with raises("not-supported", reason="git-lfs") as told:
        open_trace(path)
    assert "git lfs pull" in str(told.value)


def test_an_unknown_log_gets_a_guess_with_its_reason_and_flags(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "when,promptTokenLen,reply,generatedTokenLen,max_tokens\n1,100,x,30,9\n2,200,y,10,9\n", encoding="utf-8"
    )
    with raises("unknown-format") as told:
        open_trace(path)
    assert "--input-column promptTokenLen --output-column generatedTokenLen" in str(told.value)
    assert "median 150" in str(told.value)
    path.with_suffix(".json").write_text(json.dumps({"results": [{"input_len": 5, "output_len": 3}]}), encoding="utf-8")
    with raises("unknown-format", guess={"input": "input_len", "output": "output_len"}):
        open_trace(path.with_suffix(".json"))
    named = Columns(input="input_len", output="output_len")
    assert open_trace(path.with_suffix(".json"), columns=named).histogram().requests == 1
    path.write_text("when,promptText,reply\n1,100,30\n", encoding="utf-8")
    with raises("unknown-format") as told:
        open_trace(path)
    assert "--input-column NAME --output-column NAME" in str(told.value)


# --- texts


class Words:
    """A tokenizer that counts words."""

    @staticmethod
    def from_pretrained(name: str) -> Any:
        if name == "nothing":
            raise OSError(f"{name} is no tokenizer\nand more")
        ids: dict[str, int] = {}

        def tokens(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [ids.setdefault(word, len(ids)) for word in text.split()]}

        return tokens


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("transformers")
    vars(module)["AutoTokenizer"] = Words
    monkeypatch.setitem(sys.modules, "transformers", module)


QUESTION = " ".join(f"w{k}" for k in range(20))
SHAREGPT = [
    {"id": "a", "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "a b c"},
                                  {"from": "human", "value": "and"}, {"from": "gpt", "value": "d"}]},
    {"id": "b", "conversations": [{"from": "gpt", "value": "no question"}, {"from": "human", "value": QUESTION}]},
]  # fmt: skip
WILDCHAT = [
    {"conversation_hash": "h", "model": "m", "timestamp": "2023-04-09T00:02:53", "conversation": [
        {"role": "user", "content": QUESTION, "timestamp": "2023-04-09T00:02:00"}, {"role": "assistant", "content": "a b c", "timestamp": None},
        {"role": "user", "content": "and", "timestamp": "2023-04-09T00:02:30"}, {"role": "assistant", "content": "d", "timestamp": None}]},
]  # fmt: skip
LMCACHE = [
    {"session_id": "s", "model": "m", "pre_gap": 0.0, "input": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], "output_length": 3},
    {"session_id": "s", "model": "m", "pre_gap": 1.0, "input": [{"role": "user", "content": QUESTION + " and more words"}], "output_length": 1},
]  # fmt: skip


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize(
    ("text", "suffix", "lengths", "seconds"),
    [
        (json.dumps(SHAREGPT), "json", ([20, 24], [3, 1]), None),
        (lines(*SHAREGPT), "jsonl", ([20, 24], [3, 1]), None),
        (lines(*WILDCHAT), "jsonl", ([20, 24], [3, 1]), [0.0, 30.0]),
        (lines(*LMCACHE), "jsonl", ([20, 23], [3, 1]), None),
        (lines({"prompt": QUESTION, "response": "a b", "created": 7}), "jsonl", ([20], [2]), [0.0]),
    ],
    ids=["sharegpt", "sharegpt lines", "wildchat", "lmcache", "prompts"],
)
def test_texts_are_counted_by_a_tokenizer(
    text: str, suffix: str, lengths: tuple[list[int], list[int]], seconds: list[float] | None, tmp_path: Path
) -> None:
    path = tmp_path / f"log.{suffix}"
    path.write_text(text, encoding="utf-8")
    with raises("uncounted-texts", option="--tokenizer"):
        open_trace(path)
    trace = open_trace(path, tokenizer="words")
    requests = trace.requests()
    assert (requests.input_tokens.tolist(), requests.output_tokens.tolist()) == lengths
    assert (None if requests.arrival_s is None else requests.arrival_s.tolist()) == seconds
    assert "words" in str(trace.describe().lengths_from)
    assert requests.prefix_blocks is not None
    assert len({tuple(requests.prefix_blocks.of(k)[:1]) for k in range(len(requests))}) == 1


@pytest.mark.usefixtures("words")
def test_texts_in_parquet_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame(WILDCHAT).with_columns(pl.col("timestamp").str.to_datetime()).write_parquet(path)
    with raises("uncounted-texts"):
        open_trace(path)
    assert open_trace(path, tokenizer="words").requests().input_tokens.tolist() == [20, 24]


def test_numbers_are_no_texts(tmp_path: Path) -> None:
    for suffix, text in (("csv", "prompt,answer\n9,3\n"), ("jsonl", lines({"prompt": 9, "answer": 3}))):
        path = tmp_path / f"log.{suffix}"
        path.write_text(text, encoding="utf-8")
        with raises("unknown-format"):
            open_trace(path)
        assert open_trace(path, columns=Columns(input="prompt", output="answer")).histogram().requests == 1
    with raises("option-not-applicable", options=["--tokenizer"]):
        open_trace(tmp_path / "log.csv", tokenizer="words")


@pytest.mark.usefixtures("words")
def test_a_tokenizer_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*SHAREGPT), encoding="utf-8")
    with raises("tokenizer-missing", tokenizer="nothing"):
        open_trace(path, tokenizer="nothing")


# --- distributions


def servegen(folder: Path, client: int, windows: str, lengths: dict[str, Any]) -> Path:
    (folder / f"chunk-{client}-dataset.json").write_text(json.dumps(lengths), encoding="utf-8")
    path = folder / f"chunk-{client}-trace.csv"
    path.write_text(windows, encoding="utf-8")
    return path


LENGTHS = {
    "0": {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{5: 0.25, 9: 0.75}"},
    "21600": {"input_tokens": "{7: 1.0}", "output_tokens": "{1: 1.0}"},
}


def test_clients_of_servegen_are_drawn_at_their_rates_and_lengths(tmp_path: Path) -> None:
    windows = "0,1.0,2.5,Gamma,0.16,6.25\n600,0.5,1.0,Weibull,1.0,2000000\n1200,0.0,0,,,\n21600,0.1,1.0,,,\n"
    path = servegen(tmp_path, 0, windows, LENGTHS)
    trace = open_trace(path)
    requests = trace.requests()
    assert len(requests) == 600 + 300 + 60
    assert requests.arrival_s is not None
    assert requests.arrival_s[-1] < 22200
    lengths = set(zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True))
    assert lengths == {(100, 5), (200, 9), (7, 1)}
    assert 150 < int((requests.input_tokens == 100).sum()) < 300
    assert "ServeGen" in str(trace.lengths_from)
    servegen(tmp_path, 1, "0,1.0,1,Gamma,1,1\n", LENGTHS)
    assert len(open_trace(tmp_path).requests()) == 960 + 600
    assert open_trace(tmp_path).requests().arrival_s is not None


def test_a_dict_as_text_is_not_run(tmp_path: Path) -> None:
    text = {"0": {"input_tokens": "__import__('os').abort()", "output_tokens": "{1: 1}"}}
    with raises("file-not-readable"):
        open_trace(servegen(tmp_path, 0, "0,1.0,1,Gamma,1,1\n", text))
    with raises("too-many"):
        open_trace(servegen(tmp_path, 0, "0,100000,1,Gamma,1,1\n", LENGTHS))
