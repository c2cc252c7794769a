"""The transformers engine on a tiny random model, with CPU PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infergy.engines import find_engine
from infergy.engines.engine import Work
from infergy.engines.weights import draw_weights
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup
from raising import raises

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "bos_token_id": 1,
    "eos_token_id": list(range(128)),
    "torch_dtype": "float32",
}
SETUP = EngineSetup(engine="transformers", model="tiny")


def work(batch: int, length: int, output: int) -> Work:
    prompts = tuple(tuple((i * 7 + j) % 128 for j in range(length)) for i in range(batch))
    return Work(prompts=prompts, output_tokens=(output,) * batch, arrival_s=(0.0,) * batch)


def test_every_request_yields_exactly_the_tokens_asked_for_although_every_token_ends_a_sequence() -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    completion = session.run(work(batch=3, length=5, output=4))
    assert completion.input_tokens == (5, 5, 5)
    assert completion.output_tokens == (4, 4, 4)
    session.close()


def test_the_first_token_comes_before_the_last_and_its_stamp_changes_no_token() -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    asked = work(batch=3, length=5, output=24)
    kept: list[Any] = []
    generate = session._model.generate  # type: ignore[attr-defined]

    def keeping(*arguments: Any, **options: Any) -> Any:
        kept.append(generate(*arguments, **options))
        return kept[-1]

    session._model.generate = keeping  # type: ignore[attr-defined]
    completion = session.run(asked)
    with torch.inference_mode():
        ids = torch.tensor(asked.prompts)
        plain = generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24)
    assert torch.equal(kept[0], plain)
    assert completion.first_token_s is not None
    assert completion.finished_s is not None
    assert len(set(completion.first_token_s)) == 1
    assert 0 < completion.first_token_s[0] < completion.finished_s[0]


def test_one_output_token_is_prefill_alone() -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    assert session.run(work(batch=1, length=9, output=1)).output_tokens == (1,)


def test_the_row_can_say_how_the_engine_ran() -> None:
    facts = find_engine("transformers").open(SETUP, TINY, seed=0).facts()
    assert facts["attention"] == "sdpa, cuDNN kernels off"
    assert facts["dtype"] == "torch.bfloat16"
    assert facts["compiled"] == "no"


def mixed(*lengths: tuple[int, int]) -> Work:
    prompts = tuple(tuple((i * 7 + j) % 126 + 2 for j in range(tokens)) for i, (tokens, _) in enumerate(lengths))
    return Work(prompts=prompts, output_tokens=tuple(out for _, out in lengths), arrival_s=(0.0,) * len(lengths))


def test_mixed_lengths_are_padded_and_only_the_tokens_asked_for_are_counted() -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    done = session.run(mixed((9, 4), (2, 7), (5, 1)))
    assert done.input_tokens == (9, 2, 5)
    assert done.output_tokens == (4, 7, 1)


def test_padding_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    session = find_engine("transformers").open(replace(SETUP, dtype="float16"), TINY, seed=0)
    session._model.float()  # type: ignore[attr-defined]
    kept = keep_tokens(session, monkeypatch)
    asked = mixed((9, 6), (3, 6))
    session.run(asked)
    for one in range(2):
        alone = replace(asked, prompts=(asked.prompts[one],), output_tokens=(6,), arrival_s=(0.0,))
        session.run(alone)
    together, *apart = kept
    for one in range(2):
        assert torch.equal(together[one][-6:], apart[one][0][-6:])


def test_a_bound_makes_static_batches_one_after_the_other() -> None:
    bound = replace(SETUP, max_sequences=2)
    engine = find_engine("transformers")
    engine.check(bound, arrivals=Arrivals(law="replay", trace="task:translation"))
    session = engine.open(bound, TINY, seed=0)
    sizes: list[tuple[int, ...]] = []
    session._model.register_forward_pre_hook(  # type: ignore[attr-defined]
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    done = session.run(mixed((9, 3), (2, 2), (5, 3), (6, 1), (4, 1)))
    assert done.input_tokens == (9, 2, 5, 6, 4)
    assert done.output_tokens == (3, 2, 3, 1, 1)
    assert [shape for shape in sizes if shape[1] > 1] == [(2, 9), (2, 6), (1, 4)]
    assert done.finished_s is not None
    assert done.finished_s[0] == done.finished_s[1] < done.finished_s[2] == done.finished_s[3] < done.finished_s[4]


def test_a_replay_is_served_and_one_that_would_compile_each_batch_or_wait_for_arrivals_is_rejected() -> None:
    engine = find_engine("transformers")
    replayed = Arrivals(law="replay", trace="task:translation")
    with raises("options-conflict", options={"arrivals": replayed.label, "compiled": True}):
        engine.check(replace(SETUP, compiled=True), arrivals=replayed)
    with raises("engine-lacks", option="arrivals", value="poisson4"):
        engine.check(SETUP, arrivals=Arrivals(law="poisson", rate_per_s=4.0))
    session = engine.open(SETUP, TINY, seed=0)
    with raises("engine-lacks", option="arrivals"):
        session.run(replace(mixed((3, 1), (3, 1)), arrival_s=(0.0, 1.0)))


def test_random_weights_follow_the_one_law_and_its_seed() -> None:
    linear = torch.nn.Linear(256, 256)
    norm = torch.nn.LayerNorm(256)
    model = torch.nn.ModuleDict({"linear": linear, "norm": norm})
    assert draw_weights(model, "random", seed=3) == 256 * 256 + 256 + 256 + 256
    first = linear.weight.detach().clone()
    assert first.std().item() == pytest.approx(0.02, rel=0.02)
    assert linear.bias.abs().max().item() == 0
    assert norm.weight.min().item() == norm.weight.max().item() == 1
    draw_weights(model, "random", seed=4)
    assert not torch.equal(linear.weight, first)
    draw_weights(model, "random", seed=3)
    assert torch.equal(linear.weight, first)


def keep_tokens(session: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All tensors that `generate` will return."""
    kept: list[Any] = []
    generate = session._model.generate

    def keep(*args: Any, **options: Any) -> Any:
        kept.append(generate(*args, **options))
        return kept[-1]

    monkeypatch.setattr(session._model, "generate", keep)
    return kept


