"""Gradients of the KL as a loss, against all responses of a small vocabulary: exact for tokens and for whole responses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from ppo_setups import collected, move_reference, small_ppo
from stable_baselines3.common.logger import Logger
from tiny_models import LetterTokenizer, tiny_language_model, tiny_seq2seq
from torch import Tensor
from toy_tasks import letter_task

from rlhf_gym.agents import GRPO, REINFORCE
from rlhf_gym.agents.common.forward import episode_log_probs, fill_log_probs, fill_reference
from rlhf_gym.agents.common.kl import kl_estimate, sequence_kl_loss, weighted_kl_estimate
from rlhf_gym.agents.common.minibatch import accumulate_gradient
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError
from rlhf_gym.tasks.samples import Prompt

STEPS, WORDS = 2, 3
RESPONSES = list(itertools.product(range(WORDS), repeat=STEPS))
PREFIXES = [(), *((word,) for word in range(WORDS))]  # the states of a tabular policy: [4, 3] logits


def table(seed: int) -> Tensor:
    """Logits of a tabular policy over two steps of three words."""
    return torch.randn(len(PREFIXES), WORDS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_probs(logits: Tensor, response: tuple[int, ...]) -> Tensor:
    rows = logits.log_softmax(-1)
    return torch.stack([rows[PREFIXES.index(response[:t]), word] for t, word in enumerate(response)])


THETA, OLD, REFERENCE = table(0), table(1), table(2)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (log_probs, reference's, old policy's) of one response


def mean_gradient(loss: Loss, sampler: Tensor) -> Tensor:
    """The exact mean of the loss's gradient over responses of a policy."""
    theta = THETA.clone().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for response in RESPONSES:
        ours, reference, old = (log_probs(logits, response) for logits in (theta, REFERENCE, OLD))
        total = total + log_probs(sampler, response).sum().exp() * loss(ours, reference, old).sum()
    return torch.autograd.grad(total, theta)[0]


def kl_of_responses(theta: Tensor) -> Tensor:
    """``KL(pi || pi_ref)`` of whole responses, as a sum over all of them."""
    terms = [(log_probs(theta, r).sum(), log_probs(REFERENCE, r).sum()) for r in RESPONSES]
    return torch.stack([ours.exp() * (ours - reference) for ours, reference in terms]).sum()


def kl_of_tokens(theta: Tensor, sampler: Tensor, *, backwards: bool = False) -> Tensor:
    """Each state's KL, weighed by how often a fixed policy comes by: ``KL(pi || pi_ref)``, or backwards the other direction."""
    first = sampler[0].softmax(-1)
    visits = torch.cat([torch.ones(1, dtype=torch.float64), first])
    ours, reference = theta.log_softmax(-1), REFERENCE.log_softmax(-1)
    p, q = (reference, ours) if backwards else (ours, reference)
    return (visits * (p.exp() * (p - q)).sum(-1)).sum()


def gradient_of(function: Callable[[Tensor], Tensor]) -> Tensor:
    theta = THETA.clone().requires_grad_(True)
    return torch.autograd.grad(function(theta), theta)[0]


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-12, rtol=0)


def test_the_sequence_loss_has_the_gradient_of_the_responses_kl_and_single_tokens_have_not() -> None:
    exact = gradient_of(kl_of_responses)
    assert same(mean_gradient(lambda now, ref, old: sequence_kl_loss(now, ref, [STEPS]), THETA), exact)
    k2 = mean_gradient(lambda now, ref, old: kl_estimate(now, ref, "k2"), THETA)
    k3 = mean_gradient(lambda now, ref, old: kl_estimate(now, ref, "k3"), THETA)
    assert same(k2, gradient_of(lambda theta: kl_of_tokens(theta, THETA)))
    assert same(k3, gradient_of(lambda theta: kl_of_tokens(theta, THETA, backwards=True)))
    missing = exact - k2  # the second token's KL, in the first token's gradient alone
    assert float(missing[0].abs().max()) > 0.05
    assert same(missing[1:], torch.zeros(WORDS, WORDS, dtype=torch.float64))
    assert not same(k3, k2)


def test_weights_make_the_gradients_right_for_samples_of_an_older_policy() -> None:
    exact = gradient_of(kl_of_responses)
    assert same(mean_gradient(lambda now, ref, old: sequence_kl_loss(now, ref, [STEPS], old), OLD), exact)
    assert not same(mean_gradient(lambda now, ref, old: sequence_kl_loss(now, ref, [STEPS]), OLD), exact)
    tokens = gradient_of(lambda theta: kl_of_tokens(theta, OLD))  # at the states that the old policy comes by
    for estimator in ("k2", "k3"):
        weighted = mean_gradient(lambda now, ref, old: weighted_kl_estimate(now, ref, old, estimator), OLD)  # type: ignore[arg-type]  # noqa: B023
        assert same(weighted, tokens)
        assert not same(mean_gradient(lambda now, ref, old: kl_estimate(now, ref, estimator), OLD), tokens)  # type: ignore[arg-type]  # noqa: B023


