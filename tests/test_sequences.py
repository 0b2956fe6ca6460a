"""Packed sequences and the log-probabilities of their response tokens, against numbers worked out one by one."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_language_model

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_log_probs
from rlhf_gym.lm.sequences import SequenceBatch, batches_by_length, causal_mask, pack_sequences, response_positions

PROMPTS = [[2, 3, 4], [5], [6, 7]]
RESPONSES = [[8, 9], [10, 11, 12, 0], [13]]
LIMITS = Limits(eos_id=0, suppress_tokens=(1,), max_new_tokens=20)
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param, scale=4.0)


def batch_log_probs(
    model: LanguageModel, batch: SequenceBatch, sampling: Sampling, limits: Limits, *, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    hidden, tokens = model.response_states(batch), batch.responses[batch.response_mask]
    return token_log_probs(model, hidden, tokens, response_positions(batch), sampling, limits, entropy=entropy)


def test_right_padding_worked_by_hand() -> None:
    batch = pack_sequences(PROMPTS, RESPONSES, 1)
    assert batch.ids.tolist() == [[2, 3, 4, 8, 9], [5, 10, 11, 12, 0], [6, 7, 13, 1, 1]]
    assert batch.responses.tolist() == [[8, 9, 1, 1], [10, 11, 12, 0], [13, 1, 1, 1]]
    assert batch.response_mask.sum(1).tolist() == [2, 4, 1]
    assert batch.predicted_from[batch.response_mask].tolist() == [2, 3, 0, 1, 2, 3, 1]
    assert batch.attention_mask is None
    assert batch.position_ids is None


def test_left_padding_worked_by_hand() -> None:
    batch = pack_sequences(PROMPTS, RESPONSES, 1, side="left")
    assert batch.ids[2].tolist() == [1, 1, 6, 7, 13]
    assert batch.predicted_from[batch.response_mask].tolist() == [2, 3, 0, 1, 2, 3, 3]
    assert batch.position_ids is not None
    assert batch.position_ids[2].tolist() == [0, 0, 0, 1, 2]
    assert batch.attention_mask is not None
    assert batch.attention_mask[2].tolist() == [False, False, True, True, True]
    # The last token looks at the three real ones; padding at itself alone, so that no row is without any key.
    mask = causal_mask(batch.attention_mask, 5)
    assert mask[2, 0, 4].tolist() == [False, False, True, True, True]
    assert mask[2, 0, 1].tolist() == [False, True, False, False, False]
    assert torch.equal(causal_mask(batch.attention_mask, 1), mask[:, :, -1:])
    assert torch.equal(causal_mask(batch.attention_mask, 2), mask[:, :, -2:])


@pytest.mark.parametrize(("prompts", "responses"), [([], []), ([[2], []], [[3], [3]]), ([[2]], [[3], [4]])])
def test_sequences_that_cannot_be_packed_are_refused(prompts: list[list[int]], responses: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"expected|shorter|longer"):
        pack_sequences(prompts, responses, 1)


def test_an_empty_response_has_no_log_probs(model: LanguageModel) -> None:
    logs = response_log_probs(model, [[2, 3], [4]], [[], [5, 6]], Sampling(), LIMITS)
    assert [len(row) for row in logs] == [0, 2]
    assert [len(row) for row in response_log_probs(model, [[2, 3]], [[]], Sampling(), LIMITS)] == [0]


@pytest.mark.parametrize("side", SIDES)
def test_prompts_are_found_again_whatever_the_responses(side: Literal["left", "right"]) -> None:
    for responses in (RESPONSES, [[], *RESPONSES[1:]], [[], [], []]):
        assert pack_sequences(PROMPTS, responses, 1, side=side).prompts() == PROMPTS


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_log_probs_are_those_of_each_sequence_alone(model: LanguageModel, data: st.DataObject) -> None:
    tokens = st.integers(2, 27)
    n = data.draw(st.integers(1, 5))
    prompts = [data.draw(st.lists(tokens, min_size=1, max_size=9)) for _ in range(n)]
    responses = [data.draw(st.lists(tokens, min_size=1, max_size=9)) for _ in range(n)]
    sampling = data.draw(st.sampled_from([Sampling(), Sampling(0.7), Sampling(1.5)]))
    batch = pack_sequences(prompts, responses, 1, side=data.draw(st.sampled_from(SIDES)))
    with torch.no_grad():
        ours, entropies = batch_log_probs(model, batch, sampling, LIMITS, entropy=True)
        assert entropies is not None
        expected, expected_entropies = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            logits = model.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            logits[:, 1] = -torch.inf
            distribution: Any = torch.distributions.Categorical(logits=logits / sampling.temperature)
            expected.append(distribution.log_prob(torch.tensor(response)))
            kept = distribution.logits[:, distribution.logits[0] > -torch.inf]
            expected_entropies.append(-(kept.exp() * kept).sum(-1))
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, torch.cat(expected_entropies), atol=2e-5, rtol=1e-5)
    listed = response_log_probs(model, prompts, responses, sampling, LIMITS, tokens_per_batch=16)
    torch.testing.assert_close(torch.cat(listed), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(top_k=2), Sampling(top_p=0.2)])
def test_a_drawn_token_counts_as_kept(model: LanguageModel, sampling: Sampling) -> None:
    # After an update, or under the reference, it may be out of the nucleus: -inf would make KL and loss infinite.
    logs = torch.cat(response_log_probs(model, PROMPTS, RESPONSES, sampling, LIMITS))
    assert torch.isfinite(logs).all()
    assert (logs <= 0).all()


def test_gradients_are_those_of_the_plain_formula(model: LanguageModel) -> None:
    batch = pack_sequences(PROMPTS, RESPONSES, 1)
    weights = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.7, -0.2, 1.0])

    def gradient(plainly: bool) -> list[torch.Tensor]:
        if plainly:
            logits = model.logits(model.response_states(batch)).clone()
            logits[:, 1] = -1e9
            logs = behaviour_log_probs(logits, Sampling(0.7))
            chosen = logs.gather(-1, batch.responses[batch.response_mask][:, None]).squeeze(-1)
            entropy = -(logs.exp() * logs).sum(-1)
        else:
            chosen, maybe = batch_log_probs(model, batch, Sampling(0.7), LIMITS, entropy=True)
            assert maybe is not None
            entropy = maybe
        loss = (weights * chosen).sum() + 0.5 * (weights.flip(0) * entropy).sum()
        return list(torch.autograd.grad(loss, list(model.model.parameters())))

    for ours, plain in zip(gradient(False), gradient(True), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_batches_hold_like_lengths_within_their_limit() -> None:
    lengths = [3, 9, 4, 10, 2, 9]
    batches = batches_by_length(lengths, 20)
    assert batches == [[3, 1], [5, 2], [0, 4]]
    assert batches_by_length([50], 20) == [[0]]
    assert batches_by_length([], 20) == []
