"""Identity of cells."""

from __future__ import annotations

import pytest

from infergy.errors import UsageError
from infergy.records import Cell, EngineSetup, Load

LOAD = Load(input_tokens=512, output_tokens=64, batch=8)


def test_an_id_is_for_ever() -> None:
    cell = Cell(setup=EngineSetup(engine="vllm", model="llama-3.1-8b"), load=LOAD)
    assert cell.id == "d0c8992aa92f"


def test_a_field_at_its_default_does_not_enter_the_id() -> None:
    short = EngineSetup(engine="vllm", model="m")
    spelled = EngineSetup(engine="vllm", model="m", dtype="bfloat16", tensor_parallel=1, weights="random")
    assert short.id == spelled.id
    assert short.id != EngineSetup(engine="vllm", model="m", cuda_graphs=False).id


def test_the_label_tells_eager_from_graphs() -> None:
    assert EngineSetup(engine="vllm", model="m").label == "vllm"
    assert EngineSetup(engine="vllm", model="m", cuda_graphs=False).label == "vllm-eager"


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens", "batch"])
def test_a_load_of_nothing_is_refused(field: str) -> None:
    values = {"input_tokens": 1, "output_tokens": 1, "batch": 1} | {field: 0}
    with pytest.raises(UsageError, match=f"{field} must be at least 1"):
        Load(**values)
