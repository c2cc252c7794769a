"""What watching costs: CPU seconds of a minute at one refresh a second, beside CodeCarbon where it is installed.

Usage: python benchmarks/watch_cost.py [SECONDS]

A server on loopback answers with a page of vLLM's size; the meter is the simulated one, whose reads cost what NVML's do to
within some microseconds. CodeCarbon (pip install codecarbon) measures once a second, and reads no server at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

STARTED_S = 12.0
LIMIT = 0.03
LABEL = 'engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"'
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
    *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_inference_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens"),
    *("request_generation_tokens", "request_prefill_kv_computed_tokens", "iteration_tokens_total"),
    *("request_params_n", "request_params_max_tokens", "request_max_num_generation_tokens"),
)
CODECARBON = """
import time
from codecarbon import EmissionsTracker
tracker = EmissionsTracker(measure_power_secs=1, save_to_file=False, log_level="error", allow_multiple_runs=True)
tracker.start()
time.sleep(3600)
"""


def page() -> bytes:
    """Counters, gauges and fifteen histograms of 24 buckets each, which grow with time."""
    count = int(time.monotonic() * 1000)
    lines = [
        f"vllm:{name}_total{{{LABEL}}} {count}" for name in ("prompt_tokens", "generation_tokens", "num_preemptions")
    ]
    lines += [f"vllm:{name}{{{LABEL}}} 8" for name in ("num_requests_running", "num_requests_waiting")]
    lines.append(f"vllm:kv_cache_usage_perc{{{LABEL}}} 0.5")
    for name in HISTOGRAMS:
        lines += [f"# HELP vllm:{name} Histogram of {name}.", f"# TYPE vllm:{name} histogram"]
        lines += [f'vllm:{name}_bucket{{{LABEL},le="{2.0**edge}"}} {count // 200}' for edge in range(-6, 17)]
        lines += [f'vllm:{name}_bucket{{{LABEL},le="+Inf"}} {count // 200}', f"vllm:{name}_sum{{{LABEL}}} {count}"]
    return ("\n".join(lines) + "\n").encode()


class Handler(BaseHTTPRequestHandler):
    """Answers with the page."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: D102
        body = page()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:  # noqa: D102
        pass


def cpu_share(command: Sequence[str], seconds: float) -> float:
    """CPU seconds of a program per second, once it has started."""

    def cpu_s() -> float:
        with open(f"/proc/{process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            time.sleep(STARTED_S)
            begun_s, used_s = time.monotonic(), cpu_s()
            time.sleep(seconds)
            return (cpu_s() - used_s) / (time.monotonic() - begun_s)
        finally:
            process.kill()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watch = [
            sys.executable,
            "-m",
            "infergy",
            "watch",
            f"127.0.0.1:{server.server_port}",
            "--simulate",
            "-g",
            "h200",
        ]
        print(f"page: {len(page()):,} bytes, {len(page().splitlines()):,} lines")
        whole = [*watch, "--json", "--export", ":0"]
        shares = {"watch --json": cpu_share([*watch, "--json"], seconds), "watch --export": cpu_share(whole, seconds)}
        server.shutdown()
    if find_spec("codecarbon") is not None:
        shares["codecarbon, 1 s"] = cpu_share([sys.executable, "-c", CODECARBON], seconds)
    for name, share in shares.items():
        print(f"{name:16} {60 * share:5.2f} CPU seconds a minute, {share:.1%} of a core")
    if max(share for name, share in shares.items() if name.startswith("watch")) > LIMIT:
        sys.exit(f"watching takes more than {LIMIT:.0%} of a core")


if __name__ == "__main__":
    main()
