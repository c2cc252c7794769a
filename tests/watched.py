"""A server that exists on a simulated clock alone: its tokens follow from the time, and so does what its GPUs draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from infergy.catalog import get_gpu
from infergy.errors import MissingError
from infergy.meters.simulated import CounterSensor, Sensors, SimulatedGpu, SimulatedMeter, SimulatedNode, pretend_node
from infergy.records import GpuIdentity
from infergy.watch.live import Live, Watch
from infergy.watch.metrics import Page, read_page

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
INPUT, OUTPUT = 800, 200


def node_of(count: int = 1, **sensor: float) -> SimulatedNode:
    """GPUs that draw 300 W all the time, the counter as it is or with a fault."""
    if not sensor:
        node = pretend_node(get_gpu("h200"), count)
    else:
        sensors = Sensors(counter=CounterSensor(**sensor))
        gpus = [
            SimulatedGpu(
                GpuIdentity(uuid=f"GPU-{index}", name="simulated", power_limit_w=700.0), idle_w=70.0, sensors=sensors
            )
            for index in range(count)
        ]
        node = SimulatedNode(gpus)
    for gpu in node.gpus:
        gpu.load_w = 300.0
    return node


@dataclass
class Server:
    """vLLM's page at a time of the node's clock; `faults` are what it answers in place of its page, once each."""

    node: SimulatedNode
    per_s: float = 1000.0
    running: float = 8.0
    begun_s: float = 0.0
    fetch_s: float = 0.01
    faults: list[Exception] = field(default_factory=list)
    change: Callable[[str], str] = str

    def read(self) -> Page:
        """The page, after the time that reading it takes."""
        self.node.sleep(self.fetch_s / 2)
        text = self.text()
        self.node.sleep(self.fetch_s / 2)
        if self.faults:
            raise self.faults.pop()
        return read_page(text, "http://here/metrics")

    def text(self) -> str:
        """What it answers now."""
        output = self.per_s * max(0.0, self.node.now_s() - self.begun_s)
        requests = output // OUTPUT
        label = f'model_name="{MODEL}"'
        lines = [
            f"vllm:prompt_tokens_total{{{label}}} {requests * INPUT}",
            f"vllm:generation_tokens_total{{{label}}} {output // 1}",
            f"vllm:num_requests_running{{{label}}} {self.running}",
        ]
        for name, mean, edges in (
            ("request_prompt_tokens", INPUT, (500, 1000)),
            ("request_generation_tokens", OUTPUT, (100, 200)),
            ("time_to_first_token_seconds", 0.05, (0.01, 0.1)),
        ):
            lines += [f'vllm:{name}_bucket{{le="{edge}",{label}}} {requests * (edge >= mean)}' for edge in edges]
            lines += [
                f'vllm:{name}_bucket{{le="+Inf",{label}}} {requests}',
                f"vllm:{name}_sum{{{label}}} {requests * mean}",
            ]
        return self.change("\n".join(lines) + "\n")


def watch_of(server: Server, **options: object) -> Watch:
    """A watch of a server and all GPUs of its node."""
    meter = SimulatedMeter(server.node)
    return Watch(meter, tuple(gpu.uuid for gpu in meter.gpus), server.read, **options)  # type: ignore[arg-type]


def run(watch: Watch, node: SimulatedNode, seconds: int) -> list[Live]:
    """Refresh once a second of the node's clock."""
    begun_s, shown = node.now_s(), []
    for second in range(seconds):
        node.sleep(max(0.0, begun_s + second - node.now_s()))
        shown.append(watch.refresh())
    return shown


def silent(*, may_run_on: bool) -> MissingError:
    """A server that does not answer."""
    return MissingError("no answer", code="server-unreachable", may_run_on=may_run_on)
