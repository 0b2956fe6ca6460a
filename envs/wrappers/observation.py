"""Observations that any network takes: the last n tokens, and vectors instead of ids; for one environment and for many."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlhf_gym.envs.wrappers.base import AnyEnv, VectorTokenWrapper, episodes_of
from rlhf_gym.errors import ConfigError


class ObservationFormat(Protocol):
    """A way to present batches of observations."""

    space: gym.Space[Any]

    def __call__(self, batch: Any) -> Any:
        """Observations of ``[N, ...]`` as observations of :attr:`space`, batched."""
        ...


class LastTokensFormat:
    """The last n ids, padded on the left.

    Args:
        n: the number of ids.
        env: a token environment, single or vector.

    Raises:
        ConfigError: ``n`` below 1, or the environment's observations have no ids.
    """

    def __init__(self, n: int, env: AnyEnv) -> None:
        tokenizer = episodes_of(env, "LastTokens").tokenizer
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ConfigError(f"LastTokens needs a whole number of at least 1 token, got {n!r}")
        space = single_space(env)
        if not isinstance(space, gym.spaces.Dict) or space["ids"].dtype != np.int64:
            raise ConfigError(
                f"LastTokens needs observations with token ids, got {space}; put it inside other wrappers"
            )
        self.n = n
        self.pad_id = tokenizer.pad_id
        self.space: gym.Space[Any] = gym.spaces.Box(0, tokenizer.vocab_size - 1, (n,), np.int64)

    def __call__(self, batch: Any) -> NDArray[np.int64]:
        """int64 ``[N, n]``."""
        places = batch["length"] - self.n + np.arange(self.n)
        ids = np.take_along_axis(batch["ids"], np.maximum(places, 0), axis=1)
        return np.where(places >= 0, ids, self.pad_id)


class EmbeddedTokensFormat:
    """A vector for every id.

    Args:
        table: float ``[V, D]``; None: one-hot, ``D = V``.
        env: a token environment, single or vector, with or without :class:`LastTokens` around it.

    Raises:
        ConfigError: the table has not one finite row for every id, or the observations are not ids.
    """

    def __init__(self, table: Any, env: AnyEnv) -> None:
        vocab_size = episodes_of(env, "EmbeddedTokens").tokenizer.vocab_size
        rows = np.eye(vocab_size, dtype=np.float32) if table is None else np.asarray(table, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != vocab_size or not np.isfinite(rows).all():
            raise ConfigError(
                f"EmbeddedTokens needs a table of {vocab_size} rows of finite numbers, got shape {rows.shape}"
            )
        self.table = rows
        inner = single_space(env)
        ids = inner["ids"] if isinstance(inner, gym.spaces.Dict) else inner
        if not isinstance(ids, gym.spaces.Box) or ids.dtype != np.int64:
            raise ConfigError(f"EmbeddedTokens needs observations that are token ids, got {inner}")
        box = gym.spaces.Box(float(rows.min()), float(rows.max()), (*ids.shape, rows.shape[1]), np.float32)
        self.space: gym.Space[Any] = box
        if isinstance(inner, gym.spaces.Dict):
            self.space = gym.spaces.Dict({**inner.spaces, "ids": box})

    def __call__(self, batch: Any) -> Any:
        """float32 ``[N, n, D]``, or the dictionary with such ids."""
        if isinstance(batch, dict):
            return {**batch, "ids": self.table[batch["ids"]]}
        return self.table[batch]


def single_space(env: AnyEnv) -> gym.Space[Any]:
    """The observation space of one environment."""
    return env.single_observation_space if isinstance(env, gym.vector.VectorEnv) else env.observation_space


class _Formatted(gym.ObservationWrapper[Any, Any, Any]):
    """One environment, with its observations in another format."""

    format: ObservationFormat

    def observation(self, observation: Any) -> Any:
        """The observation in this format."""
        return _pick(self.format(_batch([observation])), 0)


class LastTokens(_Formatted, RecordConstructorArgs):
    """Observe the last n ids alone, padded on the left: ``Box int64 (n,)``.

    It costs next to nothing (``8 n`` bytes instead of the whole row), but the policy does not see earlier tokens, nor where
    the prompt ends.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`.
        n: the number of ids, at least 1.

    Raises:
        ConfigError: ``n`` below 1, or not a token environment.
    """

    def __init__(self, env: gym.Env[Any, Any], n: int) -> None:
        RecordConstructorArgs.__init__(self, n=n)
        gym.ObservationWrapper.__init__(self, env)
        self.format = LastTokensFormat(n, env)
        self.observation_space = self.format.space


class EmbeddedTokens(_Formatted, RecordConstructorArgs):
    """Observe a vector for every id: float32 ``(..., D)``, one-hot by default.

    It costs ``4 D`` bytes a token and step, where an id costs 8; a rollout buffer keeps them all. For large vocabularies give a
    table of few columns (such as a language model's embeddings, projected), or let the policy embed ids itself.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`, with or without :class:`LastTokens` around it.
        table: float ``[V, D]``; None: one-hot.

    Raises:
        ConfigError: the table does not fit the vocabulary, or the observations are not ids.
    """

    def __init__(self, env: gym.Env[Any, Any], table: Any = None) -> None:
        RecordConstructorArgs.__init__(self, table=table)
        gym.ObservationWrapper.__init__(self, env)
        self.format = EmbeddedTokensFormat(table, env)
        self.observation_space = self.format.space


class _VectorFormatted(VectorTokenWrapper):
    """Many environments, with their observations in another format; final observations too."""

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], observation_format: ObservationFormat) -> None:
        super().__init__(env)
        self.format = observation_format
        self.single_observation_space = observation_format.space
        self.observation_space = batch_space(observation_format.space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self.format(observations), infos

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """See the environment's."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        if "final_obs" in infos:
            ended = np.flatnonzero(infos["_final_obs"])
            shown = self.format(_batch([infos["final_obs"][slot] for slot in ended]))
            final = np.full(self.num_envs, None, dtype=object)
            for row, slot in enumerate(ended):
                final[slot] = _pick(shown, row)
            infos = {**infos, "final_obs": final}
        return self.format(observations), rewards, terminations, truncations, infos


class VectorLastTokens(_VectorFormatted):
    """:class:`LastTokens` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.
        n: the number of ids, at least 1.

    Raises:
        ConfigError: as :class:`LastTokens`.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], n: int) -> None:
        super().__init__(env, LastTokensFormat(n, env))


class VectorEmbeddedTokens(_VectorFormatted):
    """:class:`EmbeddedTokens` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`, with or without :class:`VectorLastTokens` around it.
        table: float ``[V, D]``; None: one-hot, ``D = V``.

    Raises:
        ConfigError: as :class:`EmbeddedTokens`.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], table: Any = None) -> None:
        super().__init__(env, EmbeddedTokensFormat(table, env))


def _batch(observations: list[Any]) -> Any:
    """Observations as one batch."""
    if isinstance(observations[0], dict):
        return {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    return np.stack(observations)


def _pick(batch: Any, row: int) -> Any:
    """One observation of a batch."""
    return {key: values[row] for key, values in batch.items()} if isinstance(batch, dict) else batch[row]
