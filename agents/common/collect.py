"""Two ways to collect whole episodes, with one result: the same seeds give the same episodes and numbers, bit for bit.

Episodes come in *rounds* of one a slot. *Decoding* generates whole responses and hands them to environments that only append
tokens. *Stepping* goes through ``VecEnv.step`` token by token and works with any token environment, action masks, wrappers and
per-step rewards included; slots whose episode has ended wait for the others. A step that ends an episode returns its reward,
so it waits for the score; decoding may overlap with scoring.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.forward import fill_reference, kl_along
from rlhf_gym.agents.common.metrics import response_kl
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.agents.common.rollout import Episode, Rollout, pad
from rlhf_gym.agents.common.rollout_engine import builtin_engine
from rlhf_gym.agents.common.slots import Rounds, rules_of, token_env_inside
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.envs.token_rules import WAIT, WAITS_FOR_SCORE
from rlhf_gym.errors import TrainingError
from rlhf_gym.lm.decoding import CachedDecoder, Generation, generate
from rlhf_gym.lm.engines.engine import Engine, ResponseSettings
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import episode_uniforms, greedily
from rlhf_gym.lm.sequences import index_on
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
                note_score(next(waiting), float(score), info)
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
    env: TokenVecEnv,
    policy: LMPolicy,
    seed: int,
    first_episode: int,
    per_slot: int,
    scoring: Scoring,
    *,
    group_size: int = 1,
    ranks: Ranks | None = None,
    engine: Engine | None = None,
    greedy: frozenset[int] = frozenset(),
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
        group_size: slots in a row that get the same prompts.
        ranks: the processes that share the slots out; rank 0 holds the environment and has the responses scored.
        engine: generates the responses of all ranks, with the policy's weights; rank 0 alone asks it. None is the built-in one.
        greedy: slots that take the most probable tokens; nothing is to be learned from their log-probabilities, which are 0.

    Returns:
        ``per_slot * num_envs`` episodes; values are 0 where the pass that generates does not give them.

    Raises:
        RewardError: the reward failed; no further responses are generated then.
        EngineError: the engine failed.
    """
    episodes: list[Episode] = []
    rounds = Rounds(env, group_size, seed)
    slots = list(range(env.num_envs))
    ranks = ranks or Ranks()
    own = slots[ranks.block(env.num_envs)]
    settings = ResponseSettings(policy.limits, policy.sampling, tuple(env.stop))
    for first in range(first_episode, first_episode + per_slot * env.num_envs, env.num_envs):
        prompts = ranks.from_main(partial(_round_prompts, rounds, first, scoring))
        of_round = (prompts, settings, greedy, seed, first, scoring)
        if engine is None:
            parts = ranks.gather(partial(_responses, builtin_engine(policy), own, *of_round))
            generations = [one for part in parts for one in part]
        else:  # another engine is one for all ranks
            generations = ranks.from_main(partial(_responses, engine, slots, *of_round))
        ranks.from_main(partial(scoring.submit, env, slots, [g.ids for g in generations]))
        episodes += [episode_of(prompt, generation) for prompt, generation in zip(prompts, generations, strict=True)]
    return episodes


def _responses(
    engine: Engine, slots: list[int], prompts: list[list[int]], settings: ResponseSettings, greedy: frozenset[int], seed: int,
    first_episode: int, scoring: Scoring,
) -> list[Generation]:  # fmt: skip
    """The responses of some slots in a round, slot by slot."""
    found: dict[int, Generation] = {}
    most_probable = replace(settings, sampling=greedily(settings.sampling))
    for how, chosen in (
        (settings, [i for i in slots if i not in greedy]),
        (most_probable, [i for i in slots if i in greedy]),
    ):
        if chosen:
            generations = engine.generate(
                [prompts[i] for i in chosen], how, seed=seed, episodes=[first_episode + i for i in chosen],
                on_progress=lambda _: scoring.calls.check(),
            )  # fmt: skip
            found |= dict(zip(chosen, generations, strict=True))
    return [found[i] for i in slots]


def episode_of(prompt: list[int], generation: Generation) -> Episode:
    """An episode that has been generated, and not scored yet.

    Args:
        prompt: ids of the prompt.
        generation: the response; values are 0 where the pass that generated it did not give them.
    """
    ids = generation.ids
    values, rewards = generation.values or [0.0] * len(ids), [0.0] * len(ids)
    return Episode(prompt, ids, generation.log_probs, values, rewards, generation.ended, version=generation.version)


def note_score(episode: Episode, score: float, info: dict[str, Any]) -> None:
    """Write its score into an episode.

    Args:
        episode: the episode.
        score: of the whole response.
        info: of the step that would have ended it.
    """
    episode.rewards[-1], episode.ended, episode.info = score, bool(info["ended"]), info
    episode.spread()


