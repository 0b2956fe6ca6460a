"""Evolution strategies: the estimate by hand, which copy writes which response, weights left as they were, and learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ppo_setups import NUM_ENVS, assert_same_weights, collected, learn, letters_env, small_agent, weights
from stable_baselines3.common.vec_env import VecMonitor
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import count_a, letter_task

from rlhf_gym.agents import ES
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.es import shaped_fitness
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError, RewardError


def small_es(env: Any = None, **options: Any) -> Any:
    return small_agent(ES, env, **{"batch_size": None, "group_size": 4, "sigma": 0.3, "scale": 6.0, **options})


def noise(agent: Any, direction: int) -> list[torch.Tensor]:
    """As the docstring says, drawn here by itself."""
    seed = np.random.SeedSequence((agent.seed, 3, agent.iteration, direction)).generate_state(1)
    generator = torch.Generator().manual_seed(int(seed[0]))
    return [torch.randn(p.shape, generator=generator) for p in agent.policy.parameters()]


@pytest.mark.parametrize("fitness", ["ranks", "z_scores"])
def test_the_estimate_by_hand(fitness: Any) -> None:
    agent = small_es(fitness=fitness, kl_coef=0.1)
    with torch.no_grad():
        agent.reference.model.get_output_embeddings().weight.mul_(0.5)
    before = weights(agent)
    rollout = collected(agent)
    assert_same_weights(weights(agent), before)
    kl = (rollout.log_probs - rollout.reference_log_probs) * rollout.mask
    scores = [
        np.mean([rollout.episodes[i].score - 0.1 * float(kl[i].sum()) for i in range(copy, NUM_ENVS, 4)])
        for copy in range(4)
    ]
    shaped = (
        np.argsort(np.argsort(scores)) / 3 - 0.5 if fitness == "ranks" else (scores - np.mean(scores)) / np.std(scores)
    )
    assert len(set(scores)) == 4
    found: list[torch.Tensor] = []
    with patch.object(agent, "step_optimizer", lambda: found.extend(p.grad for p in agent.policy.parameters())):
        assert agent.update(rollout, list(range(NUM_ENVS)))
    for place, grad in enumerate(found):
        expected = sum((shaped[2 * j] - shaped[2 * j + 1]) * noise(agent, j)[place] for j in range(2)) / (2 * 2 * 0.3)
        torch.testing.assert_close(grad, -torch.as_tensor(expected, dtype=torch.float32), atol=1e-5, rtol=1e-4)


def test_each_copy_writes_its_own_responses_to_the_prompts_that_all_answer() -> None:
    agent = small_es()
    rollout = collected(agent)
    assert all(len({tuple(e.prompt_ids) for e in rollout.episodes[i : i + 4]}) == 1 for i in range(0, NUM_ENVS, 4))
    for copy in range(4):
        own, sign = rollout.only(range(copy, NUM_ENVS, 4)), 0.3 if copy % 2 == 0 else -0.3
        kept = [p.detach().clone() for p in agent.policy.parameters()]
        with torch.no_grad():
            for weight, step in zip(agent.policy.parameters(), noise(agent, copy // 2), strict=True):
                weight.add_(sign * step)
            by_copy = rollout_log_probs(agent.policy, agent.policy.language_model, own, 4096)
            for weight, old in zip(agent.policy.parameters(), kept, strict=True):
                weight.copy_(old)
            unmoved = rollout_log_probs(agent.policy, agent.policy.language_model, own, 4096)
        torch.testing.assert_close(by_copy, own.log_probs, atol=1e-4, rtol=1e-4)
        assert float((unmoved - own.log_probs).abs().max()) > 0.1


def test_fitness_by_hand() -> None:
    scores = torch.tensor([3.0, 1.0, 1.0, 7.0])
    assert shaped_fitness(scores, "ranks").tolist() == pytest.approx([1 / 6, -1 / 3, -1 / 3, 1 / 2])
    assert shaped_fitness(scores, "z_scores").tolist() == pytest.approx([0, -2 / 6**0.5, -2 / 6**0.5, 4 / 6**0.5])
    for how in ("ranks", "z_scores"):  # equal scores move nothing
        assert shaped_fitness(torch.full((6,), 0.7), how).tolist() == pytest.approx([0] * 6)  # type: ignore[arg-type]


def test_it_learns_and_goes_on_exactly_from_a_checkpoint(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "kl_coef": 0.0,
        "learning_rate": 0.05,
        "sigma": 0.1,
        "group_size": 16,
        "fitness": "z_scores",
    }
    agent = small_es(scale=1.0, **given)
    rows = learn(agent, 1, iterations=40)
    scores = [row["objective/scores"] for row in rows]
    assert sum(scores[:5]) / 5 < 0.5
    assert sum(scores[-5:]) / 5 > 6  # of 8
    tokens = NUM_ENVS * sum(row["response_length"] for row in rows)
    assert tokens - NUM_ENVS < agent.num_timesteps <= tokens + 0.5  # those of all copies
    first = small_es(scale=1.0, **given)
    first.learn(iterations=2)
    first.save(tmp_path / "agent")
    again = ES.load(tmp_path / "agent", env=letters_env(), tokenizer=LetterTokenizer())
    for one in (first, again):
        one.learn(iterations=4, reset_num_timesteps=False)
    assert_same_weights(weights(again), weights(first))


def test_a_reward_that_fails_leaves_the_weights() -> None:
    calls: list[int] = []

    def failing(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise ValueError("no more")
        return count_a(prompts, responses)

    agent = small_es(letters_env(reward=failing))
    agent.learn(iterations=1)
    before = weights(agent)
    with pytest.raises(RewardError, match="no more"):
        agent.learn(iterations=2, reset_num_timesteps=False)
    assert_same_weights(weights(agent), before)
    with pytest.raises(KeyboardInterrupt), agent.perturbed(1):
        raise KeyboardInterrupt
    assert_same_weights(weights(agent), before)


def test_an_adapter_alone_is_perturbed() -> None:
    agent = small_es(lora={"rank": 2})
    learned = [p for p in agent.policy.parameters() if p.requires_grad]
    frozen = [p.clone() for p in agent.policy.parameters() if not p.requires_grad]
    assert len(list(agent.noise(0))) == len(learned) < len(frozen) + len(learned)
    before = [p.clone() for p in learned]
    agent.learn(iterations=1)
    assert any(not torch.equal(p, old) for p, old in zip(learned, before, strict=True))
    unmoved = [p for p in agent.policy.parameters() if not p.requires_grad]
    assert all(torch.equal(p, old) for p, old in zip(unmoved, frozen, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    task = {"task": letter_task(limit=4), "tokenizer": LetterTokenizer()}
    for env, given, message in (
        (None, {"group_size": 5}, r"group_size \(5\) must be even"),
        (None, {"batch_size": 4}, r"leave batch_size \(4\) out"),
        (None, {"kl_in": "loss"}, "differentiates nothing"),
        (None, {"precision": "fp16"}, "no loss that could be scaled"),
        (VecMonitor(make_sb3_env(4, **task)), {}, "must be stepped token by token"),
        (make_sb3_env(4, **task, mask={"pattern": "[a-d]{2}"}), {}, "must be stepped token by token"),
    ):
        with pytest.raises(ConfigError, match=message):
            ES("LMPolicy", env or letters_env(10), language_model=tiny_language_model(), **given)
