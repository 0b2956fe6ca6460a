"""The KL from a reference as a reward for every token: for one environment and for many.

It goes directly around a token environment, inside the wrappers that change observations or actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes
from rlhf_gym.envs.token_env import as_token_ids
from rlhf_gym.envs.token_rows import Slots
from rlhf_gym.envs.wrappers.base import AnyEnv, VectorTokenWrapper, episodes_of
from rlhf_gym.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel

Floats = NDArray[np.float64]
LogProbs = Callable[[Any], Any]


class KLReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Reward each token for staying near a reference: ``r + coef * (log ref(a | s) - log policy(a | s))``.

    Its expectation is ``r - coef * KL(policy || reference)``. An environment does not know the policy: give a function of it,
    or leave it out and let the algorithm's entropy bonus of the same coefficient (SB3's ``ent_coef``) give
    the expectation of ``-log policy(a | s)``. The reference's distribution is over all tokens, whatever the mask.

    It costs a forward pass of the reference for every token (each is read once, with a cache), and one of the policy if given.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`.
        reference: a language model, or its name.
        coef: the KL coefficient, 0 or more.
        policy: ``policy(observations)``, from ``n`` batched observations to log-probabilities ``[n, V]``; None: see above.

    Raises:
        ConfigError: a negative coefficient, not a token environment, or one whose actions are not token ids.
        TaskError: the reference has another vocabulary.
    """

    def __init__(
        self, env: gym.Env[Any, Any], reference: LanguageModel | str, coef: float, policy: LogProbs | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, reference=reference, coef=coef, policy=policy)
        gym.Wrapper.__init__(self, env)
        self._log_ratio = LogRatio(_episodes_by_token(env, "KLReward"), reference, coef, policy)

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
        running = np.flatnonzero(self._log_ratio.episodes.running)  # if none, the environment refuses the step below
        added = self._log_ratio.of(as_token_ids(action, ()).reshape(1), running).sum()
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + float(added), terminated, truncated, info


class VectorKLReward(VectorTokenWrapper):
    """:class:`KLReward` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`, directly.
        reference: a language model, or its name.
        coef: the KL coefficient, 0 or more.
        policy: see :class:`KLReward`.

    Raises:
        ConfigError: a negative coefficient, not a token environment, or one whose actions are not token ids.
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
        self._episodes = _episodes_by_token(env, "VectorKLReward")
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
    """Computes ``coef * (log ref(a | s) - log policy(a | s))`` of the tokens about to be appended.

    Args:
        episodes: those of the environment.
        reference: a language model, or its name.
        coef: the KL coefficient, 0 or more.
        policy: see :class:`KLReward`; None leaves its term out.

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
        """Forget the episodes in these slots: new ones start there."""
        self.reader.forget(slots)

    def of(self, actions: NDArray[Any], slots: Slots) -> Floats:
        """The KL rewards of these slots' next tokens, float64 ``[n]``.

        Args:
            actions: int64 ``[N]``, token ids; the environment refuses those outside the vocabulary.
            slots: int ``[n]``, all with a running episode.

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


def _episodes_by_token(env: AnyEnv, wrapper: str) -> Episodes:
    """The episodes inside, if the actions of ``env`` are the token ids themselves."""
    episodes = episodes_of(env, wrapper)
    given, inside = _action_space(env), _action_space(env.unwrapped)
    if given is not inside:  # a wrapper between them changes the actions
        raise ConfigError(f"{wrapper} reads actions as token ids, got actions of {given}; put it inside other wrappers")
    return episodes


def _action_space(env: AnyEnv) -> gym.Space[Any]:
    return env.single_action_space if isinstance(env, gym.vector.VectorEnv) else env.action_space
