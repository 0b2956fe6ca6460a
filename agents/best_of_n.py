"""Best-of-n sampling: no learning at all, and hard to beat (Stiennon et al. 2020; Gao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.rewards.base import Reward, reward_name, score
from rlhf_gym.text import shorten


def best_of_n_kl(n: int) -> float:
    """``log n - (n - 1) / n``, nats per response: how far best-of-n is from the model that it draws from, at most.

    The usual formula (Stiennon et al. 2020, appendix G.3). It is an upper bound, reached where no two responses score
    alike and each is improbable (Beirami et al. 2024, theorem 1).

    >>> best_of_n_kl(1)
    0.0
    >>> round(best_of_n_kl(64), 3)
    3.175
    """
    return math.log(n) - (n - 1) / n


def best_of_n(
    model: LanguageModel,
    prompts: Sequence[str],
    reward: Reward,
    n: int,
    limits: Limits,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    first_episode: int = 0,
    batch_size: int = 64,
) -> list[tuple[Generation, float]]:
    """Generate ``n`` responses to each prompt and keep the one with the highest score; of equal ones the first.

    Args:
        model: generates the responses.
        prompts: texts.
        reward: scores them, all in one call.
        n: responses to each prompt, at least 1.
        limits: which tokens, how many.
        columns: the prompts' columns, one value a prompt each.
        sampling: temperature, top-k, top-p.
        stop: texts that end a response.
        seed: of the noise.
        first_episode: number of the first response, for the noise.
        batch_size: responses decoded at once.

    Returns:
        For each prompt the best response, and its score.

    Raises:
        ConfigError: ``n`` below 1.
        RewardError: the reward failed.
    """
    if n < 1:
        raise ConfigError(f"best-of-n needs n of at least 1, got {n}")
    ids = [model.tokenizer.encode_prompt(prompt) for prompt in prompts for _ in range(n)]
    written = generate(
        model, ids, limits, sampling=sampling, stop=stop, seed=seed, first_episode=first_episode, batch_size=batch_size
    )
    asked = [prompt for prompt in prompts for _ in range(n)]
    repeated = {name: [value for value in values for _ in range(n)] for name, values in (columns or {}).items()}
    scores = scores_to_choose_by(reward, asked, [g.text for g in written], repeated, n)
    best = scores.argmax(1)
    return [(written[i * n + int(k)], float(scores[i, k])) for i, k in enumerate(best)]


def scores_to_choose_by(
    reward: Reward, prompts: list[str], texts: list[str], columns: Mapping[str, Sequence[Any]], n: int
) -> NDArray[np.float64]:
    """Float64 ``[prompts, n]``; minus infinity for responses that the reward leaves out (`SkipOnError`).

    Args:
        reward: scores.
        prompts: one for each text.
        texts: responses, ``n`` to a prompt, one prompt after the other.
        columns: the prompts' columns, repeated alike.
        n: responses to each prompt.

    Raises:
        RewardError: the reward failed, or left out all responses to a prompt.
    """
    scored = score(reward, prompts, texts, columns, may_skip=True)
    scores = np.where(scored.kept, scored.values, -np.inf).reshape(-1, n)
    if not np.isfinite(scores.max(1)).all():
        prompt = prompts[n * int(np.argmin(np.isfinite(scores.max(1))))]
        raise RewardError(
            f"reward {reward_name(reward)!r} failed on all {n} responses to the prompt {shorten(prompt)}: there is no best one"
        )
    return scores


class BestOfN:
    """Best-of-n as something that predicts: `evaluate_policy` and callbacks take it in the place of an agent.

    When it sees an observation that holds a prompt and nothing more, it generates all ``n`` responses, keeps the best, and then
    gives its tokens one by one. The reward sees the decoded prompt and no columns, which observations do not hold: for a
    reward that needs them there is :func:`best_of_n`.

    Args:
        model: generates the responses.
        reward: chooses. The environment's own reward makes an oracle; a reward model makes the baseline that PPO is to beat.
        n: responses to each prompt.
        limits: which tokens, how many; an environment's are ``rlhf_gym.agents.common.setup.limits_of(env, model)``.
        sampling: temperature, top-k, top-p.
        seed: of the noise.

    Raises:
        ConfigError: ``n`` below 1.
    """

    def __init__(
        self,
        model: LanguageModel,
        reward: Reward,
        n: int,
        limits: Limits,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> None:
        if n < 1:
            raise ConfigError(f"best-of-n needs n of at least 1, got {n}")
        self.model = model
        self.reward = reward
        self.n = n
        self.limits = limits
        self.sampling = sampling
        self.seed = seed
        self._drawn = 0
        self._plans: dict[int, tuple[list[int], list[int]]] = {}

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """The next tokens of the best responses.

        Args:
            observation: ``ids``, ``length`` and ``prompt_length``, batched or not.
            state: returned as it is.
            episode_start: not needed.
            deterministic: not used: best-of-n is as random as its noise.

        Returns:
            int64 actions, ``[N]`` or a scalar array, and ``state``.

        Raises:
            ConfigError: an observation whose response is not the one that was planned.
        """
        single = np.ndim(observation["ids"]) == 1
        batch = {key: np.atleast_2d(value) for key, value in observation.items()}
        rows = [row[: int(length)].tolist() for row, length in zip(batch["ids"], batch["length"][:, 0], strict=True)]
        starts = batch["prompt_length"][:, 0].astype(int).tolist()
        fresh = [i for i, row in enumerate(rows) if len(row) == starts[i]]
        self._plan(fresh, [rows[i] for i in fresh])
        actions = []
        for slot, row in enumerate(rows):
            prompt, response = self._plans.get(slot, ([], []))
            written = row[starts[slot] :]
            if prompt != row[: starts[slot]] or written != response[: len(written)] or len(written) == len(response):
                raise ConfigError(
                    f"slot {slot} holds a response that best-of-n did not begin; give it whole episodes, from reset on"
                )
            actions.append(response[len(written)])
        chosen = np.array(actions, dtype=np.int64)
        return (chosen[0] if single else chosen), state

    def _plan(self, slots: list[int], prompts: list[list[int]]) -> None:
        """Generate and choose responses for slots that begin."""
        if not slots:
            return
        ids = [prompt for prompt in prompts for _ in range(self.n)]
        written = generate(
            self.model, ids, self.limits, sampling=self.sampling, seed=self.seed, first_episode=self._drawn
        )
        self._drawn += len(ids)
        asked = [self.model.tokenizer.decode(prompt) for prompt in ids]
        scores = scores_to_choose_by(self.reward, asked, [g.text for g in written], {}, self.n)
        for place, (slot, prompt) in enumerate(zip(slots, prompts, strict=True)):
            self._plans[slot] = (prompt, list(written[place * self.n + int(scores[place].argmax())].ids))
