"""A prompt that is run once for all its responses: the numbers and gradients of whole rows, in fewer tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ppo_setups import small_agent
from tiny_models import LetterTokenizer, family, tiny_language_model, tiny_seq2seq
from toy_tasks import letter_task

from rlhf_gym.agents import GRPO, PPO, TRPO
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm import sequences
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.networks import checkpoint_layers
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import SequenceBatch, pack_sequences, response_batches, share_prompts
from rlhf_gym.tasks.samples import Prompt

SIZES: dict[str, Any] = {
    "vocab_size": 28, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
WINDOW = {**SIZES, "num_key_value_heads": 2, "sliding_window": 4}
SHARING: dict[str, Any] = {
    "gpt2": tiny_language_model,
    "llama": lambda: tiny_language_model("llama"),
    "window": lambda: family("Mistral", **WINDOW),
    "window and full": lambda: family("Gemma2", **WINDOW, head_dim=8),
    "learned positions": lambda: family(
        "OPT", vocab_size=28, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=1,
    ),
}  # fmt: skip
NOT_SHARING: dict[str, Any] = {
    "alibi by columns": lambda: family("Bloom", vocab_size=28, hidden_size=32, n_layer=2, n_head=4),
    "no keys": lambda: family("Mamba", vocab_size=28, hidden_size=32, num_hidden_layers=2, state_size=4),
}
LIMITS = Limits(0, (1,), 0, 12)
PLACES, LENGTHS = [0, 0, 1, 2, 2, 1, 0, 2], [6, 1, 9, 3, 0, 12, 8, 2]


def rows() -> tuple[list[list[int]], list[list[int]]]:
    """Eight rows with three prompts of different lengths, in no order; one response is empty, one a single token."""
    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> list[int]:
        return torch.randint(2, 28, (n,), generator=generator).tolist()

    prompts = [ids(11), ids(3), ids(7)]
    return [prompts[place] for place in PLACES], [ids(n) for n in LENGTHS]


def both(model: LanguageModel) -> tuple[SequenceBatch, SequenceBatch]:
    """The rows with prompts run in each row, and once."""
    prompts, responses = rows()
    batch = pack_sequences(prompts, responses, 1)
    assert batch.shared is None  # too few tokens to pay
    return batch, replace(batch, shared=share_prompts(prompts, 1))


@pytest.mark.parametrize("name", SHARING)
def test_states_and_gradients_are_those_of_whole_rows(name: str) -> None:
    model: LanguageModel = SHARING[name]()
    assert model.shares_prompts
    parameters = [p for p in model.model.parameters() if p.requires_grad]
    found, seen = [], []
    for batch in both(model):
        read: list[int] = []
        hook = model.trunk.register_forward_pre_hook(
            lambda _, __, given, read=read: read.append(given["input_ids"].numel()), with_kwargs=True
        )
        states = model.response_states(batch)
        hook.remove()
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        slopes = torch.autograd.grad((states * weights).sum(), parameters, materialize_grads=True)
        found.append((states, *slopes))
        seen.append(sum(read))
    for ours, exact in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, exact, atol=2e-5 * max(1.0, float(exact.detach().abs().max())), rtol=1e-4)
    assert seen == [8 * (11 + 8), 3 * 11 + 8 * 11]


@pytest.mark.parametrize("name", NOT_SHARING)
def test_families_that_cannot_run_whole_rows(name: str) -> None:
    model: LanguageModel = NOT_SHARING[name]()
    plain, shared = both(model)
    assert not model.shares_prompts
    torch.testing.assert_close(model.response_states(shared), model.response_states(plain), atol=0, rtol=0)


def test_checkpointed_layers_run_whole_rows() -> None:
    model = tiny_language_model("llama")
    plain, shared = both(model)
    checkpoint_layers(model.model, True)
    assert not model.shares_prompts
    torch.testing.assert_close(model.response_states(shared), model.response_states(plain), atol=0, rtol=0)


@pytest.mark.parametrize(("name", "works"), [("gpt2", True), ("masks of the context", False)])
def test_more_columns_than_the_context(name: str, works: bool) -> None:
    """Rows of at most 19 tokens in a context of 20, prompts of up to 11 and responses of up to 12."""
    model = (
        tiny_language_model("gpt2", context=20)
        if works
        else family(
            "GPTNeo", vocab_size=28, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=20,
            attention_types=[[["global", "local"], 1]], window_size=4,
        )
    )  # fmt: skip
    plain, shared = both(model)
    assert model.shares_prompts
    assert model.shares(shared) == works
    torch.testing.assert_close(model.response_states(shared), model.response_states(plain), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model", [tiny_language_model("llama"), tiny_seq2seq()], ids=["causal", "encoder-decoder"])
def test_log_probs_of_long_prompts_are_those_of_one_row_at_a_time(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randint(2, 28, (n,), generator=generator).tolist() for n in (40, 33))
    prompts = [first, second] * 8
    responses = [torch.randint(2, 28, (1 + i % 9,), generator=generator).tolist() for i in range(16)]
    assert pack_sequences(prompts, responses, 1).shared is not None
    together = response_log_probs(model, prompts, responses, Sampling(0.7), LIMITS)
    alone = [
        response_log_probs(model, [p], [r], Sampling(0.7), LIMITS)[0] for p, r in zip(prompts, responses, strict=True)
    ]
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", [PPO, GRPO, TRPO])
def test_an_agent_learns_the_same(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"group_size": 4} if kind is GRPO else {}
    task = replace(letter_task(limit=8), prompts=[Prompt("abcdefgh"), Prompt("hgfedcba")])
    found = []
    for spared in (0, 10**9):
        monkeypatch.setattr(sequences, "SPARED", spared)
        monkeypatch.setattr(sequences, "SHARE", 1.0)
        env = make_sb3_env(16, task=task, tokenizer=LetterTokenizer())
        agent = small_agent(kind, env, n_epochs=1, batch_size=16, **options)
        agent.learn(iterations=1)
        found.append(torch.cat([p.flatten() for p in agent.policy.parameters()]).detach())
    assert not torch.equal(*found)  # rounding shows that two ways were gone
    torch.testing.assert_close(*found, atol=5e-5, rtol=0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=40), st.integers(1, 600), st.booleans())
def test_batches_hold_every_row_once_within_their_limit(
    drawn: list[tuple[int, int]], tokens_per_batch: int, shared: bool
) -> None:
    prompts = [[place] * (3 + 20 * place) for place, _ in drawn]
    lengths = [length for _, length in drawn]
    batches = response_batches(prompts, lengths, tokens_per_batch, shared=shared)
    assert sorted(row for batch in batches for row in batch) == list(range(len(drawn)))
    for batch in batches:
        packed = pack_sequences([prompts[i] for i in batch], [[2] * lengths[i] for i in batch], 1)
        tokens = packed.ids.numel()
        if shared and packed.shared is not None:
            tokens = packed.shared.ids.numel() + packed.responses[:, :-1].numel()
        assert len(batch) == 1 or tokens <= tokens_per_batch


def test_a_batch_of_shared_prompts_holds_more_rows() -> None:
    prompts, lengths = [[2] * 500, [3] * 500] * 8, [50] * 16
    assert [len(batch) for batch in response_batches(prompts, lengths, 2048, shared=False)] == [3] * 5 + [1]
    batches = response_batches(prompts, lengths, 2048, shared=True)
    assert [len(batch) for batch in batches] == [16]  # 2 * 500 + 16 * 49 tokens
