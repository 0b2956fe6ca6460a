"""Prompts in epochs: each comes once before one comes again, for all slots together, in every kind of environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ppo_setups import small_agent
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from talking import letters_talk, talker
from tiny_models import LetterTokenizer
from toy_tasks import letter_task

from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.envs import (
    ConversationEnv,
    ConversationVectorEnv,
    TokenEnv,
    TokenVectorEnv,
    TurnEnv,
    TurnVectorEnv,
    VectorVecEnv,
    make_sb3_env,
    wrap_text_env,
)
from rlhf_gym.envs.prompt_weights import LevelDraws, WeightedDraws
from rlhf_gym.envs.token_rules import WEIGHTED
from rlhf_gym.errors import ConfigError
from rlhf_gym.tasks.samples import Prompt

TEXTS = [chr(97 + i) for i in range(12)]
TASK = replace(letter_task(limit=4), prompts=[Prompt(text, {"difficulty": i // 4}) for i, text in enumerate(TEXTS)])
GIVEN: dict[str, Any] = {"task": TASK, "tokenizer": LetterTokenizer(), "prompt_order": "epochs"}


def three(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [3.0] * len(responses)


class Same(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that changes nothing."""


def bundled(count: int) -> Any:
    """The same environment as a VecEnv of single, wrapped ones."""
    return VecMonitor(DummyVecEnv([lambda: Same(TokenEnv(**GIVEN))] * count))


def wrapped_vector(count: int) -> Any:
    return VectorVecEnv(
        gym.wrappers.vector.RecordEpisodeStatistics(TokenVectorEnv(count, autoreset_mode="same_step", **GIVEN))
    )


KINDS = {"native": lambda count: make_sb3_env(count, **GIVEN), "bundled": bundled, "wrapped": wrapped_vector}


class Prompts:
    """Notes the prompts of an agent's rollouts."""

    def __init__(self, agent: Any) -> None:
        self.seen: list[list[str]] = []
        prepare = agent.prepare

        def noting(rollout: Any) -> None:
            self.seen.append([chr(97 + e.prompt_ids[0] - 2) for e in rollout.episodes])
            prepare(rollout)

        agent.prepare = noting


def prompts_of(kind: Any, env: Any, iterations: int, **options: Any) -> list[list[str]]:
    agent = small_agent(kind, env, batch_size=4, n_epochs=1, **options)
    noted = Prompts(agent)
    agent.learn(iterations=iterations)
    return noted.seen


def test_single_and_vector_environments_go_through_every_prompt() -> None:
    env = TokenEnv(**GIVEN)
    first = [env.reset(seed=3 if i == 0 else None)[0]["ids"][0] for i in range(12)]
    second = [env.reset()[0]["ids"][0] for i in range(12)]
    assert sorted(first) == sorted(second) == list(range(2, 14))
    assert first != second
    many = TokenVectorEnv(5, **GIVEN)  # 5 does not divide 12: epochs follow one another without a gap
    drawn = [many.reset(seed=3 if i == 0 else None)[0]["ids"][:, 0] for i in range(12)]
    flat = np.concatenate(drawn)
    for epoch in flat.reshape(5, 12):
        assert sorted(epoch) == list(range(2, 14))
    assert flat[:12].tolist() == first  # slots share the epochs that a single environment goes through
    listed = many.reset(seed=[3, 4, 3, 5, 6])[0]["ids"][:, 0]
    assert listed[0] == listed[2] == first[0]
    for nothing in (None, [None] * 5):
        unseeded = TokenVectorEnv(5, **GIVEN)
        assert len(set(unseeded.reset(seed=nothing)[0]["ids"][:, 0])) == 5


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_an_agent_sees_the_same_epochs_in_every_kind_of_environment(kind: Any) -> None:
    size = {} if kind is PPO else {"group_size": 2}
    seen = {name: prompts_of(kind, make(4), 6 if kind is GRPO else 3, **size) for name, make in KINDS.items()}
    assert seen["native"] == seen["bundled"] == seen["wrapped"]
    flat = [prompt for rollout in seen["native"] for prompt in rollout]
    if kind is GRPO:  # a group is two in a row
        assert flat[::2] == flat[1::2]
        flat = flat[::2]
    assert sorted(flat) == TEXTS


@pytest.mark.parametrize("name", list(KINDS))
def test_training_goes_on_in_the_middle_of_an_epoch(name: str, tmp_path: Path) -> None:
    whole = prompts_of(PPO, KINDS[name](4), 5)
    agent = small_agent(PPO, KINDS[name](4), batch_size=4, n_epochs=1)
    agent.learn(iterations=2)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent", env=KINDS[name](4), tokenizer=LetterTokenizer())
    noted = Prompts(again)
    again.learn(iterations=5, reset_num_timesteps=False)
    assert noted.seen == whole[2:]


