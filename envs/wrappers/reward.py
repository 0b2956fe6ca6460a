"""Rewards for every token: shaping by a potential, and the KL from a reference; for one environment and for many.

Both go directly around a token environment, inside wrappers that change what is observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes
from rlhf_gym.envs.token_env import as_token_ids
from rlhf_gym.envs.token_rows import Slots
from rlhf_gym.envs.wrappers.base import VectorTokenWrapper, episodes_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.base import as_term, score

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel

Floats = NDArray[np.float64]
LogProbs = Callable[[Any], Any]


class Potential:
    """Scores unfinished responses, as a reward scores finished ones.

    Args:
        function: any reward, ``function(prompts, responses, **columns) -> floats``.
        episodes: of the environment.
    """

    def __init__(self, function: Callable[..., Any], episodes: Episodes) -> None:
        self.function = as_term(function)
        self.episodes = episodes

    def now(self, slots: Slots) -> Floats:
        """float64 ``[n]``: of the responses so far in these slots."""
        responses = [self.episodes.response(int(slot)) for slot in slots]
        return self._of(responses, self.episodes.prompt_index[slots])

    def last(self, observations: list[dict[str, Any]], prompt_index: NDArray[np.int64]) -> Floats:
        """float64 ``[n]``: of responses that only their last observations still show.

        Args:
            observations: the last observation of each episode.
            prompt_index: int64 ``[n]``, the prompts' numbers.
        """
        decode = self.episodes.tokenizer.decode
        responses = [decode(o["ids"][o["prompt_length"][0] : o["length"][0]].tolist()) for o in observations]
        return self._of(responses, prompt_index)

    def _of(self, responses: list[str], prompt_index: NDArray[np.int64]) -> Floats:
        prompts = self.episodes.prompts
        return score(self.function, prompts.texts(prompt_index), responses, prompts.columns(prompt_index)).values


class PotentialShaping(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Reward each token by its change of a potential: ``r + gamma * phi(s') - phi(s)``, with ``phi = 0`` once terminated.

    Ng, Harada and Russell 1999: which policies are optimal does not change, for learners that discount by the same ``gamma``;
    the discounted sum of what is added is ``-phi(first state)`` whatever the policy does. A truncated episode keeps the
    potential of its last state, as its value does.

    Costs one call of the potential a step, on the text so far, and decoding that text: time that grows with its length.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`, possibly with a time limit.
        potential: any reward, called on unfinished responses.
        gamma: the learner's discount.

    Raises:
        ConfigError: ``gamma`` outside (0, 1], or not a token environment.
    """

    def __init__(self, env: gym.Env[Any, Any], potential: Callable[..., Any], gamma: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, potential=potential, gamma=gamma)
        gym.Wrapper.__init__(self, env)
        self.gamma = _checked_gamma(gamma)
        self._potential = Potential(potential, episodes_of(env, "PotentialShaping"))
        self._before = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        result = self.env.reset(seed=seed, options=options)
        self._before = self._now()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = 0.0 if terminated else self._now()
        shaped = float(reward) + self.gamma * after - self._before
        self._before = after
        return observation, shaped, terminated, truncated, info

    def _now(self) -> float:
        return float(self._potential.now(np.zeros(1, dtype=np.intp))[0])


class VectorPotentialShaping(VectorTokenWrapper):
    """:class:`PotentialShaping` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`; one call a step for all.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`, directly.
        potential: any reward, called on unfinished responses.
        gamma: the learner's discount, in (0, 1].

    Raises:
        ConfigError: ``gamma`` outside (0, 1], or observations without token ids.
    """

    def __init__(
        self, env: gym.vector.VectorEnv[Any, Any, Any], potential: Callable[..., Any], gamma: float = 1.0
    ) -> None:
        super().__init__(env)
        _needs_ids(env, "VectorPotentialShaping")
        self.gamma = _checked_gamma(gamma)
        self._potential = Potential(potential, episodes_of(env, "VectorPotentialShaping"))
        self._before: Floats = np.zeros(env.num_envs)
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        result = self.env.reset(seed=seed, options=options)
        fresh = np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, dtype=np.bool_)))
        self._before[fresh] = self._potential.now(fresh)
        self._ended[fresh] = False
        return result

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every slot and add the change of the potential; a next-step restart has reward 0.

        Args:
            actions: int ``[N]``, token ids.

        Returns:
            Observations, rewards ``[N]``, terminations ``[N]``, truncations ``[N]``, and infos.
        """
        mode = self.env.metadata["autoreset_mode"]
        same_step = mode == AutoresetMode.SAME_STEP
        prompt_index = self._potential.episodes.prompt_index.copy()
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        restarted = self._ended if mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._ended)
        ended = terminations | truncations
        cut = truncations & ~terminations
        after = np.zeros(self.num_envs)
        seen = np.flatnonzero(~terminations & ~(cut & same_step))
        after[seen] = self._potential.now(seen)
        if same_step and cut.any():
            slots = np.flatnonzero(cut)
            after[slots] = self._potential.last([infos["final_obs"][slot] for slot in slots], prompt_index[slots])
        shaped = rewards + np.where(restarted, 0.0, self.gamma * after - self._before)
        self._before = after
        if same_step and ended.any():
            self._before[ended] = self._potential.now(np.flatnonzero(ended))
        self._ended = ended
        return observations, shaped, terminations, truncations, infos


class KLReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Reward each token for staying near a reference: ``r + coef * (log ref(a | s) - log policy(a | s))``.

    Its expectation is ``r - coef * KL(policy || reference)``. An environment does not know the policy: give a function of it,
    or leave it out and let the algorithm's entropy bonus of the same coefficient (SB3's ``ent_coef``) give
    the expectation of ``-log policy(a | s)``. The reference's distribution is over all tokens, whatever the mask.

    Costs a forward pass of the reference for every token (each is read once, from a cache), and one of the policy if given.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`.
        reference: a language model, or its name.
        coef: the KL coefficient, 0 or more.
        policy: from batched observations to log-probabilities ``[N, V]``; None: see above.

    Raises:
        ConfigError: a negative coefficient, or not a token environment.
        TaskError: the reference has another vocabulary.
    """

    def __init__(
        self, env: gym.Env[Any, Any], reference: LanguageModel | str, coef: float, policy: LogProbs | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, reference=reference, coef=coef, policy=policy)
        gym.Wrapper.__init__(self, env)
        self._log_ratio = LogRatio(episodes_of(env, "KLReward"), reference, coef, policy)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        result = self.env.reset(seed=seed, options=options)
        self._log_ratio.forget(np.zeros(1, dtype=np.intp))
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See the environment's."""
        running = np.flatnonzero(self._log_ratio.episodes.running)  # none: the environment says what is wrong
        added = self._log_ratio.of(as_token_ids(action, ()).reshape(1), running).sum()
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + float(added), terminated, truncated, info


