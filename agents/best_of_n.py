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
from rlhf_gym.lm.tokenizer import encode_conversation
from rlhf_gym.rewards.base import Reward, reward_name, score
from rlhf_gym.text import shorten


def best_of_n_kl(n: int) -> float:
    """The KL of best-of-n from the model that it samples from, at most: ``log n - (n - 1) / n``, in nats per response.

    The usual formula (Stiennon et al. 2020, appendix G.3). It is an upper bound, which is reached where no two responses have
    the same score and each is improbable (Beirami et al. 2024, theorem 1).

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
        limits: forbidden tokens and the length limit.
        columns: the prompts' columns, one value per prompt; ``messages`` are prompts that are conversations.
        sampling: temperature, top-k, top-p.
        stop: texts that end a response.
        seed: seed of the noise.
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
    messages = (columns or {}).get("messages", [None] * len(prompts))
    encoded = [encode_conversation(model.tokenizer, *one) for one in zip(prompts, messages, strict=True)]
    ids = [one for one in encoded for _ in range(n)]
    responses = generate(
        model, ids, limits, sampling=sampling, stop=stop, seed=seed, first_episode=first_episode, batch_size=batch_size
    )
    repeated = {name: [value for value in values for _ in range(n)] for name, values in (columns or {}).items()}
    scores = score_groups(
        reward, [prompt for prompt in prompts for _ in range(n)], [g.text for g in responses], repeated, n
    )
    best = scores.argmax(1)
    return [(responses[i * n + int(k)], float(scores[i, k])) for i, k in enumerate(best)]


def score_groups(
    reward: Reward, prompts: list[str], texts: list[str], columns: Mapping[str, Sequence[Any]], n: int
) -> NDArray[np.float64]:
    """The scores of groups of responses, float64 ``[prompts, n]``; -inf for responses that the reward leaves out.

    Args:
        reward: scores the responses, all in one call.
        prompts: one for each text.
        texts: responses, ``n`` to a prompt, one prompt after the other.
        columns: the prompts' columns, one value for each text.
        n: responses to each prompt.

    Raises:
        RewardError: the reward failed, or left out all responses to a prompt.
    """
    scored = score(reward, prompts, texts, columns, may_skip=True)
    scores = np.where(scored.kept, scored.values, -np.inf).reshape(-1, n)
    if not np.isfinite(scores.max(1)).all():
        prompt = prompts[n * int(np.argmin(np.isfinite(scores.max(1))))]
        raise RewardError(
            f"reward {reward_name(reward)!r} failed on all {n} responses to the prompt {shorten(prompt)}, so none is the best: "
            "leave the prompt out, or mend the reward"
        )
    return scores


class BestOfN:
    """Best-of-n with ``predict``: `evaluate_policy` and callbacks take it in the place of an agent.

    At an observation that holds a prompt and nothing more, it generates ``n`` responses and keeps the best; then it returns
    the tokens of that one by one. The reward sees the decoded prompt and no columns, which observations do not hold: for a
    reward that needs them there is :func:`best_of_n`.

    Args:
        model: generates the responses.
        reward: chooses. The environment's own reward makes an oracle; a reward model makes the baseline that PPO is to beat.
        n: responses to each prompt.
        limits: forbidden tokens and the length limit; an environment's are
            ``rlhf_gym.agents.common.setup.limits_of(env, model)``.
        sampling: temperature, top-k, top-p.
        stop: texts that end a response, as the environment's task has them.
        seed: seed of the noise.

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
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if n < 1:
            raise ConfigError(f"best-of-n needs n of at least 1, got {n}")
        self.model = model
        self.reward = reward
        self.n = n
        self.limits = limits
        self.sampling = sampling
        self.stop = stop
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
            deterministic: not used: responses are always sampled.

        Returns:
            int64 actions, ``[N]`` or ``[]``, and ``state``.

        Raises:
            ConfigError: an observation holds another response than the chosen one.
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
            begun = row[starts[slot] :]
            if prompt != row[: starts[slot]] or begun != response[: len(begun)] or len(begun) == len(response):
                raise ConfigError(
                    f"slot {slot} holds a response that best-of-n did not begin; give it whole episodes, from reset on"
                )
            actions.append(response[len(begun)])
        chosen = np.array(actions, dtype=np.int64)
        return (chosen.squeeze(axis=0) if single else chosen), state

    def _plan(self, slots: list[int], prompts: list[list[int]]) -> None:
        """Generate and choose the responses of slots at the beginning of an episode."""
        if not slots:
            return
        ids = [prompt for prompt in prompts for _ in range(self.n)]
        responses = generate(
            self.model, ids, self.limits, sampling=self.sampling, stop=self.stop, seed=self.seed,
            first_episode=self._drawn,
        )  # fmt: skip
        self._drawn += len(ids)
        texts = [self.model.tokenizer.decode(prompt) for prompt in ids]
        scores = score_groups(self.reward, texts, [g.text for g in responses], {}, self.n)
        for place, (slot, prompt) in enumerate(zip(slots, prompts, strict=True)):
            self._plans[slot] = (prompt, list(responses[place * self.n + int(scores[place].argmax())].ids))