def test_the_losses_by_hand_for_responses_of_several_lengths() -> None:
    now = torch.tensor([-1.0, -2.0, -0.5, -1.5]).requires_grad_(True)  # two tokens, then one, then one
    reference, old = torch.tensor([-1.5, -1.0, -0.7, -1.5]), torch.tensor([-1.2, -1.8, -0.5, -1.0])
    loss = sequence_kl_loss(now, reference, [2, 1, 1])
    assert loss.tolist() == pytest.approx([0.5, -1.0, 0.2, 0.0])  # log-ratios
    assert torch.autograd.grad(loss.sum(), now)[0].tolist() == pytest.approx([-0.5, -1.0, 0.2, 0.0])  # those to go
    loss = sequence_kl_loss(now, reference, [2, 1, 1], old)
    first, both = 2.718281828**0.2, 1.0  # ratios of the first token, and of the first two
    assert torch.autograd.grad(loss.sum(), now)[0].tolist() == pytest.approx([0.5 * first - both, -both, 0.2, 0.0])
    loss = weighted_kl_estimate(now[:1], reference[:1], old[:1], "k2")
    assert loss.item() == pytest.approx(first * 0.125)
    assert torch.autograd.grad(loss, now)[0][0].item() == pytest.approx(first * 0.5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kl_gradient": "sequence"}, lambda now, ref, old, n: sequence_kl_loss(now, ref, n)),
        ({"kl_gradient": "sequence", "kl_importance": True}, sequence_kl_loss),
        ({"kl_importance": True}, lambda now, ref, old, n: weighted_kl_estimate(now, ref, old, "k2")),
        ({"kl_importance": True, "kl_estimator": "k3"}, lambda now, ref, old, n: weighted_kl_estimate(now, ref, old, "k3")),
    ],
)  # fmt: skip
def test_an_agent_learns_from_the_loss_that_was_asked_for(
    options: dict[str, object], expected: Callable[..., Tensor]
) -> None:
    model = small_ppo(kl_in="loss", scale=4.0, task={"limit": 4}, **options)
    move_reference(model)
    rollout, rows = collected(model), [3, 0, 7]
    now, ref, old = (
        model.flat(t, rows) for t in (rollout.log_probs - 0.1, rollout.reference_log_probs, rollout.log_probs)
    )
    lengths = [rollout.lengths[i] for i in rows]
    wanted = expected(now, ref, lengths, old) if expected is sequence_kl_loss else expected(now, ref, old, lengths)
    torch.testing.assert_close(model.kl_loss(rollout, rows, now)["kl"], wanted)


LETTERS, LONGEST = 5, 3  # EOS, padding, and three letters


def every_response(begun: tuple[int, ...] = ()) -> list[list[int]]:
    """All responses of at most three tokens."""
    if begun and (begun[-1] == 0 or len(begun) == LONGEST):
        return [list(begun)]
    return [one for token in (0, *range(2, LETTERS)) for one in every_response((*begun, token))]


def moved(agent: Any, seed: int, size: float) -> list[Tensor]:
    """Move the weights that learn, at random; returns them."""
    generator = torch.Generator().manual_seed(seed)
    learning: list[Tensor] = [p for p in agent.policy.language_model.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for weight in learning:
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return learning


@pytest.mark.parametrize("network", ["decoder", "adapter", "encoder-decoder"])
@pytest.mark.parametrize(
    ("kind", "options", "older"),
    [
        (GRPO, {"kl_in": "loss", "kl_gradient": "sequence", "group_size": 2}, False),
        (GRPO, {"kl_in": "loss", "kl_gradient": "sequence", "kl_importance": True, "group_size": 2}, True),
        (REINFORCE, {"kl_in": "reward", "baseline": "none"}, False),
    ],
)
def test_an_agents_gradient_is_that_of_the_responses_kl(kind: Any, options: Any, older: bool, network: str) -> None:
    """The mean over all responses, each as probable as under the policy that generated it, in two minibatches."""
    make: Any = tiny_seq2seq if network == "encoder-decoder" else tiny_language_model
    agent = kind(
        "LMPolicy", make_sb3_env(4, task=replace(letter_task(limit=LONGEST), prompts=[Prompt("ab")]),
        tokenizer=LetterTokenizer(LETTERS)), language_model=make(vocab_size=LETTERS, hidden=16, scale=4.0), seed=0,
        device="cpu", kl_coef=1.0, aggregation="constant", lora={"rank": 2} if network == "adapter" else None, **options,
    )  # fmt: skip
    weights = moved(agent, 1, 0.2)
    rollout = agent.rollout = Rollout.of([Episode([2, 3], r, *[[0.0] * len(r)] * 3, True) for r in every_response()])
    fill_log_probs(agent.policy, rollout, 512)
    fill_reference(agent.policy, agent.reference, rollout, 512)
    agent.set_logger(Logger(None, []))
    agent.prepare(rollout)
    if older:
        moved(agent, 2, 0.05)
    probable, own, count = rollout.log_probs.sum(1).exp(), agent.losses, len(rollout.lengths)

    def losses(rollout: Rollout, rows: list[int], now: Tensor, values: None) -> Any:
        share = torch.cat([probable[i].expand(rollout.lengths[i]) for i in rows])
        terms, metrics = own(rollout, rows, now, values)
        return {name: share * loss for name, loss in terms.items()}, metrics

    logs, _ = episode_log_probs(agent.policy, agent.policy.language_model, rollout.episodes)
    ours = torch.stack([row.sum() for row in torch.split(logs, rollout.lengths)])
    assert ours.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    exact = torch.autograd.grad((ours.exp() * (ours - rollout.reference_log_probs.sum(1))).sum(), weights)
    for rows in (list(range(0, count, 2)), list(range(1, count, 2))):
        accumulate_gradient(
            agent.policy, rollout, rows, losses, lambda loss, n=rows: len(n) * LONGEST * agent.coefficient(loss),
            aggregation="constant", tokens_per_batch=64, entropy=False, where="test",
        )  # fmt: skip
    found = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    wanted = torch.cat([gradient.flatten() for gradient in exact])
    assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_gradient": "sequence"}, "give kl_in='loss'"),
        ({"kl_importance": True}, "give kl_in='loss'"),
        ({"kl_in": "loss", "kl_gradient": "sequence", "kl_estimator": "k3"}, "leave kl_estimator out"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_ppo(**options)
