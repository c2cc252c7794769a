"""Static batches: padded, to the longest answer, then the next."""

from __future__ import annotations

from infergy.serving.config import StaticConfig
from infergy.serving.simulate import simulate
from raising import raises
from serving.doubles import Affine, ask

STEP = Affine(base_s=1.0)


def test_a_batch_runs_to_its_longest_answer_before_the_next_begins() -> None:
    run = simulate(ask([(10, 2), (30, 5), (20, 1)]), StaticConfig(max_num_seqs=2), STEP)
    assert run.requests.first_token_s.tolist() == [1.0, 1.0, 6.0]
    assert run.requests.finished_s.tolist() == [5.0, 5.0, 6.0]
    steps = run.steps
    assert steps.prefill_tokens.tolist() == [60, 0, 20]
    assert steps.prefill_pairs.tolist() == [2 * 30 * 31 / 2, 0, 20 * 21 / 2]
    assert steps.decodes.tolist() == [0, 2, 0]
    assert steps.count.tolist() == [1, 4, 1]
    assert steps.context[1] == 2 * (31 + 32 + 33 + 34) / 4
    assert run.energy.mixed_j == 0.0


def test_a_mask_is_paid_for_where_prompts_are_padded() -> None:
    masked, batch = Affine(base_s=1.0, masked_attention=5.0), StaticConfig(max_num_seqs=2)
    padded, equal = (
        simulate(ask(lengths), batch, masked).steps for lengths in ([(10, 3), (30, 3)], [(30, 3), (30, 3)])
    )
    assert (padded.prefill_tokens[0], padded.prefill_pairs[0]) == (60, 5 * 2 * 30 * 31 / 2)
    assert (equal.prefill_tokens[0], equal.prefill_pairs[0]) == (60, 2 * 30 * 31 / 2)
    assert padded.context[1] == 5 * 2 * 31 + 2 * 0.5
    assert equal.context[1] == 2 * (31 + 32) / 2


def test_it_does_not_wait_for_a_full_batch() -> None:
    run = simulate(ask([(10, 2), (10, 2)], [0.0, 0.5]), StaticConfig(max_num_seqs=8), STEP)
    assert run.requests.finished_s.tolist() == [2.0, 4.0]


def test_idle_and_sessions() -> None:
    requests = ask([(10, 2), (10, 2)], [0.0, 0.0], after=[-1, 0], gap_s=[0.0, 3.0])
    run = simulate(requests, StaticConfig(max_num_seqs=8), STEP)
    assert run.requests.arrival_s.tolist() == [0.0, 5.0]
    assert run.idle_s == 3.0


def test_too_long_requests_are_rejected() -> None:
    run = simulate(ask([(10, 2), (90, 20)]), StaticConfig(max_num_seqs=8, max_model_len=100), STEP)
    assert run.requests.rejected.tolist() == [False, True]


def test_replicas_by_load() -> None:
    requests = ask([(10, 50), (10, 2), (10, 2)], [0.0, 0.0, 10.0])
    run = simulate(requests, StaticConfig(max_num_seqs=1), STEP, replicas=2, router="least_loaded")
    assert run.requests.finished_s.tolist() == [50.0, 2.0, 12.0]


def test_a_batch_of_none_is_rejected() -> None:
    with raises("bad-value", option="--max-num-seqs", value=0):
        StaticConfig(max_num_seqs=0)


def test_a_queue_that_grows_while_a_batch_runs_is_counted() -> None:
    # One request at a time, twenty steps each: of forty that come in a second all but one wait.
    requests = ask([(10, 20)] * 40, [k / 40 for k in range(40)])
    counts = simulate(requests, StaticConfig(max_num_seqs=1), STEP).counts
    assert counts.waiting_at_last_arrival == 39
    assert counts.peak_waiting == 39
