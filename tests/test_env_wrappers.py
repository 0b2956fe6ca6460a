"""Wrappers: what each changes, by hand, and that the vector form does what the single one does."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import (
    EmbeddedTokens,
    KLReward,
    LastTokens,
    PotentialShaping,
    SmallVocabulary,
    TokenEnv,
    TokenVectorEnv,
    VectorEmbeddedTokens,
    VectorKLReward,
    VectorLastTokens,
    VectorPotentialShaping,
    VectorSmallVocabulary,
    VectorVecEnv,
    make_sb3_env,
)
from rlhf_gym.envs.vector_api import slot_info
from rlhf_gym.errors import ConfigError, TaskError

EOS, PAD, A, B = range(4)
TABLE = np.arange(56, dtype=np.float32).reshape(28, 2)


def single(**options: Any) -> TokenEnv:
    return TokenEnv(letter_task(limit=4), LetterTokenizer(), **options)


def batched(n: int = 3, mode: str = "same_step", **options: Any) -> TokenVectorEnv:
    return TokenVectorEnv(n, letter_task(limit=4), LetterTokenizer(), autoreset_mode=mode, **options)


def written_a(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(r.count("a")) + 0.5 for r in responses]


def policy(observations: dict[str, np.ndarray]) -> np.ndarray:
    """Log-probabilities that depend on the length."""
    logits = np.sin(np.arange(28)[None] * observations["length"])
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


MODEL = tiny_language_model(scale=3.0)
PAIRS: dict[str, tuple[Any, Any]] = {
    "last": (lambda e: LastTokens(e, 5), lambda e: VectorLastTokens(e, 5)),
    "one-hot": (EmbeddedTokens, VectorEmbeddedTokens),
    "last embedded": (
        lambda e: EmbeddedTokens(LastTokens(e, 3), TABLE),
        lambda e: VectorEmbeddedTokens(VectorLastTokens(e, 3), TABLE),
    ),
    "small": (lambda e: SmallVocabulary(e, ["a", "b", 9]), lambda e: VectorSmallVocabulary(e, ["a", "b", 9])),
    "shaped": (
        lambda e: PotentialShaping(e, written_a, 0.9),
        lambda e: VectorPotentialShaping(e, written_a, 0.9),
    ),
    "kl": (lambda e: KLReward(e, MODEL, 0.3), lambda e: VectorKLReward(e, MODEL, 0.3)),
    "kl of a policy": (lambda e: KLReward(e, MODEL, 0.3, policy), lambda e: VectorKLReward(e, MODEL, 0.3, policy)),
}


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
@pytest.mark.parametrize("name", PAIRS)
def test_single_and_vector_forms_agree(name: str, mode: str, limit: int | None) -> None:
    """Step for step: observations, masks and rewards, over ends by EOS, at the limit and by a time limit."""
    wrap, wrap_vector = PAIRS[name]
    vector = wrap_vector(batched(3, mode, max_episode_steps=limit))
    inner = [gym.wrappers.TimeLimit(single(), limit) if limit else single() for _ in range(3)]
    singles = [wrap(env) for env in inner]
    assert vector.single_observation_space == singles[0].observation_space
    assert vector.single_action_space == singles[0].action_space
    observations, _ = vector.reset(seed=[1, 2, 3])
    expected = [env.reset(seed=s)[0] for env, s in zip(singles, [1, 2, 3], strict=True)]
    ended = [False] * 3
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert vector.observation_space.contains(observations)
        for i in range(3):
            assert_same(pick(observations, i), expected[i])
        assert np.array_equal(
            vector.action_masks(),
            [e.get_wrapper_attr("action_masks")() for e in singles],
        )
        if mode == "disabled" and any(ended):
            observations, _ = vector.reset(options={"reset_mask": np.array(ended)})
            expected = [e.reset()[0] if x else o for e, x, o in zip(singles, ended, expected, strict=True)]
            ended = [False] * 3
            continue
        actions = rng.choice([0, 2, 2, 2, 3], 3)
        observations, rewards, terminations, truncations, infos = vector.step(actions)
        for i, env in enumerate(singles):
            if mode == "next_step" and ended[i]:
                expected[i], ended[i] = env.reset()[0], False
                assert rewards[i] == 0.0
                continue
            expected[i], reward, terminated, truncated, _ = env.step(int(actions[i]))
            assert (terminations[i], truncations[i]) == (terminated, truncated)
            assert rewards[i] == pytest.approx(reward, abs=1e-4)
            ended[i] = terminated or truncated
            if mode == "same_step" and ended[i]:
                assert_same(infos["final_obs"][i], expected[i])
                expected[i] = env.reset()[0]


def pick(batch: Any, row: int) -> Any:
    return {k: v[row] for k, v in batch.items()} if isinstance(batch, dict) else batch[row]


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[k], other[k]) for k in one)
    else:
        assert np.array_equal(one, other)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped", "ignore:.*unconventional shape")
@pytest.mark.parametrize("name", [n for n in PAIRS if "kl" not in n])
def test_wrapped_environments_pass_both_checkers(name: str) -> None:
    env = PAIRS[name][0](single())
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_the_last_tokens_by_hand() -> None:
    env = LastTokens(single(), 4)
    prompt, _ = env.reset(seed=3)
    n = int(env.unwrapped.episodes.prompt_length[0])  # type: ignore[attr-defined]
    ids = env.unwrapped.episodes.ids[0, :n].tolist()  # type: ignore[attr-defined]
    assert prompt.tolist() == ([PAD] * 4 + ids)[-4:]
    env.step(A)
    assert env.step(B)[0].tolist() == ([PAD] * 4 + ids + [A, B])[-4:]


def test_embedded_tokens_by_hand() -> None:
    env = EmbeddedTokens(LastTokens(single(), 2), TABLE)
    env.reset(seed=0)
    env.step(A)
    observation = env.step(B)[0]
    assert observation.dtype == np.float32
    assert observation.tolist() == [[4.0, 5.0], [6.0, 7.0]]
    whole = EmbeddedTokens(single())
    observation, _ = whole.reset(seed=0)
    assert observation["ids"].shape == (*whole.unwrapped.episodes.ids[0].shape, 28)  # type: ignore[attr-defined]
    assert np.array_equal(observation["ids"].argmax(-1), whole.unwrapped.episodes.ids[0])  # type: ignore[attr-defined]


def test_a_small_vocabulary_by_hand() -> None:
    env = SmallVocabulary(single(mask={"pattern": "b(a|c)*", "in_info": True}), ["b", "c", "a"])
    _, info = env.reset(seed=0)
    assert env.action_space.n == 4  # type: ignore[attr-defined]
    assert info["action_mask"].tolist() == [0, 1, 0, 0]
    assert env.action_masks().tolist() == [False, True, False, False]
    _, _, _, _, info = env.step(1)
    assert info["action_mask"].tolist() == [1, 0, 1, 1]
    env.step(3)
    assert env.step(0)[4]["response"] == "ba"


def test_a_small_vocabulary_that_the_mask_leaves_nothing_of_says_so() -> None:
    for env in (
        SmallVocabulary(single(mask={"pattern": "ab"}), ["b"]),
        VectorSmallVocabulary(batched(mask={"pattern": "ab"}), ["b"]),
    ):
        env.reset(seed=0)
        with pytest.raises(TaskError, match="allows no token"):
            env.action_masks()


def test_shaping_adds_minus_the_first_potential_whatever_is_done() -> None:
    """Ng et al. 1999: the discounted sum of what is added telescopes."""
    gamma = 0.8
    plain, shaped = single(), PotentialShaping(single(), written_a, gamma)
    for actions in ([A, A, EOS], [B, A, B, A], [EOS]):
        plain.reset(seed=0)
        shaped.reset(seed=0)
        added = [shaped.step(a)[1] - plain.step(a)[1] for a in actions]
        assert sum(gamma**t * x for t, x in enumerate(added)) == pytest.approx(-0.5)
    shaped.reset(seed=0)
    assert shaped.step(A)[1] == pytest.approx(0.8 * 1.5 - 0.5)


def test_the_kl_reward_is_the_log_ratio_of_the_chosen_token() -> None:
    env = KLReward(single(), MODEL, 0.3, policy)
    observation, _ = env.reset(seed=0)
    for action in (A, B):
        n = int(observation["length"][0])
        with torch.no_grad():
            logits = MODEL.logits(MODEL.hidden(torch.tensor(observation["ids"][None, :n]))[0, -1])
        log_ref = torch.log_softmax(logits, -1)[action].item()
        log_policy = policy({"length": observation["length"][None]})[0, action]
        observation, reward, *_ = env.step(action)
        assert reward == pytest.approx(0.3 * (log_ref - log_policy), abs=1e-5)


def test_gymnasiums_own_reward_normalisation_goes_around() -> None:
    env = gym.wrappers.vector.NormalizeReward(gym.make_vec("rlhf_gym/Copy-v0", num_envs=16), gamma=1.0)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    rewards = np.concatenate([env.step(rng.integers(2, 6, 16))[1] for _ in range(200)])
    assert 0.1 < rewards.std() < 3.0


def test_specs_of_wrapped_environments_survive_json() -> None:
    env = EmbeddedTokens(LastTokens(SmallVocabulary(gym.make("rlhf_gym/Copy-v0"), ["a", "b"]), 3))
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.observation_space == env.observation_space
    assert np.array_equal(again.reset(seed=0)[0], env.reset(seed=0)[0])
    assert again.action_space == env.action_space


def test_any_vector_environment_becomes_a_vec_env() -> None:
    given: dict[str, Any] = {
        "num_envs": 4,
        "prompt_order": "random",
    }  # each slot by itself: by seeds alone they are the same
    inner = gym.make_vec("rlhf_gym/Copy-v0", autoreset_mode="same_step", mask={"pattern": "[a-d]{2}"}, **given)
    env = VectorVecEnv(VectorEmbeddedTokens(VectorLastTokens(VectorPotentialShaping(inner, zero), 4)))
    plain = make_sb3_env(task="copy", **given)
    for e in (env, plain):
        e.seed(3)
        e.reset()
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.integers(2, 6, 4)
        _, rewards, dones, infos = env.step(actions)
        _, expected, expected_dones, expected_infos = plain.step(actions)
        assert np.array_equal(dones, expected_dones)
        assert np.allclose(rewards, expected)
        for i in np.flatnonzero(dones):
            assert infos[i]["episode"] == pytest.approx(expected_infos[i]["episode"])
            assert infos[i]["terminal_observation"].shape == (4, 7)
            assert infos[i]["TimeLimit.truncated"] is False
    assert np.stack(env.env_method("action_masks")).shape == (4, 7)
    assert not env.has_attr("nothing_of_that_name")
    assert env.get_attr("max_episode_steps") == [None] * 4
    with pytest.raises(ValueError, match="'next_step', expected 'same_step'"):
        VectorVecEnv(gym.make_vec("rlhf_gym/Copy-v0", num_envs=2))


def test_a_vec_env_hands_on_the_infos_of_running_and_of_new_episodes() -> None:
    mask = {"pattern": "a(b|c)*", "in_info": True}
    env = VectorVecEnv(batched(2, mask=mask))
    env.reset()
    for info in env.reset_infos:
        assert np.flatnonzero(info["action_mask"]).tolist() == [A]
    infos = env.step(np.array([A, A]))[3]
    assert [np.flatnonzero(info["action_mask"]).tolist() for info in infos] == [[EOS, B, 4]] * 2
    infos = env.step(np.array([EOS, B]))[3]
    assert infos[0]["response"] == "a"
    assert np.flatnonzero(infos[1]["action_mask"]).tolist() == [EOS, B, 4]
    assert np.flatnonzero(env.reset_infos[0]["action_mask"]).tolist() == [A]
    turns = VectorVecEnv(gym.make_vec("rlhf_gym/CopyTurn-v0", num_envs=2, autoreset_mode="same_step", format="tokens"))
    turns.reset()
    prompts = [info["prompt"] for info in turns.reset_infos]
    infos = turns.step(np.array([turns.action_space.sample() for _ in range(2)]))[3]
    assert [info["prompt"] for info in infos] == prompts
    assert all(info["prompt"] for info in turns.reset_infos)


def test_a_vec_env_takes_gymnasiums_own_statistics() -> None:
    inner = gym.wrappers.vector.RecordEpisodeStatistics(batched(2))
    env = VectorVecEnv(inner)
    env.reset()
    _, _, dones, infos = env.step(np.array([EOS, A]))
    assert dones.tolist() == [True, False]
    assert infos[0]["episode"] == {"r": 0.0, "l": 1, "t": 0.0}
    assert "episode" not in env.reset_infos[0]  # it was the last one's


def test_infos_that_are_the_same_for_all_slots() -> None:
    infos = {
        "seconds": 0.5,
        "name": "ab",
        "of each": np.array([1, 2]),
        "masked": np.array([3, 4]),
        "_masked": np.array([False, True]),
    }
    assert slot_info(infos, 0) == {"seconds": 0.5, "name": "ab", "of each": 1}
    assert slot_info(infos, 1) == {"seconds": 0.5, "name": "ab", "of each": 2, "masked": 4}


def zero(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * len(prompts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LastTokens(single(), 0), "at least 1 token, got 0"),
        (lambda: LastTokens(gym.make("CartPole-v1"), 2), "LastTokens goes around a token environment"),
        (lambda: LastTokens(LastTokens(single(), 2), 2), "put it inside other wrappers"),
        (lambda: EmbeddedTokens(single(), TABLE[:5]), r"28 rows of finite numbers, got shape \(5, 2\)"),
        (lambda: EmbeddedTokens(EmbeddedTokens(single())), "that are token ids"),
        (lambda: SmallVocabulary(single(), []), "needs a list of tokens"),
        (lambda: SmallVocabulary(single(), "ab"), "needs a list of tokens"),
        (lambda: SmallVocabulary(single(), ["ab"]), "'ab' is 2 tokens"),
        (lambda: SmallVocabulary(single(), ["a", A]), "2 is in the list twice"),
        (lambda: SmallVocabulary(single(), [99]), r"99 is not a token id; expected 0\.\.27"),
        (lambda: PotentialShaping(single(), zero, 0.0), r"gamma must lie in \(0, 1\], got 0.0"),
        (lambda: VectorPotentialShaping(VectorLastTokens(batched(), 2), zero), "put it inside other wrappers"),
        (lambda: KLReward(single(), MODEL, -1.0), "at least 0, got -1.0"),
        (
            lambda: KLReward(SmallVocabulary(single(), ["a"]), MODEL, 0.1),
            r"got actions of Discrete\(2\); put it inside",
        ),
        (
            lambda: VectorKLReward(VectorSmallVocabulary(batched(), ["a"]), MODEL, 0.1),
            r"VectorKLReward reads actions as token ids, got actions of Discrete\(2\)",
        ),
    ],
)
def test_bad_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_bad_actions_and_policies_are_refused() -> None:
    small = SmallVocabulary(single(), ["a"])
    small.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=r"got 2; expected whole numbers in 0\.\.1"):
        small.step(2)
    shaped = KLReward(single(), MODEL, 0.1)
    with pytest.raises(gym.error.ResetNeeded):
        shaped.step(A)
    shaped.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="action 99"):
        shaped.step(99)
    wrong = KLReward(single(), MODEL, 0.1, lambda observations: np.zeros((1, 3)))
    wrong.reset(seed=0)
    with pytest.raises(ConfigError, match=r"shape \(1, 3\), expected \(1, 28\)"):
        wrong.step(A)
    with pytest.raises(TaskError, match="reference 'tiny-gpt2' has 30 tokens"):
        KLReward(single(), tiny_language_model(vocab_size=30), 0.1)


@pytest.mark.parametrize("name", PAIRS)
def test_wrapped_environments_are_copied_in_the_middle_and_go_on_alike(name: str) -> None:
    wrap, wrap_vector = PAIRS[name]
    vector = wrap_vector(batched(3, "disabled"))
    vector.reset(seed=1)
    vector.step(np.array([2, 2, 2]))
    for twin in (copy.deepcopy(vector), pickle.loads(pickle.dumps(vector))):
        twin.step(np.array([2, 0, 2]))
    outcomes = []
    for twin in (vector, copy.deepcopy(vector), pickle.loads(pickle.dumps(vector))):
        _, rewards, terminations, *_ = twin.step(np.array([2, 0, 2]))
        options = {"reset_mask": terminations}
        again, _ = twin.reset(options=options)
        assert options["reset_mask"] is terminations  # the caller's own is left as it was
        outcomes.append((rewards, again, twin.step(np.array([0, 2, 2]))[1]))
    for rewards, again, later in outcomes[1:]:
        assert rewards == pytest.approx(outcomes[0][0])
        assert_same(again, outcomes[0][1])
        assert later == pytest.approx(outcomes[0][2])
    env = wrap(single())
    env.reset(seed=1)
    env.step(2)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert twin.step(0)[1] == pytest.approx(copy.deepcopy(env).step(0)[1])
