"""The vector environment of the turn level: the single environment's trajectories in every autoreset mode, and its contract."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import create_empty_array
from tiny_models import LetterTokenizer
from toy_tasks import count_a, letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import TurnEnv, TurnVectorEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

EOS, PAD, A, B = 0, 1, 2, 3
N = 3
Format = Literal["text", "tokens"]


def batched(kind: Format = "text", mode: str = "next_step", **options: Any) -> TurnVectorEnv:
    return TurnVectorEnv(N, letter_task(**options), LetterTokenizer(), format=kind, autoreset_mode=mode)


def same(a: Any, b: Any) -> bool:
    """Deep equality of observations and infos: of arrays by value, where the mask says that they mean anything."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_trajectories_are_those_of_single_environments(kind: Format, mode: str) -> None:
    options: dict[str, Any] = {"stop": ("ab",)}
    many = batched(kind, mode, **options)
    one = SyncVectorEnv(
        [lambda: TurnEnv(letter_task(**options), LetterTokenizer(), format=kind)] * N,
        autoreset_mode=AutoresetMode[mode.upper()],
    )
    rng = np.random.default_rng(0)
    seeds = [3, 1, 4]
    assert all(same(x, y) for x, y in zip(many.reset(seed=seeds), one.reset(seed=seeds), strict=True))
    for step in range(12):
        ids = rng.integers(28, size=(N, 6))
        ids[:, 3] = np.where(rng.random(N) < 0.5, EOS, ids[:, 3])
        texts = tuple("".join(chr(95 + max(2, i)) for i in row) for row in ids.tolist())
        action = ids if kind == "tokens" else texts
        got, wanted = many.step(action), one.step(action)
        assert all(same(x, y) for x, y in zip(got, wanted, strict=True)), (step, got, wanted)
        if mode == "disabled":
            mask = np.array([True, step % 2 == 0, True])
            if not mask.all():
                many.reset(options={"reset_mask": ~mask})
                one.reset(options={"reset_mask": ~mask})
            assert same(many.reset(options={"reset_mask": mask})[0], one.reset(options={"reset_mask": mask.copy()})[0])


def test_all_responses_share_one_call_of_the_reward() -> None:
    calls: list[int] = []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(len(responses))
        return count_a(prompts, responses)

    for kind in ("text", "tokens"):
        envs = TurnVectorEnv(N, letter_task(), LetterTokenizer(), format=kind, reward=reward)  # type: ignore[arg-type]
        envs.reset(seed=0)
        actions = ("a", "aa", "") if kind == "text" else [[A], [A, A], [EOS]]
        assert envs.step(actions)[1].tolist() == [1.0, 2.0, 0.0]
        envs.step(actions)  # the next prompts: nothing is scored
    assert calls == [N, N]


def test_made_by_name_in_every_mode() -> None:
    for mode in ("next_step", "same_step", "disabled"):
        envs = gym.make_vec("rlhf_gym/SortTurn-v0", num_envs=4, autoreset_mode=mode)
        assert isinstance(envs.unwrapped, TurnVectorEnv)
        assert envs.metadata["autoreset_mode"] == AutoresetMode[mode.upper()]
        observation, infos = envs.reset(seed=1)
        assert observation in envs.observation_space
        assert infos["prompt"].tolist() == list(observation)
        task = envs.unwrapped.task
        answers = {p.text: p.columns["answer"] for p in task.prompts}
        assert envs.step(tuple(answers[p] for p in observation))[1].tolist() == [1.0] * 4
    assert create_empty_array(envs.single_observation_space, n=2) is not None


def test_a_time_limit_of_one_truncates_as_well() -> None:
    envs = gym.make_vec("rlhf_gym/SortTurn-v0", num_envs=2, max_episode_steps=1)
    envs.reset(seed=0)
    _, _, terminated, truncated, _ = envs.step(("1", "2"))
    assert terminated.all()
    assert truncated.all()


def test_steps_out_of_turn_and_wrong_actions_are_refused() -> None:
    envs = batched(mode="disabled")
    with pytest.raises(gym.error.ResetNeeded, match="slot 0, where no episode was started"):
        envs.step(("a",) * N)
    envs.reset(seed=0)
    for wrong, message in (
        (("a",), "a list of 3 responses, got 1 of them"),
        ("abc", "got str"),
        ((1, 2, 3), "got int"),
    ):
        with pytest.raises(gym.error.InvalidAction, match=message):
            envs.step(wrong)
    envs.step(("a",) * N)
    envs.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(gym.error.ResetNeeded, match="slot 1, where the episode has ended"):
        envs.step(("a",) * N)
    tokens = batched("tokens")
    tokens.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="expected 3 rows"):
        tokens.step(np.full((2, 6), A))
    with pytest.raises(gym.error.InvalidAction, match="expected 3 rows of token ids, got None"):
        tokens.step(None)
    with pytest.raises(gym.error.InvalidAction, match="99 is not a token id"):
        tokens.step(np.full((N, 6), 99))
    assert tokens.step(np.full((N, 6), A))[1].tolist() == [6.0] * N


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs must be a whole number"):
        TurnVectorEnv(0, "copy")
    with pytest.raises(ConfigError, match="format must be"):
        batched("words")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="belongs to the format 'text'"):
        TurnVectorEnv(1, "copy", format="tokens", max_characters=3)
    with pytest.raises(ValueError, match="got 2 seeds for 3 environments"):
        batched().reset(seed=[1, 2])
    with pytest.raises(ValueError, match="must be a bool array of shape"):
        batched().reset(options={"reset_mask": [True] * N})


def test_one_seed_gives_every_slot_its_own_stream_and_none_goes_on() -> None:
    envs = TurnVectorEnv(8, "sentiment", autoreset_mode="disabled")
    first, _ = envs.reset(seed=5)
    second, _ = envs.reset()
    assert len(set(first)) > 4
    assert first != second
    assert envs.reset(seed=5)[0] == first
    assert envs.reset()[0] == second


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_a_reward_finds_the_same_columns_whichever_prompts_share_its_batch(kind: Format) -> None:
    """One of two prompts has no label: alone or beside the other, it has none (and not: no such column)."""
    seen: list[list[Any]] = []

    def reward(prompts: list[str], responses: list[str], label: list[Any]) -> list[float]:
        seen.append(label)
        return [0.0] * len(prompts)

    task = Task("uneven", [Prompt("a", {"label": "x"}), Prompt("b")], reward=reward, max_new_tokens=2)
    many = TurnVectorEnv(2, task, LetterTokenizer(), format=kind, prompt_order="random")  # the same prompt twice, too
    one = TurnEnv(task, LetterTokenizer(), format=kind)
    action: Any = "c" if kind == "text" else np.array([A, EOS])
    for _ in range(10):
        one.reset(seed=len(seen))
        one.step(action)
        many.reset(seed=len(seen))
        many.step((action, action))
    assert ["x"] in seen
    assert [None] in seen
    assert [None, None] in seen
