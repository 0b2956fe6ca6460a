"""Collecting conversations: all slots decode together, whatever turn they are in, and what a slot has read stays cached."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Turn
from rlhf_gym.envs.talk_scoring import Played, score_conversations
from rlhf_gym.envs.talks import Reply
from rlhf_gym.envs.text_vec_env import TextVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.decoding import CachedDecoder
from rlhf_gym.lm.sampling import episode_uniforms, sample_tokens
from rlhf_gym.rewards.base import TermReward

_NOISE = 256  # random numbers of an episode that are drawn at once


def text_env_inside(env: VecEnv) -> TextVecEnv | None:
    """The environment of conversations, if this is one.

    Raises:
        ConfigError: one that a ``VecEnv`` wrapper is around, which would see none of the turns.
    """
    if isinstance(env, TextVecEnv):
        return env
    if isinstance(env.unwrapped, TextVecEnv):
        raise ConfigError(
            f"{type(env).__name__} is around an environment of conversations, whose turns it would not see: wrap the "
            "environments that wrap_text_env is given instead (gymnasium.Wrapper)"
        )
    return None


@dataclass
class _Open:
    """An episode that is being generated.

    Attributes:
        number: the episode's number.
        episode: what there is of it.
        turn: ids of the policy's turn so far.
        context: the ids before that turn.
        fresh: True where the policy read nothing before these.
        noise: uniforms, one for each token of the policy's.
        ended: for each turn, whether EOS or a stop sequence ended it.
        texts: of the policy's turns.
        terms: sums of the reward's terms.
    """

    number: int
    episode: Episode
    context: list[int]
    noise: Any
    fresh: bool = True
    turn: list[int] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)


def episode_seed(seed: int, first_episode: int, group: int) -> int:
    """The seed that the environment is reset with; the episodes of a group share it.

    An episode depends on nothing that came before it, so that training goes on exactly from a checkpoint.

    Args:
        seed: the agent's.
        first_episode: number of the rollout's first episode.
        group: number of the group in the rollout.
    """
    return int(np.random.SeedSequence((seed, 3, first_episode, group)).generate_state(1)[0])


def collect_conversations(
    env: TextVecEnv, policy: LMPolicy, seed: int, first_episode: int, per_slot: int, *, group_size: int = 1,
    greedy: frozenset[int] = frozenset(),
) -> list[Episode]:  # fmt: skip
    """Generate ``per_slot`` conversations in every slot; a slot whose conversation has ended begins its next one at once.

    Args:
        env: the environment.
        policy: generates the turns.
        seed: of the noise and of the environment's resets.
        first_episode: number of the first episode; the ``k``-th of slot ``i`` is number ``first_episode + k * num_envs + i``.
        per_slot: episodes per slot.
        group_size: episodes in a row whose environments are reset with the same seed.
        greedy: slots that take the most probable tokens.

    Returns:
        ``per_slot * num_envs`` episodes, in the order of their numbers.
    """
    collector = _Collector(env, policy, seed, first_episode, group_size, greedy)
    episodes = collector.run(per_slot)
    if env.reward is None:
        collector.add_bootstraps()
    else:
        _score(env.reward, episodes)
    return episodes


def _score(reward: TermReward, episodes: list[Episode]) -> None:
    """Pay the reward of whole conversations at their last tokens, in the place of the environment's; nothing comes after it."""
    scored, infos = score_conversations(reward, [Played.of(episode.info) for episode in episodes])
    for episode, value, info in zip(episodes, scored.values.tolist(), infos, strict=True):
        episode.rewards = [*[0.0] * (len(episode.response_ids) - 1), value]
        episode.info.pop("reward_skipped", None)  # the environment's, which nobody learns from
        episode.info |= {"episode": {**episode.info["episode"], "r": value}, **info}