@pytest.mark.parametrize(
    "decoding",
    [Decoding(beams=3), Decoding(temperature=0.8), Decoding(temperature=1.2, top_p=0.9, top_k=20)],
    ids=lambda decoding: decoding.label,
)
def test_each_decoding_yields_the_tokens_asked_for(decoding: Decoding) -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    done = session.run(replace(work(batch=3, length=9, output=7), decoding=decoding))
    assert done.input_tokens == (9, 9, 9)
    assert done.output_tokens == (7, 7, 7)


def test_greedy_search_repeats_itself_and_sampling_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    kept = keep_tokens(session, monkeypatch)
    asked = work(batch=2, length=9, output=12)
    torch.manual_seed(0)
    hot = Decoding(temperature=5.0)
    for decoding in (GREEDY, GREEDY, Decoding(temperature=5.0, top_k=1), hot, hot):
        session.run(replace(asked, decoding=decoding))
    greedy, again, likeliest, drawn, anew = kept
    assert torch.equal(greedy, again)
    assert torch.equal(greedy, likeliest)
    assert not torch.equal(greedy, drawn)
    assert not torch.equal(drawn, anew)


def test_a_static_cache_yields_what_a_dynamic_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its decode step is compiled besides; on a CPU `generate` does not compile."""
    tokens = []
    for compiled in (False, True):
        setup = EngineSetup(engine="transformers", model="tiny", compiled=compiled)
        session = find_engine("transformers").open(setup, TINY, seed=0)
        kept = keep_tokens(session, monkeypatch)
        assert session.run(work(batch=2, length=9, output=12)).output_tokens == (12, 12)
        tokens.append(kept[0])
        facts = session.facts()
        assert facts["cache"] == ("static" if compiled else "dynamic")
        assert facts["compiled"] == ("no: generate compiles on GPUs only" if compiled else "no")
    assert torch.equal(*tokens)


def test_beams_over_a_static_cache_are_rejected() -> None:
    setup = EngineSetup(engine="transformers", model="tiny", compiled=True)
    with raises("options-conflict", options={"compiled": True, "decoding": "beam2"}):
        find_engine("transformers").check(setup, Decoding(beams=2))


@pytest.mark.parametrize(("option", "value"), [("cuda_graphs", True), ("tensor_parallel", 2)])
def test_what_it_lacks_is_rejected_before_loading(option: str, value: Any) -> None:
    with raises("engine-lacks", engine="transformers", option=option):
        find_engine("transformers").check(EngineSetup(engine="transformers", model="tiny", **{option: value}))


def fp8_linear(scales: int = 1) -> Any:
    """A linear layer as vLLM's ``fp8_per_tensor`` leaves it: transposed, with one scale."""
    layer = torch.nn.Module()
    weight = torch.zeros(512, 256).to(torch.float8_e4m3fn).t()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(torch.zeros(scales), requires_grad=False)
    return layer