def talks(count: int = 4, **options: Any) -> Any:
    """Conversations that begin with the task's prompts, over two turns."""
    given = {"template": "{% for m in messages %}{{ m.content }}{% endfor %}", "max_new_tokens": 2, "max_context": 30}
    env = options.pop("env", None) or Same(ConversationEnv(options.pop("task", TASK), user=["b"], max_turns=2))
    return wrap_text_env(env, count, tokenizer=LetterTokenizer(), **given, **options)


def begun(kind: Any, env: Any, iterations: int, **options: Any) -> list[list[str]]:
    agent = talker(kind, env, n_episodes=options.pop("n_episodes", 4), batch_size=4, **options)
    noted = Prompts(agent)
    agent.learn(iterations=iterations)
    return noted.seen


def test_conversations_begin_with_every_prompt_in_turn() -> None:
    single, turns = ConversationEnv(TASK, user=["b"]), TurnEnv(TASK)
    first = [single.reset(seed=3 if i == 0 else None)[1]["messages"][0]["content"] for i in range(24)]
    assert sorted(first[:12]) == sorted(first[12:]) == TEXTS
    assert first == [turns.reset(seed=3 if i == 0 else None)[0] for i in range(24)]
    many = ConversationVectorEnv(5, TASK, user=["b"], max_turns=1, autoreset_mode="same_step")
    level = TurnVectorEnv(5, TASK, autoreset_mode="same_step")
    shown = [many.reset(seed=3)[1], *(many.step(["a"] * 5)[4] for _ in range(11))]
    flat = [m[0]["content"] for info in shown for m in info["messages"]]
    assert [sorted(flat[i : i + 12]) for i in range(0, 60, 12)] == [TEXTS] * 5
    assert flat == [*level.reset(seed=3)[0], *(text for _ in range(11) for text in level.step(["a"] * 5)[0])]
    unseeded = ConversationVectorEnv(5, TASK, user=["b"])
    assert len({m[0]["content"] for m in unseeded.reset()[1]["messages"]}) == 5
    random = ConversationEnv(TASK, user=["b"], prompt_order="random")
    drawn = [random.reset(seed=3 if i == 0 else None)[1]["messages"][0]["content"] for i in range(12)]
    assert len(set(drawn)) < 12
    for env in (single, turns, many, level):
        env.reset(options={"prompt": 7})
    assert (single.prompt.text, many.envs[4].prompt.text) == (TEXTS[7],) * 2
    with pytest.raises(ConfigError, match="must be the number of a prompt, 0 to 11, got 12"):
        single.reset(options={"prompt": 12})
    with pytest.raises(ConfigError, match="must be random or epochs here, got 'age'"):
        ConversationEnv(TASK, user=["b"], prompt_order="age")  # type: ignore[arg-type]


@pytest.mark.parametrize("env", [None, TurnEnv(TASK)])
def test_an_agent_begins_conversations_with_every_prompt_in_turn(env: Any, tmp_path: Path) -> None:
    whole = begun(PPO, talks(env=env), 6)
    flat = [prompt for rollout in whole for prompt in rollout]
    assert sorted(flat[:12]) == sorted(flat[12:]) == TEXTS
    assert flat[:12] != flat[12:]
    wide = begun(PPO, talks(12, env=env), 2, n_episodes=12)
    assert [prompt for rollout in wide for prompt in rollout] == flat  # whatever the slots and iterations are
    groups = [prompt for rollout in begun(GRPO, talks(env=env), 6, group_size=2) for prompt in rollout]
    assert groups[::2] == groups[1::2] == flat[:12]
    agent = talker(PPO, talks(env=env), n_episodes=4, batch_size=4)
    agent.learn(iterations=4)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent", env=talks(env=env), tokenizer=LetterTokenizer())
    noted = Prompts(again)
    again.learn(iterations=6, reset_num_timesteps=False)
    assert noted.seen == whole[4:]
    with pytest.raises(ConfigError, match="another order"):
        PPO.load(tmp_path / "agent", env=talks(env=env, prompt_order="random"), tokenizer=LetterTokenizer())
    drawn = [p for rollout in begun(PPO, talks(env=env, prompt_order="random"), 6) for p in rollout]
    assert len(set(drawn[:12])) < 12