class VectorKLReward(VectorTokenWrapper):
    """:class:`KLReward` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`, directly.
        reference: a language model, or its name.
        coef: the KL coefficient, 0 or more.
        policy: from batched observations to log-probabilities ``[N, V]``; None: see :class:`KLReward`.

    Raises:
        ConfigError: a negative coefficient, or not a token environment.
        TaskError: the reference has another vocabulary.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        reference: LanguageModel | str,
        coef: float,
        policy: LogProbs | None = None,
    ) -> None:
        super().__init__(env)
        self._episodes = episodes_of(env, "VectorKLReward")
        self._log_ratio = LogRatio(self._episodes, reference, coef, policy)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        result = self.env.reset(seed=seed, options=options)
        self._log_ratio.forget(np.arange(self.num_envs))
        return result

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every slot and add the KL reward; a next-step restart has reward 0.

        Args:
            actions: int ``[N]``, token ids.

        Returns:
            Observations, rewards ``[N]``, terminations ``[N]``, truncations ``[N]``, and infos.
        """
        actions = as_token_ids(actions, (self.num_envs,))
        running = np.flatnonzero(self._episodes.running)
        added = np.zeros(self.num_envs)
        added[running] = self._log_ratio.of(actions, running)
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self._log_ratio.forget(np.flatnonzero(terminations | truncations))
        return observations, rewards + added, terminations, truncations, infos


class LogRatio:
    """``coef * (log ref(a | s) - log policy(a | s))`` of the tokens about to be appended.

    Args:
        episodes: of the environment.
        reference: a language model, or its name.
        coef: the KL coefficient, 0 or more.
        policy: from batched observations to log-probabilities ``[N, V]``; None leaves its term out.

    Raises:
        ConfigError: the coefficient is not a number of at least 0.
        TaskError: the reference has another vocabulary.
    """

    def __init__(
        self, episodes: Episodes, reference: LanguageModel | str, coef: float, policy: LogProbs | None
    ) -> None:
        from rlhf_gym.envs.reading import Reader

        if isinstance(coef, bool) or not isinstance(coef, int | float) or not 0 <= coef < float("inf"):
            raise ConfigError(f"the KL coefficient must be a number of at least 0, got {coef!r}")
        self.coef = coef
        self.policy = policy
        self.episodes = episodes
        self.reader = Reader(reference, episodes.tokenizer, "reference")

    def forget(self, slots: Slots) -> None:
        """New episodes start in these slots."""
        self.reader.forget(slots)

    def of(self, actions: NDArray[Any], slots: Slots) -> Floats:
        """float64 ``[n]``.

        Args:
            actions: ``[N]``, ids; those outside the vocabulary are left to the environment to refuse.
            slots: ``[n]``, running.

        Raises:
            ConfigError: the policy gave log-probabilities of another shape.
        """
        taken = np.clip(actions[slots].astype(np.int64), 0, self.episodes.tokenizer.vocab_size - 1)
        rows = np.arange(len(slots))
        if not len(slots):
            return np.zeros(0)
        logits = self.reader.logits(self.episodes, slots).astype(np.float64)
        top = logits.max(axis=1, keepdims=True)
        log_ref = logits[rows, taken] - top[:, 0] - np.log(np.exp(logits - top).sum(axis=1))
        if self.policy is None:
            return np.asarray(self.coef * log_ref, dtype=np.float64)
        log_policy = np.asarray(self.policy(self.episodes.observe(slots)), dtype=np.float64)
        expected = (len(slots), self.episodes.tokenizer.vocab_size)
        if log_policy.shape != expected:
            raise ConfigError(f"the policy gave log-probabilities of shape {log_policy.shape}, expected {expected}")
        return np.asarray(self.coef * (log_ref - log_policy[rows, taken]), dtype=np.float64)


def _checked_gamma(gamma: float) -> float:
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise ConfigError(f"gamma must lie in (0, 1], got {gamma!r}")
    return float(gamma)


def _needs_ids(env: gym.vector.VectorEnv[Any, Any, Any], wrapper: str) -> None:
    space = env.single_observation_space
    if not isinstance(space, gym.spaces.Dict) or "ids" not in space.spaces or space["ids"].dtype != np.int64:
        raise ConfigError(f"{wrapper} reads token ids, got observations of {space}; put it inside other wrappers")