def _round_prompts(rounds: Rounds, first_episode: int, scoring: Scoring) -> list[list[int]]:
    """The prompts of a new round, one for each slot, unless the reward has failed meanwhile.

    Args:
        rounds: of the environment.
        first_episode: the number of the round's first episode.
        scoring: of the episodes before.
    """
    scoring.calls.check()
    return observed_ids(rounds.begin(first_episode))


def observed_ids(observation: dict[str, Any]) -> list[list[int]]:
    """The ids of batched observations: ``ids [N, L]``, of which ``length [N, 1]`` count."""
    return [
        row[: int(length)].tolist() for row, length in zip(observation["ids"], observation["length"][:, 0], strict=True)
    ]


def kl_now(
    policy: LMPolicy, reference: LanguageModel, rollout: Rollout, env: VecEnv, seed: int, first_episode: int,
    within_memory: Callable[[Callable[[int], Any]], Any],
) -> float:  # fmt: skip
    """``objective/kl`` of the policy as it is now, on a rollout's prompts; no environment is stepped, nothing is scored.

    New responses are generated. Where only the environment's steps would say what is allowed or where a response ends (masks,
    time limits, rules that it does not tell), the rollout's own responses are taken
    (:func:`~rlhf_gym.agents.common.forward.kl_along`).

    Args:
        policy: the policy.
        reference: the reference.
        rollout: the episodes whose prompts are used, at least one.
        env: the environment; its stop sequences hold.
        seed: seed of the noise.
        first_episode: number of the first episode, for the noise.
        within_memory: does work that takes the number of padded tokens per pass.
    """
    rules = rules_of(env)
    if rules is None or not _ended_by_rules(env, policy, rollout):
        return float(within_memory(lambda tokens: kl_along(policy, reference, rollout, tokens)))
    prompts = [episode.prompt_ids for episode in rollout.episodes]
    generations = generate(
        policy.language_model, prompts, policy.limits, sampling=policy.sampling, seed=seed, first_episode=first_episode,
        stop=rules.stop, batch_size=env.num_envs,
    )  # fmt: skip
    fresh = Rollout.of(
        [
            Episode(prompt, g.ids, g.log_probs, [0.0] * len(g.ids), [0.0] * len(g.ids), g.ended)
            for prompt, g in zip(prompts, generations, strict=True)
        ]
    )
    within_memory(lambda tokens: fill_reference(policy, reference, fresh, tokens))
    return response_kl(fresh)


def _ended_by_rules(env: VecEnv, policy: LMPolicy, rollout: Rollout) -> bool:
    """True if the policy's limits and stop sequences alone explain where a rollout's responses end, and no masks hold."""
    inside = token_env_inside(env)
    return (inside is None or inside.append_only) and all(
        episode.masks is None and (episode.ended or len(episode.response_ids) == policy.limits.max_new_tokens)
        for episode in rollout.episodes
    )