def test_curricula_of_conversations(tmp_path: Path) -> None:
    def env(order: str, **options: Any) -> Any:
        return talks(8, task=replace(TASK, reward=only_b), prompt_order=order, **options)

    level = begun(PPO, env("difficulty", difficulty_every=2), 6, n_episodes=8)
    for number, seen in enumerate(level):
        assert set(seen) <= set(TEXTS[: 4 * (1 + min(number // 2, 2))])
    assert {prompt for seen in level[4:] for prompt in seen} & set(TEXTS[8:])
    given: dict[str, Any] = {"n_episodes": 8, "group_size": 2, "learning_rate": 1e-6, "kl_coef": 0.0}
    whole = begun(GRPO, env("advantage"), 16, **given)
    late = [prompt for rollout in whole[8:] for prompt in rollout]
    assert late.count("b") > 2 * len(late) / 12  # elsewhere all responses of a group are alike
    agent = talker(GRPO, env("advantage"), batch_size=4, **given)
    agent.learn(iterations=5)
    agent.save(tmp_path / "agent")
    again = GRPO.load(tmp_path / "agent", env=env("advantage"), tokenizer=LetterTokenizer())
    noted = Prompts(again)
    again.learn(iterations=16, reset_num_timesteps=False)
    assert noted.seen == whole[5:]
    with pytest.raises(ConfigError, match=r"Letters draws its episodes itself and has no prompts to order .*'random'"):
        letters_talk(2, prompt_order="random")
    with pytest.raises(ConfigError, match="goes with prompt_order='difficulty', not 'epochs'"):
        talks(difficulty_every=2)


def test_weights_by_hand() -> None:
    draws = {order: WeightedDraws(order, 1, 4) for order in WEIGHTED if order != "difficulty"}
    for one in draws.values():
        assert one.probabilities.tolist() == [0.25] * 4
        one.note([0, 0, 1, 2], [1.0, 0.0, 1.0, 0.0], [0.5, 1.5, 3.0, 0.0])
    age = np.array([0.0, 0.0, 0.0, 1.0])  # 3 alone was not answered
    np.testing.assert_allclose(draws["age"].probabilities, age)
    np.testing.assert_allclose(draws["success_rate"].probabilities, 0.9 * np.array([0.5, 0, 0, 0.5]) + 0.1 * age)
    np.testing.assert_allclose(draws["advantage"].probabilities, 0.9 * np.array([1, 3, 0, 3]) / 7 + 0.1 * age)
    again = draws["success_rate"]
    again.note([1, 3], [0.0, 1.0], [0.0, 0.0])  # 1: half of the 1 before
    weights = np.array([0.25, 0.25, 0.0, 0.0])
    np.testing.assert_allclose(again.probabilities, 0.9 * weights / 0.5 + 0.1 * np.array([0.5, 0, 0.5, 0]))
    again.seed(0, np.ones(1, dtype=np.bool_))
    drawn = np.bincount([int(again.take(np.zeros(1, dtype=np.intp))[0]) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, again.probabilities, atol=0.03)


def only_b(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Half of the responses to "b" succeed, none of those to others."""
    return [float(p == "b" and sum(map(ord, r)) % 2) for p, r in zip(prompts, responses, strict=True)]


@pytest.mark.parametrize("order", WEIGHTED)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_curriculum_is_seeded_shared_by_groups_and_goes_on_exactly(order: Any, wrapped: bool, tmp_path: Path) -> None:
    given = {**GIVEN, "task": replace(TASK, reward=only_b), "prompt_order": order}

    def env() -> Any:
        if not wrapped:
            return make_sb3_env(16, **given)
        vector = TokenVectorEnv(16, autoreset_mode="same_step", **given)
        return VectorVecEnv(gym.wrappers.vector.RecordEpisodeStatistics(vector))

    options = {"group_size": 4, "learning_rate": 1e-6, "kl_coef": 0.0}
    whole = prompts_of(GRPO, env(), 12, **options)
    if not wrapped:  # stepping draws prompts earlier, by the same weights
        assert prompts_of(GRPO, env(), 12, **options, collect="step") == whole
        assert prompts_of(GRPO, VecMonitor(env()), 12, **options) == whole
    assert all(rollout[::4] == rollout[3::4] for rollout in whole)
    agent = small_agent(GRPO, env(), batch_size=4, n_epochs=1, **options)
    agent.learn(iterations=4)
    agent.save(tmp_path / "agent")
    again = GRPO.load(tmp_path / "agent", env=env(), tokenizer=LetterTokenizer())
    noted = Prompts(again)
    again.learn(iterations=12, reset_num_timesteps=False)
    assert noted.seen == whole[4:]
    late = [prompt for rollout in whole[6:] for prompt in rollout]
    if order == "difficulty":  # "b" is solved in half of the cases only
        assert set(late) == set("abcd")
        return
    if order == "age":  # nearly epochs
        assert len(set(late)) >= 10
    else:
        assert late.count("b") > 3 * len(late) / 12


def test_the_difficulty_rises_with_scores_or_iterations(tmp_path: Path) -> None:
    draws = LevelDraws(1, [3, 1, 2.5, 1], None)
    assert draws.probabilities.tolist() == [0, 0.5, 0, 0.5]
    draws.note([1, 3], [1.0, 0.5], [0.0, 0.0])  # 0.75
    assert draws.level == 0
    draws.note([1, 3], [1.0, 1.0], [0.0, 0.0])  # 0.875
    assert (draws.level, draws.probabilities.tolist()) == (1, pytest.approx([0, 1 / 3, 1 / 3, 1 / 3]))
    for _ in range(3):  # easier ones do not count
        draws.note([1, 3], [1.0, 1.0], [0.0, 0.0])
    other = LevelDraws(1, [3, 1, 2.5, 1], None)
    other.remember(json.loads(json.dumps(draws.memory())))
    for one in (draws, other):
        one.note([2], [0.9], [0.0])
        assert one.probabilities.tolist() == [0.25] * 4
        one.note([0], [1.0], [0.0])  # nothing is harder
    assert draws.memory() == other.memory()

    # Linearly, whatever the scores are; a checkpoint goes on exactly.
    def env() -> Any:
        task = replace(TASK, reward=three)
        return make_sb3_env(8, **{**GIVEN, "task": task, "prompt_order": "difficulty", "difficulty_every": 2})

    whole = prompts_of(PPO, env(), 7)
    for number, seen in enumerate(whole):
        assert set(seen) <= set(TEXTS[: 4 * (1 + min(number // 2, 2))])
    assert {prompt for seen in whole[4:] for prompt in seen} & set(TEXTS[8:])
    agent = small_agent(PPO, env(), batch_size=4, n_epochs=1)
    agent.learn(iterations=3)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent", env=env(), tokenizer=LetterTokenizer())
    noted = Prompts(again)
    again.learn(iterations=7, reset_num_timesteps=False)
    assert noted.seen == whole[3:]
    # The symbol tasks' prompts of several difficulties.
    copies = make_sb3_env(4, task="copy", task_options={"easiest": 1, "difficulty": 3}, prompt_order="difficulty")
    copies.reset()
    assert {len(one.task.prompts[i].text) for one in [copies.env.episodes] for i in one.prompt_index} == {3}


def test_what_does_not_fit_is_refused() -> None:
    plain = replace(TASK, prompts=[Prompt("a"), *TASK.prompts[1:]])
    with pytest.raises(ConfigError, match=r"column difficulty of every prompt, and 1 of 12 have none"):
        make_sb3_env(2, **{**GIVEN, "task": plain, "prompt_order": "difficulty"})
    with pytest.raises(ConfigError, match="goes with prompt_order='difficulty', not 'epochs'"):
        make_sb3_env(2, **GIVEN, difficulty_every=3)
    hard = make_sb3_env(4, **{**GIVEN, "task": replace(TASK, reward=three), "prompt_order": "difficulty"})
    with pytest.raises(ConfigError, match="or difficulty_every=N"):
        small_agent(PPO, hard, batch_size=4).learn(1)
    levels, weights = (make_sb3_env(2, **{**GIVEN, "prompt_order": order}) for order in ("difficulty", "age"))
    for one, another in ((levels, weights), (weights, levels)):
        one.reset()
        with pytest.raises(ConfigError, match="another order"):
            another.restore(one.state())
    with pytest.raises(ConfigError, match=r"prompt_order must be one of random, epochs, success_rate, .* got 'sorted'"):
        TokenEnv(**{**GIVEN, "prompt_order": "sorted"})
    with pytest.raises(ConfigError, match="weighs the prompts of all slots together"):
        TokenEnv(**{**GIVEN, "prompt_order": "age"})
    far = make_sb3_env(4, **{**GIVEN, "task": replace(TASK, reward=three), "prompt_order": "success_rate"})
    with pytest.raises(ConfigError, match=r"takes scores from 0 .* to 1 .*, got 3 to 3"):
        small_agent(PPO, far, batch_size=4).learn(1)
    epochs, random, weighed = (
        make_sb3_env(2, **{**GIVEN, "prompt_order": order}) for order in ("epochs", "random", "advantage")
    )
    for one, other in ((epochs, random), (random, epochs), (weighed, random), (random, weighed)):
        one.reset()
        with pytest.raises(ConfigError, match="another order"):
            other.restore(one.state())
