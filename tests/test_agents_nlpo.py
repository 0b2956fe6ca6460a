"""NLPO: only the nucleus of the lagging policy is generated, and learned from, and it lags as long as it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import (
    LIMIT,
    NUM_ENVS,
    assert_same_weights,
    collected,
    gradient,
    learn,
    letters_env,
    small_agent,
    small_ppo,
    weights,
)
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import LetterTokenizer
from toy_tasks import letter_task

from rlhf_gym.agents import NLPO, TRPO
from rlhf_gym.agents.common.metrics import rollout_metrics
from rlhf_gym.agents.common.rollout import Rollout, unpack_masks
from rlhf_gym.agents.common.traces import traces
from rlhf_gym.envs import TokenEnv, make_sb3_env
from rlhf_gym.errors import ConfigError


def nlpo(env: Any = None, **options: Any) -> Any:
    return small_agent(NLPO, env, **options)


def move_lagging(agent: Any) -> None:
    """Make the lagging policy differ from the policy, as it does after some learning."""
    with torch.no_grad():
        for parameter in agent.lagging.model.parameters():
            parameter.mul_(1.3)


def nucleus_by_hand(agent: Any, rollout: Rollout, i: int, t: int, minimum: int) -> set[int]:
    """The fewest tokens whose mass reaches p, one by one, from a plain pass of the lagging model."""
    episode = rollout.episodes[i]
    with torch.no_grad():
        logits = agent.lagging.model(torch.tensor([episode.prompt_ids + episode.response_ids[:t]])).logits[0, -1]
    logits = logits / agent.sampling.temperature
    logits[1] = -torch.inf
    if t < minimum:
        logits[0] = -torch.inf
    probabilities, kept, mass = logits.softmax(-1).tolist(), set(), 0.0
    for token in sorted(range(28), key=lambda v: -probabilities[v]):
        if mass >= agent.mask_top_p:
            break
        kept.add(token)
        mass += probabilities[token]
    return kept


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 1.4])
def test_only_the_nucleus_of_the_lagging_policy_is_generated(kind: str, temperature: float) -> None:
    agent = nlpo(kind=kind, scale=4.0, mask_top_p=0.6, temperature=temperature, task={"minimum": 2}, n_episodes=32)
    move_lagging(agent)
    rollout = collected(agent)
    sizes = []
    for i, episode in enumerate(rollout.episodes):
        allowed = unpack_masks([episode], 28)
        assert allowed is not None
        assert len(allowed) == len(episode.response_ids)
        for t, token in enumerate(episode.response_ids):
            kept = nucleus_by_hand(agent, rollout, i, t, 2)
            assert set(allowed[t].nonzero().flatten().tolist()) == kept
            assert token in kept
            sizes.append(len(kept))
    assert 1 <= min(sizes) < max(sizes) < 26


def test_both_renormalise_over_the_same_set() -> None:
    """Log-probabilities of sampling, learning and the reference, against plain passes of the models."""
    agent = nlpo(scale=4.0, mask_top_p=0.6)
    move_lagging(agent)
    with torch.no_grad():
        agent.reference.model.get_output_embeddings().weight.mul_(0.5)
    rollout = collected(agent)
    for i, episode in enumerate(rollout.episodes):
        allowed = unpack_masks([episode], 28)
        assert allowed is not None
        start = len(episode.prompt_ids)
        for model, table in ((agent.policy.lm, "log_probs"), (agent.reference.model, "reference_log_probs")):
            with torch.no_grad():
                logits = model(torch.tensor([episode.prompt_ids + episode.response_ids])).logits[0, start - 1 : -1]
            logs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
            expected = logs.gather(-1, torch.tensor(episode.response_ids)[:, None]).squeeze(-1)
            found = getattr(rollout, table)[i, : len(episode.response_ids)]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradient(agent, rollout, list(range(8)))
    assert agent.minibatch_metrics["val/ratio"][0] == pytest.approx(1, abs=1e-5)
    assert agent.minibatch_metrics["train/approx_kl"][0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("restriction", ["nucleus", "top-k", "top-p", "environment's masks"])
def test_the_kl_is_that_from_the_references_own_distribution(restriction: str) -> None:
    """By plain passes of the models; what is measured within the restriction has a name of its own."""
    options: dict[str, Any] = {"top-k": {"top_k": 4}, "top-p": {"top_p": 0.5}}.get(restriction, {})
    if restriction == "nucleus":
        agent = nlpo(scale=4.0, mask_top_p=0.4, temperature=0.8)
        move_lagging(agent)
    else:
        masked = restriction == "environment's masks"
        env = make_sb3_env(
            16,
            task=letter_task(limit=LIMIT),
            tokenizer=LetterTokenizer(),
            mask={"pattern": "[aei]*"} if masked else None,
        )
        agent = small_ppo(env, scale=4.0, temperature=0.8, **options)
    with torch.no_grad():
        agent.reference.model.get_output_embeddings().weight.mul_(0.5)
    rollout = collected(agent)
    expected = []
    for episode in rollout.episodes:
        with torch.no_grad():
            logits = agent.reference.model(torch.tensor([episode.prompt_ids + episode.response_ids])).logits[0] / 0.8
        logits[:, 1] = -torch.inf
        logs = logits[len(episode.prompt_ids) - 1 : -1].log_softmax(-1)
        own = logs.gather(-1, torch.tensor(episode.response_ids)[:, None]).sum()
        expected.append(float(sum(episode.log_probs) - own))
    metrics = rollout_metrics(rollout, [0])
    assert metrics["objective/kl"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert metrics["objective/kl"] > metrics["objective/kl_in_mask"] + 1
    within = ((rollout.log_probs - rollout.reference_log_probs) * rollout.mask).sum(1).mean()
    assert metrics["objective/kl_in_mask"] == pytest.approx(float(within), abs=1e-5)
    agent.kl_guard.nats = metrics["objective/kl"] - 0.5
    assert not agent._keep_within_kl_limit(rollout)
    assert traces(agent, 1)[0].kl == pytest.approx(expected[0], abs=1e-3)


def test_tokens_outside_the_set_have_no_gradient() -> None:
    agent = nlpo(scale=4.0, mask_top_p=0.5, vf_coef=0.0)
    rollout = collected(agent)
    logits = agent.policy.language_model.logits
    seen: list[torch.Tensor] = []

    def spy(hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = logits(hidden)
        out.retain_grad()
        seen.append(out)
        return out

    agent.policy.language_model.logits = spy
    agent.tokens_per_batch = 10_000
    gradient(agent, rollout, list(range(8)))
    order = sorted(range(8), key=lambda i: -rollout.totals[i])  # of batches_by_length
    allowed = unpack_masks([rollout.episodes[i] for i in order], 28)
    assert seen[0].grad is not None
    assert allowed is not None
    assert not seen[0].grad[~allowed].any()
    assert seen[0].grad[allowed].any()


def test_a_whole_nucleus_is_ppo() -> None:
    one, other = nlpo(mask_top_p=1.0), small_ppo(collect="step")
    learn(one, 600)
    learn(other, 600)
    ours = {name: value for name, value in weights(one).items() if not name.startswith("mask_network")}
    assert_same_weights(ours, weights(other))


def test_it_lags_for_so_many_iterations() -> None:
    agent = nlpo(mask_refresh=3, n_epochs=1, task={"minimum": LIMIT - 1})

    def lagging() -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in agent.lagging.model.state_dict().items()}

    first = lagging()
    for iteration in range(1, 7):
        before = lagging()
        learn(agent, 1)
        now = {name: value.clone() for name, value in agent.policy.lm.state_dict().items()}
        assert_same_weights(lagging(), now if iteration % 3 == 0 else before)
    assert any(not torch.equal(first[name], value) for name, value in lagging().items())
    assert not any(p.requires_grad for p in agent.lagging.model.parameters())


class OddLetters(TokenEnv):
    """Allows every other letter only, and EOS."""

    def action_masks(self) -> np.ndarray:
        masks = np.zeros(28, dtype=np.bool_)
        masks[3::2] = masks[0] = True
        return masks


def test_the_nucleus_is_of_what_the_environment_allows() -> None:
    env = DummyVecEnv([lambda: OddLetters(task=letter_task(limit=5), tokenizer=LetterTokenizer())] * 4)
    agent = nlpo(env, scale=4.0, mask_top_p=0.3, batch_size=4)
    rollout = collected(agent)
    for episode in rollout.episodes:
        allowed = unpack_masks([episode], 28)
        assert allowed is not None
        assert allowed.any(1).all()
        assert not allowed[:, 2::2].any()
        assert all(token == 0 or token % 2 for token in episode.response_ids)


def test_prediction_keeps_to_the_set() -> None:
    agent = nlpo(scale=4.0, mask_top_p=0.3)
    move_lagging(agent)
    env = letters_env(4)
    env.seed(0)
    observation = env.reset()
    torch.manual_seed(0)
    outside = 0
    for _ in range(40):
        rows = [row[: int(n)] for row, n in zip(observation["ids"], observation["length"][:, 0], strict=True)]
        actions, _ = agent.predict(observation)
        greedy, _ = agent.predict({key: value[0] for key, value in observation.items()}, deterministic=True)
        for slot, row in enumerate(rows):
            with torch.no_grad():
                logits = agent.lagging.model(torch.tensor(row)[None]).logits[0, -1]
                own = agent.policy.lm(torch.tensor(row)[None]).logits[0, -1]
            logits[1] = -torch.inf
            probabilities, order = logits.softmax(-1).sort(descending=True)
            kept = set(order[: int((probabilities.cumsum(0) - probabilities < 0.3).sum())].tolist())
            assert int(actions[slot]) in kept
            if slot == 0:
                assert int(greedy) == max(kept, key=lambda token: float(own[token]))
            outside += int(own.argmax()) not in kept
        observation, _, _, _ = env.step(actions)
    assert outside > 0  # the two differ, so this test can fail


def test_training_resumes_exactly(tmp_path: Path) -> None:
    task, tokens = {"minimum": LIMIT - 1}, NUM_ENVS * LIMIT
    options: dict[str, Any] = {"mask_refresh": 2, "mask_top_p": 0.7, "task": task, "scale": 3.0}
    whole, half = nlpo(**options), nlpo(**options)
    whole.learn(6 * tokens)
    half.learn(3 * tokens)  # the lagging policy is one iteration old
    half.save(tmp_path / "half")
    resumed = NLPO.load(tmp_path / "half", env=letters_env(**task), device="cpu")
    assert_same_weights(weights(resumed), weights(half))
    resumed.learn(3 * tokens, reset_num_timesteps=False)
    assert resumed.iteration == whole.iteration == 6
    assert_same_weights(weights(resumed), weights(whole))
    assert (resumed.mask_top_p, resumed.mask_refresh) == (0.7, 2)


@pytest.mark.parametrize("kind", [NLPO, TRPO])
def test_it_is_an_algorithm_of_stable_baselines(tmp_path: Path, kind: Any) -> None:
    agent = small_agent(kind, verbose=1)
    evaluation = EvalCallback(
        letters_env(2), n_eval_episodes=4, eval_freq=1, log_path=str(tmp_path), best_model_save_path=str(tmp_path),
        warn=False, verbose=0,
    )  # fmt: skip
    checkpoints = CheckpointCallback(save_freq=1, save_path=str(tmp_path / "all"))
    rows = learn(agent, 16, callback=[evaluation, checkpoints], progress_bar=True)
    assert agent.iteration == 1
    assert {"objective/scores", "objective/kl", "time/tokens_per_second"} <= set(rows[-1])
    assert {"eval/mean_reward"} <= set(rows[0])
    assert (tmp_path / "evaluations.npz").exists()
    assert len(list((tmp_path / "all").iterdir())) == evaluation.n_calls > 0
    loaded = kind.load(tmp_path / "best_model", device="cpu", tokenizer=LetterTokenizer())
    observation = {key: value[0] for key, value in letters_env(2).reset().items()}
    agent.save(tmp_path / "now")
    now = kind.load(tmp_path / "now", device="cpu", tokenizer=LetterTokenizer())
    assert now.predict(observation, deterministic=True)[0] == agent.predict(observation, deterministic=True)[0]
    assert loaded.predict(observation)[0].shape == ()


def test_it_learns_and_moves_to_another_environment() -> None:
    """The best possible is 8, untrained 0.3; over four seeds it reached 8.0, with one token of 24 left to choose from."""
    agent = nlpo(learning_rate=3e-3, kl_coef=0.0)
    rows = learn(agent, 6000)
    assert sum(row["objective/scores"] for row in rows[-3:]) / 3 > 6.0
    assert rows[-1]["masks/allowed_tokens"] < rows[0]["masks/allowed_tokens"]
    agent.set_env(letters_env(4))
    assert evaluate_policy(agent, agent.env, n_eval_episodes=8, warn=False)[0] > 6.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_top_p": 0}, r"mask_top_p must be a number in \(0, 1\]"),
        ({"mask_top_p": 1.1}, "mask_top_p must be"),
        ({"mask_refresh": 0}, "mask_refresh must be a whole number of at least 1"),
        ({"collect": "auto"}, "NLPO has no collect: its responses are not generated whole"),
        ({"clip_range": -1}, "clip_range must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        nlpo(**options)
