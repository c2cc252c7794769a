"""Identity of cells."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records import GREEDY, Arrivals, Cell, Decoding, EngineSetup, Load
from raising import raises

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
    values: dict[str, Any] = {"input_tokens": 1, "output_tokens": 1, "batch": 1} | {field: 0}
    with raises("bad-value", option=field, value=0, expected="at least 1"):
        Load(**values)


def test_new_axes_leave_old_ids_as_they_were() -> None:
    """The id of a cell in the shipped tables."""
    cell = Cell(
        setup=EngineSetup(engine="vllm", model="llama-3.1-8b"), load=Load(input_tokens=512, output_tokens=64, batch=8)
    )
    assert cell.id == "d0c8992aa92f"
    load = Load(input_tokens=512, output_tokens=64, batch=8, decoding=Decoding(beams=4))
    assert Cell(setup=cell.setup, load=load).id != cell.id
    assert str(Cell(setup=cell.setup, load=load)) == "vllm-beam4 llama-3.1-8b 512→64 × 8"


def test_a_bound_on_sequences_is_in_the_label_and_leaves_other_ids_alone() -> None:
    setup = EngineSetup(engine="vllm", model="m", max_sequences=256)
    assert setup.label == "vllm-s256"
    assert EngineSetup(model="m", **EngineSetup.parse_label(setup.label)) == setup
    assert setup.id != EngineSetup(engine="vllm", model="m").id
    with raises("bad-value", option="max_sequences", value=0, expected="at least 1"):
        EngineSetup(engine="vllm", model="m", max_sequences=0)


def test_a_compiled_set_up_has_a_label_of_its_own() -> None:
    setup = EngineSetup(engine="transformers", model="m", compiled=True)
    assert setup.label == "transformers-compiled"
    assert EngineSetup(model="m", **EngineSetup.parse_label(setup.label)) == setup


@given(
    st.one_of(
        st.builds(Decoding, beams=st.integers(1, 64)),
        st.builds(
            Decoding,
            temperature=st.sampled_from([0.1, 0.8, 1.0, 2.5]),
            top_p=st.sampled_from([0.1, 0.95, 1.0]),
            top_k=st.none() | st.integers(1, 1000),
        ),
    )
)
def test_a_decoding_is_what_its_label_says(decoding: Decoding) -> None:
    assert Decoding.parse_label(decoding.label) == decoding


def test_greedy_is_the_default() -> None:
    assert Decoding.parse_label("greedy") == GREEDY == Load(input_tokens=1, output_tokens=1, batch=1).decoding


@pytest.mark.parametrize(
    ("options", "code", "fields"),
    [
        ({"beams": 0}, "bad-value", {"option": "beams", "value": 0}),
        ({"top_p": 0.9}, "option-missing", {"option": "temperature"}),
        ({"top_k": 5}, "option-missing", {"option": "temperature"}),
        ({"beams": 2, "temperature": 1.0}, "options-conflict", {"options": {"beams": 2, "temperature": 1.0}}),
        ({"temperature": 0.0}, "bad-value", {"value": [0.0, 1.0, None]}),
        ({"temperature": 1.0, "top_p": 1.5}, "bad-value", {"value": [1.0, 1.5, None]}),
        ({"temperature": 1.0, "top_k": 0}, "bad-value", {"value": [1.0, 1.0, 0]}),
    ],
)
def test_a_decoding_that_means_nothing_is_refused(options: dict[str, Any], code: str, fields: dict[str, Any]) -> None:
    with raises(code, **fields):
        Decoding(**options)


@pytest.mark.parametrize("label", ["beams4", "t", "0.8", "t0.8-k", "greedy4", "", "t1.2.3"])
def test_a_label_that_means_nothing_is_told(label: str) -> None:
    with raises("bad-value", option="decoding", value=label):
        Decoding.parse_label(label)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "usage_context": st.sampled_from(["llm", "server"]),
        "max_sequences": st.integers(1, 4096),
        "max_batched_tokens": st.integers(1, 65536),
        "prefix_caching": st.booleans(),
        "gpu_memory_utilization": st.integers(1, 100).map(lambda percent: percent / 100),
        "max_model_len": st.integers(1, 1_000_000),
        "dtype": st.sampled_from(["bfloat16", "float16", "fp8"]),
        "tensor_parallel": st.integers(1, 8),
        "cuda_graphs": st.just(False),
    },
)


@given(OPTIONS)
def test_a_label_keeps_all_options_of_vllm(options: dict[str, Any]) -> None:
    setup = EngineSetup(engine="vllm", model="m", **options)
    assert EngineSetup(model="m", **EngineSetup.parse_label(setup.label)) == setup


@pytest.mark.parametrize(
    ("label", "cell_id"),
    [("vllm", "43a54e0dfbfc"), ("vllm-eager-fp8-tp2-s4", "8f46618dc477"), ("transformers-compiled", "b8abc32da64f")],
)
def test_ids_of_set_ups_without_the_options_of_a_server_are_as_before_there_were_any(label: str, cell_id: str) -> None:
    assert EngineSetup(model="llama-3.1-8b", **EngineSetup.parse_label(label)).id == cell_id


def test_the_id_of_a_replay_all_at_once_is_as_before_there_were_windows() -> None:
    arrivals = Arrivals(law="replay", trace="azure-conv-2023", digest="0123456789ab")
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b", max_sequences=256)
    cell = Cell(setup=setup, load=Load(input_tokens=7437, output_tokens=900, batch=1000, arrivals=arrivals))
    assert cell.id == "fb336a1e9cb7"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usage_context", "engine"),
        ("max_batched_tokens", 0),
        ("max_model_len", -1),
        ("gpu_memory_utilization", 0.0),
        ("gpu_memory_utilization", 1.5),
    ],
)
def test_an_option_of_vllm_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with raises(
        "unknown-name" if field == "usage_context" else "bad-value",
        **({"name": value} if field == "usage_context" else {"option": field, "value": value}),
    ):
        EngineSetup(engine="vllm", model="m", **{field: value})


@pytest.mark.parametrize("part", ["s", "bt", "mem", "s1.5", "len0.5", "servers"])
def test_a_part_of_a_label_without_its_number_is_refused(part: str) -> None:
    with raises("unknown-name", name=part, label=f"vllm-{part}"):
        EngineSetup.parse_label(f"vllm-{part}")