class _Collector:
    """The state of :func:`collect_conversations`."""

    def __init__(
        self, env: TextVecEnv, policy: LMPolicy, seed: int, first_episode: int, group_size: int, greedy: frozenset[int]
    ) -> None:
        self.greedy = greedy
        self.env, self.policy, self.seed, self.first, self.group_size = env, policy, seed, first_episode, group_size
        self.model = policy.language_model.decoding_copy()
        self.decoder = CachedDecoder(self.model)
        self.open: dict[int, _Open] = {}
        self.finished: dict[int, Episode] = {}
        # Episodes whose value the future has: the state, and our last tokens in it.
        self.cut: list[tuple[Episode, list[int], int]] = []
        shape = (env.num_envs, policy.language_model.hidden_size)
        self.hidden = torch.zeros(shape, device=policy.device)

    def run(self, per_slot: int) -> list[Episode]:
        """Generate ``per_slot`` episodes in every slot."""
        n = self.env.num_envs
        waiting = [list(range(self.first + i, self.first + per_slot * n, n)) for i in range(n)]
        while self.open or any(waiting):
            fresh = [slot for slot in range(n) if slot not in self.open and waiting[slot]]
            if fresh:
                self._begin({slot: waiting[slot].pop(0) for slot in fresh})
                self.hidden[fresh] = self.decoder.start(fresh, [self.env.talks[slot].ids for slot in fresh]).float()
            self._step()
        return [self.finished[number] for number in sorted(self.finished)]

    def _begin(self, numbers: dict[int, int]) -> None:
        """Begin episodes of these numbers, by slot."""
        groups = [(number - self.first) // self.group_size for number in numbers.values()]
        contexts = self.env.at_once(
            [
                partial(self.env.talks[slot].begin, seed=episode_seed(self.seed, self.first, group))
                for slot, group in zip(numbers, groups, strict=True)
            ]
        )
        for (slot, number), context in zip(numbers.items(), contexts, strict=True):
            episode = Episode(context, [], [], [], [], ended=False)
            self.open[slot] = _Open(number, episode, context, episode_uniforms(self.seed, number, _NOISE))

    def _step(self) -> None:
        """Draw a token in every slot; where it ends a turn, the environment answers."""
        live = sorted(self.open)
        tokens = self._draw(live)
        over: dict[int, bool] = {}  # slots whose turn is over, and whether EOS or a stop sequence ended it
        for slot, token in zip(live, tokens, strict=True):
            turn = self.open[slot].turn
            turn.append(token)
            ended = self.env.talks[slot].ended(turn)
            if ended or len(turn) >= self.policy.limits.max_new_tokens:
                over[slot] = ended
        replies = self._answers(over)
        going, read_on, start_over = [], [], []
        for slot in live:
            if (reply := replies.get(slot)) is not None:
                if reply.end:
                    del self.open[slot]
                    continue
                if reply.fresh:
                    start_over.append(slot)
                    continue
                if reply.context:
                    read_on.append(slot)
            going.append(slot)
        if going:
            fed = torch.tensor([self.open[slot].episode.response_ids[-1] for slot in going])
            self.hidden[going] = self.decoder.append(going, fed.to(self.policy.device)).float()
        if read_on:
            rows = [self.env.talks[slot].ids for slot in read_on]
            self.hidden[read_on] = self.decoder.extend(read_on, rows).float()
        if start_over:
            rows = [self.env.talks[slot].ids for slot in start_over]
            self.hidden[start_over] = self.decoder.start(start_over, rows).float()

    @torch.no_grad()
    def _draw(self, live: list[int]) -> list[int]:
        """Draw a token for every live slot, and note its log-probability and value."""
        policy = self.policy
        states = self.hidden[live].to(self.model.model.dtype)
        places = torch.tensor([len(self.open[slot].turn) for slot in live], device=policy.device)
        log_probs = policy.distribution(states, places, model=self.model)
        uniforms = torch.tensor([self._uniform(self.open[slot]) for slot in live], device=policy.device)
        tokens = sample_tokens(log_probs, uniforms, [slot in self.greedy for slot in live])
        chosen = log_probs.gather(-1, tokens[:, None]).squeeze(-1).tolist()
        values = policy.values(states).tolist() if policy.values_from_trunk else [0.0] * len(live)
        out: list[int] = tokens.tolist()
        for slot, token, log_prob, value in zip(live, out, chosen, values, strict=True):
            episode = self.open[slot].episode
            episode.response_ids.append(token)
            episode.log_probs.append(log_prob)
            episode.values.append(value)
        return out

    def _uniform(self, one: _Open) -> float:
        """The random number of an episode's next token."""
        place = len(one.episode.response_ids)
        if place >= len(one.noise):  # a longer row of them begins with the same ones
            one.noise = episode_uniforms(self.seed, one.number, 2 * len(one.noise))
        return float(one.noise[place])

    def _answers(self, over: dict[int, bool]) -> dict[int, Reply]:
        """Give turns to the environments, and note what they say.

        Args:
            over: slots whose turn is over, and whether EOS or a stop sequence ended it.
        """
        before = {slot: list(self.env.talks[slot].ids) for slot in over}
        for slot in over:
            one = self.open[slot]
            one.texts.append(self.env.talks[slot].read(one.turn))
        replies = self.env.answer({slot: self.open[slot].turn for slot in over})
        return {slot: self._note(slot, over[slot], before[slot], reply) for slot, reply in replies.items()}

    def _note(self, slot: int, ended: bool, before: list[int], reply: Reply) -> Reply:
        """Note what the environment says to a turn; returns it as the policy is to read it.

        Args:
            slot: the environment's.
            ended: True where EOS or a stop sequence ended the turn.
            before: the ids before the turn.
            reply: the environment's.
        """
        one = self.open[slot]
        episode, turn = one.episode, one.turn
        if self.model.encoder_decoder:  # the encoder reads all that came before a turn
            episode.turns = (*episode.turns, Turn(before, len(turn), True))
        else:
            episode.turns = (*episode.turns, Turn(one.context, len(turn), one.fresh))
        episode.rewards += reply.rewards
        one.ended.append(ended)
        for name, value in reply.info.get("reward_terms", {}).items():
            one.terms[name] = one.terms.get(name, 0.0) + float(value)
        one.turn, one.context, one.fresh = [], reply.context, reply.fresh
        if reply.end:
            self._end(slot, reply, before, turn)
        elif self.model.encoder_decoder:
            reply = Reply(reply.context, True, reply.rewards, reply.end, reply.info)
        return reply

    def _end(self, slot: int, reply: Reply, before: list[int], turn: list[int]) -> None:
        one, talk = self.open[slot], self.env.talks[slot]
        episode = one.episode
        episode.end, episode.ended = reply.end, all(one.ended)
        info = dict(reply.info)
        info["prompt"] = next((m["content"] for m in talk.messages if m["role"] == "user"), "")
        info["response"] = "\n".join(one.texts)
        if one.terms:
            info["reward_terms"] = one.terms
        info["episode"] = {"r": episode.score, "l": len(episode.response_ids), "t": 0.0}
        episode.info = info
        self.finished[one.number] = episode
        scored_whole = self.env.reward is not None
        if reply.end != "terminated" and self.policy.value_head is not None and not scored_whole:
            # An unscored limit: the value function estimates the rewards that would have come.
            state = list(reply.context) if reply.fresh and reply.context else [*before, *turn, *reply.context]
            self.cut.append((episode, state, 0 if reply.context else len(turn)))

    def add_bootstraps(self) -> None:
        """Estimate what would have come after the episodes that were cut."""
        size = self.env.num_envs
        for begin in range(0, len(self.cut), size):
            episodes, rows, generated = zip(*self.cut[begin : begin + size], strict=True)
            values = self.policy.state_values(list(rows), list(generated)).tolist()
            for episode, value in zip(episodes, values, strict=True):
                episode.bootstrap = value