@pytest.mark.parametrize(("law", "deviation", "largest"), [("random", 0.02, None), ("random-uniform", None, 1e-3)])
def test_fp8_matrices_hold_the_same_law_as_quantisation_leaves_it(
    law: str, deviation: float | None, largest: float | None
) -> None:
    model = torch.nn.ModuleList([fp8_linear(), torch.nn.Linear(8, 8)])
    assert draw_weights(model, law, seed=1) == 512 * 256 + 8 * 8 + 8
    layer = model[0]
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert layer.weight.float().abs().max() == torch.finfo(torch.float8_e4m3fn).max
    values = layer.weight.float() * layer.weight_scale
    if deviation is not None:
        assert values.std() == pytest.approx(deviation, rel=0.02)
    if largest is not None:
        assert values.abs().max() == pytest.approx(largest, rel=0.01)
    assert values.mean().abs() < 1e-3
    again = torch.nn.ModuleList([fp8_linear(), torch.nn.Linear(8, 8)])
    draw_weights(again, law, seed=1)
    assert torch.equal(again[0].weight.float(), layer.weight.float())


def test_an_fp8_scheme_with_other_scales_is_rejected() -> None:
    with pytest.raises(RuntimeError, match="without one scale of its own"):
        draw_weights(fp8_linear(scales=4), "random", seed=1)


def test_fp8_experts_are_drawn_each_with_its_own_scale() -> None:
    layer = torch.nn.Module()
    layer.w13_weight = torch.nn.Parameter(torch.zeros(4, 64, 128).to(torch.float8_e4m3fn), requires_grad=False)
    layer.w13_weight_scale = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
    assert draw_weights(layer, "random", seed=1) == 4 * 64 * 128
    values = layer.w13_weight.float() * layer.w13_weight_scale[:, None, None]
    assert values.std((1, 2)).numpy() == pytest.approx(0.02, rel=0.05)
    assert len(set(layer.w13_weight_scale.tolist())) == 4


OLMOE = {
    "model_type": "olmoe",
    "architectures": ["OlmoeForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}


def test_the_share_of_experts_that_decode_steps_visit_is_counted_when_asked_and_only_then() -> None:
    setup = EngineSetup(engine="transformers", model="tiny-moe")
    session = find_engine("transformers").open(setup, OLMOE, 0)

    def touched(batch: int, *, asked: bool = True, beams: int = 1) -> float | None:
        asked_for = replace(work(batch, 5, 6), decoding=Decoding(beams=beams), count_experts=asked)
        return session.run(asked_for).experts_touched

    # One token visits two of eight experts of each layer, whichever they are.
    assert touched(1) == pytest.approx(2 / 8)
    assert touched(1, asked=False) is None
    many = touched(16)
    assert many is not None
    assert 2 / 8 < many <= 1
    assert touched(1, beams=2) is not None
    session.close()


def test_a_dense_model_has_no_experts_to_report() -> None:
    session = find_engine("transformers").open(SETUP, TINY, seed=0)
    assert session.run(replace(work(2, 4, 4), count_experts=True)).experts_touched is None
    session.close()
