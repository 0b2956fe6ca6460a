"""The same agent learns the same in every kind of environment, however wrapped, whoever moved it in between."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from ppo_setups import Foreign, assert_same_weights, small_agent, small_ppo, weights
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv, VecEnvWrapper, VecMonitor
from tiny_models import LetterTokenizer
from toy_tasks import count_a, letter_task

from rlhf_gym.agents import GRPO, NLPO, PPO
from rlhf_gym.agents.common.slots import tokenizer_of
from rlhf_gym.envs import TokenEnv, make_sb3_env
from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.adaptive import RunningStandardise
from rlhf_gym.rewards.base import Reward

N, LIMIT = 8, 6
TOKENIZER = LetterTokenizer()


class Plain(VecEnvWrapper):
    """Changes nothing."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def own(reward: Reward, **options: Any) -> VecEnv:
    return make_sb3_env(N, task=letter_task(reward, limit=LIMIT), tokenizer=TOKENIZER, **options)


def singles(reward: Reward, **options: Any) -> VecEnv:
    def make() -> gym.Env[Any, Any]:
        # The limit is never met, but a wrapper that counts steps of waiting, too, would be at it soon.
        env = TokenEnv(letter_task(reward, limit=LIMIT), TOKENIZER, **options)
        return Monitor(gym.wrappers.TimeLimit(env, LIMIT + 1))

    return DummyVecEnv([make for _ in range(N)])


WRAPPED: dict[str, Any] = {
    "monitor": lambda *a, **o: VecMonitor(own(*a, **o)),
    "nested": lambda *a, **o: Plain(VecCheckNan(VecMonitor(Plain(own(*a, **o))))),
    "singles": singles,
    "wrapped singles": lambda *a, **o: VecMonitor(Plain(singles(*a, **o))),
}


def trained(kind: Any, env: VecEnv, **options: Any) -> Any:
    agent = small_agent(kind, env, scale=4.0, n_episodes=2 * N, n_epochs=1, **options)
    agent.learn(iterations=2)
    agent.learn(iterations=3, reset_num_timesteps=False)
    return agent


def episodes_of(agent: Any) -> list[Any]:
    return [(e.prompt_ids, e.response_ids, e.rewards, e.info["episode"]["l"]) for e in agent.rollout.episodes]


GROUPS = {"group_size": 4, "aggregation": "constant", "overlong_buffer": 3}


@pytest.mark.parametrize(("kind", "options", "mask"), [(PPO, {}, None), (GRPO, GROUPS, {"strict": True})])
def test_the_same_is_learned_however_the_environment_is_wrapped(kind: Any, options: dict[str, Any], mask: Any) -> None:
    """Episodes, rewards and weights, bit for bit; an adaptive reward sees what is learned from, in the same batches."""

    def run(make: Any, **more: Any) -> tuple[Any, Any]:
        adaptive = make not in (WRAPPED["singles"], WRAPPED["wrapped singles"])  # these score one at a time
        reward: Any = RunningStandardise(count_a) if adaptive else count_a
        return trained(kind, make(reward, mask=mask), **options, **more), reward

    expected, reward = run(own)
    for make, more in [(own, {"collect": "step"}), (WRAPPED["nested"], {})]:
        agent, theirs = run(make, **more)
        assert episodes_of(agent) == episodes_of(expected)
        assert theirs.state_dict() == reward.state_dict()
        assert reward.count == 3 * 2 * N
        assert_same_weights(weights(agent), weights(expected))
        assert agent.reward_share is not None
    plain = trained(kind, own(count_a, mask=mask), **options)
    agent, _ = run(WRAPPED["wrapped singles"])
    assert episodes_of(agent) == episodes_of(plain)
    assert_same_weights(weights(agent), weights(plain))


