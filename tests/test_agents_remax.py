"""ReMax: the greedy response of each group is the baseline, however responses are collected, and is not learned from."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from ppo_setups import LIMIT, NUM_ENVS, collected, gradient, learn, letters_env, move_reference, small_agent
from talking import talker
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import PROMPTS, count_a

from rlhf_gym.agents import ReMax

GROUP = 4


def column_and_a(prompts: list[str], responses: list[str], number: list[int], **columns: Any) -> list[float]:
    """A reward that needs the prompt's own column."""
    return [10.0 * n + a for n, a in zip(number, count_a(prompts, responses), strict=True)]


def logits(agent: Any, ids: list[int]) -> torch.Tensor:
    out: torch.Tensor = agent.policy.lm(torch.tensor([ids])).logits[0].clone()
    out[:, 1] = -torch.inf  # padding is never generated
    return out


@torch.no_grad()
def greedy_score(agent: Any, prompt: list[int]) -> float:
    """By plain passes of the model, token by token."""
    response: list[int] = []
    while len(response) < LIMIT and 0 not in response:
        response.append(int(logits(agent, prompt + response)[-1].argmax()))
    text = LetterTokenizer().decode([token for token in response if token])
    return 10.0 * PROMPTS.index(LetterTokenizer().decode(prompt)) + text.count("a")


def test_it_is_the_papers_gradient_with_the_score_of_the_greedy_response() -> None:
    agent = small_agent(ReMax, letters_env(reward=column_and_a), scale=6.0, group_size=GROUP, kl_coef=0.1)
    move_reference(agent)
    rollout = collected(agent)
    rows = list(range(NUM_ENVS // GROUP * (GROUP - 1)))  # the greedy ones have left
    assert len(rollout.episodes) == len(rows)
    for episode in rollout.episodes:
        assert episode.baseline == greedy_score(agent, episode.prompt_ids)
    assert len({e.baseline for e in rollout.episodes}) > 1
    found = gradient(agent, rollout, rows)
    agent.policy.optimizer.zero_grad()
    parts = []
    for i, episode in enumerate(rollout.episodes):
        start, length = len(episode.prompt_ids), len(episode.response_ids)
        kl = (rollout.log_probs[i] - rollout.reference_log_probs[i])[:length]
        logs = logits(agent, episode.prompt_ids + episode.response_ids).log_softmax(-1)
        for t, token in enumerate(episode.response_ids):
            reward = episode.score - 0.1 * float(kl[t:].sum()) - episode.baseline
            parts.append(-reward * logs[start - 1 + t, token])
    (sum(parts) / (len(rows) * LIMIT)).backward()  # type: ignore[union-attr]
    expected = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_stepping_and_decoding_have_the_same_baselines() -> None:
    made = [
        small_agent(ReMax, letters_env(reward=column_and_a), scale=6.0, group_size=GROUP, clip_scores=15.0, **options)
        for options in ({}, {"collect": "step"}, {"old_log_probs": "recompute"})
    ]
    whole, stepped, again = (collected(agent) for agent in made)
    for rollout in (stepped, again):
        assert [e.response_ids for e in rollout.episodes] == [e.response_ids for e in whole.episodes]
        assert [e.baseline for e in rollout.episodes] == [e.baseline for e in whole.episodes]
        torch.testing.assert_close(rollout.advantages, whole.advantages, atol=1e-4, rtol=1e-4)
    assert max(e.baseline for e in whole.episodes) == 15.0  # the baseline is shaped as scores are


def test_in_conversations_the_first_of_a_group_talks_greedily() -> None:
    agent = talker(ReMax, language_model=tiny_language_model(scale=6.0), group_size=GROUP)
    whole: list[Any] = []
    with patch.object(agent, "measured", lambda rollout: whole.append(rollout) or ReMax.measured(agent, rollout)):
        rollout = collected(agent)
    for first in range(0, 16, GROUP):
        greedy, *others = whole[0].episodes[first : first + GROUP]
        assert {e.baseline for e in others} == {greedy.score}
        turn = greedy.response_ids[: greedy.turns[0].length]
        read = logits(agent, greedy.prompt_ids + turn)[len(greedy.prompt_ids) - 1 : -1]
        assert read.argmax(-1).tolist() == turn
    assert len(rollout.episodes) == 12


def test_it_learns_to_write_the_letter_that_is_paid_for() -> None:
    """Untrained: 0.3."""
    rows = learn(small_agent(ReMax, letters_env(), learning_rate=1e-2, kl_coef=0.0), 1, iterations=20)
    assert sum(row["objective/scores"] for row in rows[-3:]) / 3 > 1.5
    assert rows[-1]["groups/greedy_score"] > 1.5
