"""The one path to log-probabilities: against float64 worked out here, in chunks of any size, and its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_language_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_gym.lm import log_probs as module
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling

VOCAB, N = 28, 13
SAMPLINGS = [Sampling(), Sampling(0.7), Sampling(1.3, top_k=3), Sampling(0.9, top_p=0.6), Sampling(top_k=9, top_p=0.5)]
LIMITS = Limits(eos_id=0, suppress_tokens=(1, 5), min_new_tokens=3, max_new_tokens=20)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model(scale=4.0)


class Case:
    """Hidden states, tokens, positions and masks of ``N`` tokens, all of which may be drawn there."""

    def __init__(self, model: LanguageModel, seed: int, *, masked: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(N, model.hidden_size, generator=generator)
        self.positions = torch.randint(6, (N,), generator=generator)
        self.tokens = torch.randint(6, VOCAB, (N,), generator=generator)
        late = self.positions >= LIMITS.min_new_tokens
        self.tokens[late & (torch.arange(N) % 2 == 0)] = LIMITS.eos_id
        self.allowed: Tensor | None = None
        if masked:
            self.allowed = torch.rand(N, VOCAB, generator=generator) < 0.5
            self.allowed.scatter_(1, self.tokens[:, None], True)

    def worked_out(self, model: LanguageModel, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Float64 log-probabilities and entropies, one token at a time, from sorted probabilities."""
        head: Any = model.head
        chosen, entropies = [], []
        for i in range(N):
            logits = self.hidden[i].double() @ head.weight.detach().double().T / sampling.temperature
            forbidden = {*LIMITS.suppress_tokens}
            if self.positions[i] < LIMITS.min_new_tokens:
                forbidden.add(LIMITS.eos_id)
            if self.allowed is not None:
                forbidden |= {v for v in range(VOCAB) if not self.allowed[i, v]}
            order = [v for v in logits.argsort(descending=True).tolist() if v not in forbidden]
            kept = order[: sampling.top_k or VOCAB]
            probs = logits[kept].softmax(-1)
            if sampling.top_p < 1:
                mass = probs.cumsum(-1) - probs
                kept = [v for v, before in zip(kept, mass.tolist(), strict=True) if before < sampling.top_p]
            normalised = logits[kept].log_softmax(-1)
            entropies.append(-(normalised.exp() * normalised).sum())
            token = int(self.tokens[i])
            widened = kept if token in kept else [*kept, token]
            chosen.append(logits[widened].log_softmax(-1)[widened.index(token)])
        return torch.stack(chosen), torch.stack(entropies)

    def run(
        self, model: LanguageModel, sampling: Sampling, chunk: int, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        chosen, entropies = token_log_probs(
            model, self.hidden if hidden is None else hidden, self.tokens, self.positions, sampling, LIMITS,
            allowed=self.allowed, entropy=True, chunk=chunk,
        )  # fmt: skip
        assert entropies is not None
        return chosen, entropies

    def gradients(self, model: LanguageModel, sampling: Sampling, chunk: int) -> tuple[Tensor, Tensor]:
        """Of a loss of log-probabilities and entropies, with respect to hidden states and the head."""
        hidden = self.hidden.clone().requires_grad_(True)
        chosen, entropies = self.run(model, sampling, chunk, hidden)
        weights = torch.linspace(-1, 2, N)
        loss = (weights * chosen).sum() + 0.5 * (weights.flip(0) * entropies).sum()
        head: Any = model.head
        first, second = torch.autograd.grad(loss, [hidden, head.weight])
        return first, second


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 4 * VOCAB, module.CHUNK])
def test_values_are_those_worked_out_in_float64(
    model: LanguageModel, sampling: Sampling, masked: bool, chunk: int
) -> None:
    case = Case(model, 3, masked=masked)
    chosen, entropies = case.worked_out(model, sampling)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours = case.run(model, sampling, chunk)
        torch.testing.assert_close(ours[0].double(), chosen, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(ours[1].double(), entropies, atol=2e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99), sampling=st.sampled_from(SAMPLINGS), masked=st.booleans(),
    tokens=st.sampled_from([1, 2, 5, N - 1, N, N + 1]),
)  # fmt: skip
def test_chunks_change_neither_values_nor_gradients(
    model: LanguageModel, seed: int, sampling: Sampling, masked: bool, tokens: int
) -> None:
    case = Case(model, seed, masked=masked)
    whole, parts = case.run(model, sampling, module.CHUNK), case.run(model, sampling, tokens * VOCAB)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    whole, parts = case.gradients(model, sampling, module.CHUNK), case.gradients(model, sampling, tokens * VOCAB)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_no_tokens_have_no_log_probs(model: LanguageModel) -> None:
    none = torch.zeros(0, dtype=torch.long)
    chosen, entropies = token_log_probs(
        model, torch.zeros(0, model.hidden_size), none, none, Sampling(), LIMITS, entropy=True, chunk=1
    )
    assert entropies is not None
    assert chosen.shape == entropies.shape == (0,)