def test_single_environments_score_nothing_that_is_not_learned_from() -> None:
    """Monitors count no step of waiting; the agent that only steps does the same."""
    scored: list[str] = []

    def noted(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        scored.extend(responses)
        return count_a(prompts, responses)

    expected = trained(NLPO, own(count_a))
    agent = trained(NLPO, WRAPPED["singles"](noted))
    assert len(scored) == agent.episode_count == 3 * 2 * N
    assert_same_weights(weights(agent), weights(expected))
    monitors = agent.env.envs
    lengths = np.array([m.get_episode_lengths() for m in monitors]).T.flatten()[-2 * N :]
    assert lengths.tolist() == agent.rollout.lengths


def test_a_monitor_that_refuses_early_resets_is_asked_for_none() -> None:
    expected = trained(PPO, own(count_a))

    def strict() -> gym.Env[Any, Any]:
        return Monitor(TokenEnv(letter_task(count_a, limit=LIMIT), TOKENIZER), allow_early_resets=False)

    agent = trained(PPO, DummyVecEnv([strict for _ in range(N)]))
    assert episodes_of(agent) == episodes_of(expected)
    assert_same_weights(weights(agent), weights(expected))


def test_a_monitor_that_refuses_the_resets_of_rounds_is_refused_in_one_line() -> None:
    def strict(limit: bool, outside: bool = False) -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = TokenEnv(letter_task(count_a, limit=LIMIT), TOKENIZER)
        env = TimeLimit(env, 50) if limit and not outside else env
        env = Monitor(env, allow_early_resets=False)
        return TimeLimit(env, 50) if outside else env

    for slots in (1, N):
        for outside in (False, True):
            many = DummyVecEnv([partial(strict, True, outside)] * slots)
            with pytest.raises(
                ConfigError, match=r"a TimeLimit needs a reset .* give Monitor\(env, allow_early_resets=True\)"
            ):
                small_ppo(many, batch_size=1).learn(1)
    # Without a limit rounds follow one another, until somebody leaves an episode half done.
    env = DummyVecEnv([partial(strict, False)] * N)
    agent = small_ppo(env, batch_size=1).learn(1)
    agent.learn(1, reset_num_timesteps=False)
    env.step(np.full(N, 3))
    with pytest.raises(ConfigError, match=r"stands within an episode,.* give Monitor\(env, allow_early_resets=True\)"):
        agent.learn(1, reset_num_timesteps=False)


class StepCost(Plain):
    """Charges every slot for every step, those that wait too."""

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = self.venv.step_wait()
        return observation, rewards - 100.0, dones, infos


def test_what_a_slot_gets_while_it_waits_belongs_to_no_token() -> None:
    agent = trained(PPO, StepCost(own(RunningStandardise(count_a))))
    lengths = [len(e.response_ids) for e in agent.rollout.episodes]
    assert len(set(lengths)) > 1
    for episode, length in zip(agent.rollout.episodes, lengths, strict=True):
        assert episode.rewards[:-1] == [-100.0] * (length - 1)
        assert episode.rewards[-1] >= -200.0 - 10  # its last token's, and the step's in which it is scored


def test_limits_are_the_tasks_everywhere() -> None:
    limits = [small_agent(PPO, make(count_a)).policy.limits for make in (own, *WRAPPED.values())]
    assert limits == [limits[0]] * len(limits)
    foreign = DummyVecEnv([lambda: Foreign(TokenEnv(letter_task(limit=LIMIT), TOKENIZER)) for _ in range(2)])
    assert small_agent(PPO, foreign, batch_size=2).policy.limits.max_new_tokens == limits[0].max_new_tokens == LIMIT
    for env in (own(count_a), VecMonitor(own(count_a)), TokenEnv(letter_task(), TOKENIZER)):
        assert tokenizer_of(env) is TOKENIZER
    one = TokenEnv(letter_task(limit=3), TOKENIZER)
    different = DummyVecEnv([lambda: TokenEnv(letter_task(limit=2), TOKENIZER, max_prompt_tokens=7), lambda: one])
    with pytest.raises(ConfigError, match="slots have different rules"):
        small_agent(PPO, different, batch_size=2)


class Doubled(Plain):
    """Pays twice."""

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 2 * rewards, dones, infos


def test_a_wrapper_keeps_its_effect() -> None:
    agent = trained(PPO, Doubled(VecMonitor(own(count_a))))
    assert any(episode.score for episode in agent.rollout.episodes)
    for episode in agent.rollout.episodes:
        assert episode.score == 2 * TOKENIZER.decode(episode.response_ids).count("a")


def test_training_in_wrapped_environments_resumes_exactly(tmp_path: Any) -> None:
    for make in (WRAPPED["nested"], WRAPPED["singles"]):
        whole, half = (small_agent(GRPO, make(count_a), scale=4.0, group_size=4) for _ in range(2))
        whole.learn(iterations=4)
        half.learn(iterations=2)
        half.save(tmp_path / "half")
        resumed = GRPO.load(tmp_path / "half", env=make(count_a), device="cpu")
        resumed.learn(iterations=4, reset_num_timesteps=False)
        assert_same_weights(weights(resumed), weights(whole))


class Interrupt(BaseCallback):
    """Presses Ctrl-C in the middle of a rollout: in the reward."""

    armed = False

    def _on_step(self) -> bool:
        return True

    def reward(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        if self.armed:
            raise KeyboardInterrupt
        return count_a(prompts, responses)


class Stepping(BaseCallback):
    """Steps the environment that its agent learns in."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.training_env.step(np.full(self.training_env.num_envs, 2))


def moved_by_reset(agent: Any) -> None:
    agent.env.reset()


def moved_by_steps(agent: Any) -> None:
    agent.env.reset()
    agent.env.step(np.full(agent.env.num_envs, 2))


def moved_by_evaluation(agent: Any) -> None:
    evaluate_policy(agent, agent.env, n_eval_episodes=3, deterministic=False, warn=False)


def nothing_moved(agent: Any) -> None:
    agent.stops.armed = True
    with pytest.raises(KeyboardInterrupt):
        agent.learn(iterations=9, reset_num_timesteps=False)
    agent.stops.armed = False


def foreign(reward: Reward) -> VecEnv:
    return DummyVecEnv([lambda: Foreign(TokenEnv(letter_task(reward, limit=LIMIT), TOKENIZER)) for _ in range(N)])


@pytest.mark.parametrize("move", [moved_by_reset, moved_by_steps, moved_by_evaluation, nothing_moved])
@pytest.mark.parametrize("make", [own, WRAPPED["monitor"], WRAPPED["singles"], foreign])
def test_rewards_belong_to_their_texts_whoever_moved_the_environment(make: Any, move: Any) -> None:
    stops = Interrupt()
    groups = make is not foreign
    agent = small_agent(
        GRPO if groups else PPO,
        make(stops.reward),
        scale=4.0,
        **({"group_size": 4, "collect": "step"} if groups else {}),
    )
    agent.stops = stops
    agent.learn(iterations=1, callback=Stepping() if groups else None)
    for iterations in (2, 3):
        move(agent)
        agent.learn(iterations=iterations, reset_num_timesteps=False)
        for episode in agent.rollout.episodes:
            assert episode.score == TOKENIZER.decode(episode.response_ids).count("a")
            assert episode.info["response"] == TOKENIZER.decode(episode.response_ids)
            assert episode.info["prompt"] == TOKENIZER.decode(episode.prompt_ids)