class SteppingCollector:
    """Collects by ``VecEnv.step``.

    Where the environment can neither begin rounds nor wait (:mod:`rlhf_gym.envs.token_rules`), the episodes of a slot follow
    one another, the collector goes on from the last observation, and slots that are done end surplus episodes with EOS.

    Args:
        env: any VecEnv of token observations.
        policy: generates the responses.
        seed: seed of the noise.
        group_size: slots in a row that get the same prompts.
        greedy: slots that take the most probable tokens.

    Attributes:
        observation: the environment's last one; None where it does not count, and the next rollout begins with a reset.
    """

    def __init__(
        self, env: VecEnv, policy: LMPolicy, seed: int, group_size: int = 1, greedy: frozenset[int] = frozenset()
    ) -> None:
        self.env = env
        self.policy = policy
        self.seed = seed
        self.greedy = greedy
        self.rounds = Rounds(env, group_size, seed)
        # Masks that the policy's own limits contain already need not be queried at every token.
        inside = token_env_inside(env)
        known = inside is not None and inside.fixed_masks
        self.has_masks = not known and env.has_attr("action_masks")
        self.observation: Any = None
        self.model = policy.language_model

    def collect(self, first_episode: int, per_slot: int) -> list[Episode]:
        """Collect ``per_slot`` episodes in every slot; numbered and ordered as by :func:`decode_episodes`.

        Args:
            first_episode: number of the first episode, for the noise.
            per_slot: episodes per slot.
        """
        if self.rounds.rules is None:
            observation, self.observation = self.observation, None  # an interrupted rollout leaves slots anywhere
            if observation is None:
                observation = self.rounds.reset()
            return self._run(first_episode, per_slot, observation)
        n = self.env.num_envs
        episodes = []
        for first in range(first_episode, first_episode + per_slot * n, n):
            last, self.observation = self.observation, None
            episodes += self._run(first, 1, self.rounds.begin(first, last))
        return episodes

    def _run(self, first_episode: int, per_slot: int, observation: Any) -> list[Episode]:
        """Collect ``per_slot`` episodes in every slot, one after the other.

        Args:
            first_episode: number of the first episode, for the noise.
            per_slot: episodes per slot.
            observation: ``ids [N, L]``, ``length [N, 1]``, ``prompt_length [N, 1]``; every slot stands at the beginning of an
                episode.
        """
        n = self.env.num_envs
        self.model = self.policy.language_model.decoding_copy()
        decoder = CachedDecoder(self.model)
        done_count = np.zeros(n, dtype=np.int64)
        open_: list[Episode | None] = [None] * n
        held: set[int] = set()  # slots whose episode has ended and waits to be scored with the others
        noise = [np.zeros(0)] * n
        finished: dict[int, Episode] = {}
        hidden = torch.zeros(n, self.policy.language_model.hidden_size, device=self.policy.device)
        while len(finished) < n * per_slot:
            live = [i for i in range(n) if done_count[i] < per_slot and i not in held]
            fresh = [i for i in live if open_[i] is None]
            if fresh:
                prompts = observed_ids({key: observation[key][fresh] for key in ("ids", "length")})
                for i, prompt in zip(fresh, prompts, strict=True):
                    open_[i] = Episode(prompt, [], [], [], [], ended=False)
                    number = first_episode + int(done_count[i]) * n + i
                    noise[i] = episode_uniforms(self.seed, number, observation["ids"].shape[1])
                hidden[index_on(hidden.device, fresh)] = decoder.start(fresh, prompts).float()
            actions = self._act(live, open_, hidden, noise)
            observation, rewards, dones, infos = self.env.step(actions)
            going_on = []
            for i in [*live, *held]:
                episode = open_[i]
                assert episode is not None
                if i in held:
                    if dones[i]:  # the score; what a wrapper gives a slot that waits belongs to no token
                        episode.rewards[-1] += float(rewards[i])
                else:
                    episode.response_ids.append(int(actions[i]))
                    episode.rewards.append(float(rewards[i]))
                if dones[i]:
                    self._end(episode, infos[i])
                    finished[int(done_count[i]) * n + i] = episode
                    done_count[i] += 1
                    open_[i] = None
                elif infos[i].get(WAITS_FOR_SCORE):
                    held.add(i)
                elif i not in held:
                    going_on.append(i)
            held = {i for i in held if open_[i] is not None}
            if going_on:
                tokens = torch.from_numpy(actions[going_on]).to(self.policy.device, non_blocking=True)
                hidden[index_on(hidden.device, going_on)] = decoder.append(going_on, tokens).float()
        self.observation = observation
        return [finished[k] for k in sorted(finished)]

    def _end(self, episode: Episode, info: dict[str, Any]) -> None:
        """Complete an episode by the ``info`` of its last step."""
        episode.info = info
        episode.spread()
        episode.ended = bool(info.get("ended", episode.response_ids[-1] in self.policy.limits.eos_ids))
        if "episode" in info:  # a monitor has counted steps of waiting, too
            info["episode"] = {**info["episode"], "l": len(episode.response_ids)}
        if info.get("TimeLimit.truncated", False) and self.policy.value_head is not None:
            # An unscored time limit: the value function estimates the rewards that would have come.
            whole = [*episode.prompt_ids, *episode.response_ids]
            episode.bootstrap = float(self.policy.state_values([whole], [len(episode.response_ids)])[0])

    def _act(self, live: list[int], open_: list[Episode | None], hidden: Tensor, noise: list[Any]) -> Any:
        """Draw a token for every live slot, and note its log-probability, value and mask; the others wait."""
        policy = self.policy
        steps = [len(episode.response_ids) for i in live if (episode := open_[i])]
        states = hidden[index_on(hidden.device, live)].to(self.model.model.dtype)
        masks = self._masks(live)
        allowed = None if masks is None else torch.from_numpy(masks).to(policy.device, non_blocking=True)
        uniforms = [noise[i][t] for i, t in zip(live, steps, strict=True)]
        greedy = [i in self.greedy for i in live]
        tokens, chosen, values = policy.draw(states, steps, uniforms, greedy, allowed, model=self.model)
        for row, i in enumerate(live):
            episode = open_[i]
            assert episode is not None
            episode.log_probs.append(chosen[row])
            episode.values.append(values[row])
            if masks is not None:
                packed = np.packbits(masks[row])[None]
                episode.masks = packed if episode.masks is None else np.concatenate([episode.masks, packed])
        # Slots that are done wait where the environment can; elsewhere they end their surplus episodes at once.
        idle = policy.limits.eos_id if self.rounds.rules is None else WAIT
        actions = np.full(self.env.num_envs, idle, dtype=np.int64)
        actions[live] = tokens
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