class Largest(TorchDispatchMode):
    """Records the most elements of any result, and how many logits were computed by the head."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.elements = self.logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, tuple | list) else [out]:
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.numel())
                if func is torch.ops.aten.mm.default and result.shape[-1] == self.vocab_size:
                    self.logits += result.numel()
        return out


def test_no_tensor_is_larger_than_a_chunk_forward_and_backward() -> None:
    vocab, chunk, n = 997, 8 * 997, 64
    model = tiny_language_model(vocab_size=vocab, hidden=4)  # weights smaller than a chunk
    hidden = torch.randn(n, 4, requires_grad=True)
    tokens, positions = torch.randint(2, vocab, (n,)), torch.zeros(n, dtype=torch.long)

    def run(chunk: int, grad: bool) -> Largest:
        with torch.set_grad_enabled(grad), Largest(vocab) as seen:
            chosen, entropies = token_log_probs(
                model, hidden, tokens, positions, Sampling(0.9, top_k=50), Limits(0, (1,)), entropy=True, chunk=chunk
            )
            assert entropies is not None
            if grad:
                (chosen.sum() + entropies.sum()).backward()  # type: ignore[no-untyped-call]
        return seen

    assert run(chunk, False).elements == chunk
    assert run(chunk, True).elements == chunk
    assert run(n * vocab, True).elements == n * vocab  # and the recorder sees one that is
    # Logits are computed twice only where there are several chunks and gradients.
    assert [run(c, g).logits for c, g in ((chunk, False), (n * vocab, True))] == [n * vocab] * 2
    assert run(chunk, True).logits == 2 * n * vocab


def test_whole_responses_go_by_the_same_path(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, responses = [[2, 3, 4], [5], [6, 7]], [[8, 9], [10, 11, 12, 0], []]
    limits, seen = Limits(0, (1,)), []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(args[2]))
        return token_log_probs(*args, **kwargs)

    monkeypatch.setattr(module, "token_log_probs", recorded)
    rows = response_log_probs(model, prompts, responses, Sampling(0.8), limits, tokens_per_batch=6)
    assert sum(seen) == 6
    for prompt, response, row in zip(prompts, responses, rows, strict=True):
        logits = model.model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].detach().double()
        logits[:, 1] = -torch.inf
        expected = (logits / 0.8).log_softmax(-1).gather(1, torch.tensor(response, dtype=torch.long)[:, None])
        torch.testing.assert_close(row.double(), expected.flatten(), atol=1e-5, rtol=1e-5)


def test_second_derivatives_work_within_a_chunk(model: LanguageModel) -> None:
    case = Case(model, 1, masked=False)
    hidden = case.hidden.clone().requires_grad_(True)
    chosen, _ = case.run(model, Sampling(), module.CHUNK, hidden)
    (first,) = torch.autograd.grad(chosen.sum(), hidden, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), hidden)
    assert bool(torch.isfinite(second).all())
    assert bool(second.any())
