"""Two ways to collect whole episodes, with one result: the same seeds give the same episodes and log-probabilities.

*Decoding* generates whole responses and hands them to environments that only append tokens. *Stepping* goes through
``VecEnv.step`` token by token and works with any token environment, action masks and per-step rewards included. A step that
ends an episode returns its reward, so it waits for the score; decoding may overlap with scoring.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout, pad
from rlhf_gym.agents.common.setup import token_env_inside
from rlhf_gym.envs.sb3 import WAIT, TokenVecEnv
from rlhf_gym.errors import TrainingError
from rlhf_gym.lm.decoding import CachedDecoder, generate
from rlhf_gym.lm.sampling import episode_uniforms, sample_tokens
from rlhf_gym.rewards.service.overlap import OverlappedScoring, is_slow


class Scoring:
    """The scores of a rollout's episodes; slow rewards are called in a thread while other work goes on.

    Use it as a context manager.

    Args:
        env: the environment whose reward is called.
    """

    def __init__(self, env: VecEnv) -> None:
        self._inside = token_env_inside(env)
        self.calls = OverlappedScoring(threaded=isinstance(env, TokenVecEnv) and is_slow(env.reward))
        self._pending: list[Future[tuple[Any, Any]]] = []
        self._before = self._inside.reward_seconds if self._inside else 0.0

    def submit(self, env: TokenVecEnv, slots: list[int], responses: list[list[int]]) -> None:
        """Have the responses of some slots scored, one episode per slot.

        Args:
            env: the environment.
            slots: its slots.
            responses: ids, one list per slot.
        """
        self._pending.append(self.calls.submit(env.score_ended, env.end_episodes(slots, responses)))

    def finish(self, rollout: Rollout) -> None:
        """Wait for the scores, and write them into the episodes and the rollout.

        Raises:
            RewardError: the reward failed.
        """
        waiting = iter(rollout.episodes)
        for pending in self._pending:
            for score, info in zip(*self.calls.wait(pending), strict=True):
                episode = next(waiting)
                episode.rewards[-1], episode.ended, episode.info = float(score), bool(info["ended"]), info
                episode.spread()
        if self._pending:
            rollout.rewards = pad(rollout.mask, [e.rewards for e in rollout.episodes])

    @property
    def seconds(self) -> float | None:
        """Seconds spent in the reward, in a thread too; None where the environment does not measure it, or scored nothing."""
        if self._inside is None:
            return None
        spent = self._inside.reward_seconds - self._before
        return spent if spent or self._pending else None

    @property
    def waited(self) -> float | None:
        """Seconds that the agent waited for scores; None where :attr:`seconds` is None."""
        return self.calls.waited if self._pending else self.seconds

    def __enter__(self) -> Self:
        self.calls.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.calls.__exit__(kind, error, traceback)


def decode_episodes(
    env: TokenVecEnv, policy: LMPolicy, seed: int, first_episode: int, per_slot: int, scoring: Scoring
) -> list[Episode]:
    """Generate ``per_slot`` episodes in every slot by decoding whole responses.

    The ``k``-th episodes of all slots are scored together, in a thread where the reward is slow; the result is the same.

    Args:
        env: an environment that only appends tokens.
        policy: generates the responses.
        seed: seed of the noise.
        first_episode: number of the first episode, for the noise; the ``k``-th episode of slot ``i`` is number
            ``first_episode + k * num_envs + i``.
        per_slot: episodes per slot.
        scoring: takes the responses; :meth:`Scoring.finish` fills in rewards and infos.

    Returns:
        ``per_slot * num_envs`` episodes; values are 0 where the policy does not read them from its own hidden states.

    Raises:
        RewardError: the reward failed; no further responses are generated then.
    """
    episodes: list[Episode] = []
    slots = list(range(env.num_envs))
    head = policy.values if policy.values_from_trunk else None
    for k in range(per_slot):
        scoring.calls.check()
        prompts = [ids.tolist() for ids in env.begin_episodes(slots)]
        generations = generate(
            policy.language_model, prompts, policy.limits, sampling=policy.sampling, seed=seed,
            first_episode=first_episode + k * env.num_envs, stop=env.stop, value_head=head, batch_size=env.num_envs,
            on_progress=lambda _: scoring.calls.check(),
        )  # fmt: skip
        scoring.submit(env, slots, [g.ids for g in generations])
        episodes += [
            Episode(prompt, g.ids, g.log_probs, g.values or [0.0] * len(g.ids), [0.0] * len(g.ids), g.ended)
            for prompt, g in zip(prompts, generations, strict=True)
        ]
    return episodes


class SteppingCollector:
    """Collects by ``VecEnv.step``, and keeps the observation from one iteration to the next.

    Args:
        env: any VecEnv of token observations.
        policy: generates the responses.
        seed: seed of the noise.
    """

    def __init__(self, env: VecEnv, policy: LMPolicy, seed: int) -> None:
        self.env = env
        self.policy = policy
        self.seed = seed
        # Masks that the policy's own limits contain already need not be queried at every token.
        known = isinstance(env, TokenVecEnv) and env.fixed_masks
        self.has_masks = not known and env.has_attr("action_masks")
        self.observation: dict[str, Any] = {}

    def collect(self, first_episode: int, per_slot: int, observation: Any) -> list[Episode]:
        """Collect ``per_slot`` episodes in every slot; numbered and ordered as by :func:`decode_episodes`.

        Args:
            first_episode: number of the first episode, for the noise.
            per_slot: episodes per slot.
            observation: the environment's last observation, ``ids [N, L]``, ``length [N, 1]``, ``prompt_length [N, 1]``; every
                slot stands at the beginning of an episode. The next one is left in ``self.observation``.
        """
        n = self.env.num_envs
        decoder = CachedDecoder(self.policy.language_model)
        done_count = np.zeros(n, dtype=np.int64)
        open_: list[Episode | None] = [None] * n
        noise = [np.zeros(0)] * n
        finished: dict[int, Episode] = {}
        hidden = torch.zeros(n, self.policy.language_model.hidden_size, device=self.policy.device)
        while len(finished) < n * per_slot:
            live = [i for i in range(n) if done_count[i] < per_slot]
            fresh = [i for i in live if open_[i] is None]
            for i in fresh:
                length = int(observation["length"][i, 0])
                open_[i] = Episode(observation["ids"][i, :length].tolist(), [], [], [], [], ended=False)
                number = first_episode + int(done_count[i]) * n + i
                noise[i] = episode_uniforms(self.seed, number, self.policy.limits.max_new_tokens)
            if fresh:
                prompts = [episode.prompt_ids for i in fresh if (episode := open_[i])]
                hidden[fresh] = decoder.start(fresh, prompts).float()
            actions = self._act(live, open_, hidden, noise)
            new, rewards, dones, infos = self.env.step(actions)
            observation = new
            going_on = []
            for i in live:
                episode = open_[i]
                assert episode is not None
                episode.response_ids.append(int(actions[i]))
                episode.rewards.append(float(rewards[i]))
                if not dones[i]:
                    going_on.append(i)
                    continue
                episode.info = infos[i]
                episode.spread()
                eos = int(actions[i]) in self.policy.limits.eos_ids
                episode.ended = bool(infos[i].get("ended", eos))
                if infos[i].get("TimeLimit.truncated", False) and self.policy.value_head is not None:
                    # An unscored time limit: the value function estimates the rewards that would have come.
                    whole = [*episode.prompt_ids, *episode.response_ids]
                    episode.bootstrap = float(self.policy.state_values([whole], [len(episode.response_ids)])[0])
                finished[int(done_count[i]) * n + i] = episode
                done_count[i] += 1
                open_[i] = None
            if going_on:
                tokens = torch.as_tensor(actions[going_on], device=self.policy.device)
                hidden[going_on] = decoder.append(going_on, tokens).float()
        self.observation = dict(observation)
        return [finished[k] for k in sorted(finished)]

    def _act(self, live: list[int], open_: list[Episode | None], hidden: Tensor, noise: list[Any]) -> Any:
        """Draw a token for every live slot, and note its log-probability, value and mask; the others wait."""
        policy = self.policy
        steps = [len(episode.response_ids) for i in live if (episode := open_[i])]
        states = hidden[live].to(policy.language_model.model.dtype)
        with torch.no_grad():
            masks = self._masks(live)
            allowed = None if masks is None else torch.as_tensor(masks, device=policy.device)
            log_probs = policy.distribution(states, torch.tensor(steps, device=policy.device), allowed)
            uniforms = torch.tensor([noise[i][t] for i, t in zip(live, steps, strict=True)], device=policy.device)
            tokens = sample_tokens(log_probs, uniforms)
            chosen = log_probs.gather(-1, tokens[:, None]).squeeze(-1).tolist()
            values = policy.values(states).tolist() if policy.values_from_trunk else [0.0] * len(live)
        for row, i in enumerate(live):
            episode = open_[i]
            assert episode is not None
            episode.log_probs.append(chosen[row])
            episode.values.append(values[row])
            if masks is not None:
                packed = np.packbits(masks[row])[None]
                episode.masks = packed if episode.masks is None else np.concatenate([episode.masks, packed])
        # Slots that are done wait where the environment can; elsewhere they end their surplus episodes at once.
        idle = WAIT if isinstance(self.env, TokenVecEnv) else policy.limits.eos_id
        actions = np.full(self.env.num_envs, idle, dtype=np.int64)
        actions[live] = tokens.cpu().numpy()
        return actions

    def _masks(self, live: list[int]) -> NDArray[np.bool_] | None:
        """The tokens that the environment allows in the live slots now, bool ``[n, V]``; None without masks of its own."""
        if not self.has_masks:
            return None
        masks = np.stack(self.env.env_method("action_masks", indices=live)).astype(np.bool_)
        if not masks.any(axis=1).all():
            slot = live[int(np.argmin(masks.any(axis=1)))]
            raise TrainingError(
                f"the environment's action mask in slot {slot} allows no token; it must allow at least one"
            )
        return masks
