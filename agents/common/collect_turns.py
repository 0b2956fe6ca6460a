"""Collecting conversations: all slots decode together, whatever turn they are in, and what a slot has read stays cached.

Slow environments answer in threads, and slots whose turn it is are decoded meanwhile. An episode draws from random numbers of
its own: the order in which answers come changes nothing but the rounding of differently shaped batches.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Turn
from rlhf_gym.envs.side_by_side import Beside
from rlhf_gym.envs.talk_scoring import Played, score_conversations
from rlhf_gym.envs.talks import Reply
from rlhf_gym.envs.text_vec_env import TextVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.decoding import CachedDecoder
from rlhf_gym.lm.sampling import episode_uniforms
from rlhf_gym.lm.sequences import index_on
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
        noise: uniforms, one for each token of the policy's.
        turn: ids of the policy's turn so far.
        context: the ids before that turn.
        fresh: True where the policy read nothing before these.
        before: all ids that the policy had read before the turn that the environment was given.
        prompt: the number of the environment's prompt; None where it has none.
        ended: for each turn, whether EOS or a stop sequence ended it.
        texts: of the policy's turns.
        terms: sums of the reward's terms.
    """

    number: int
    episode: Episode
    noise: Any
    turn: list[int] = field(default_factory=list)
    context: list[int] = field(default_factory=list)
    fresh: bool = True
    before: list[int] = field(default_factory=list)
    prompt: int | None = None
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
        group_size: episodes in a row whose environments are reset with the same seed, and the same prompt.
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
    """Pay the reward of whole conversations, in the place of the environment's; nothing comes after it.

    It is paid at their last tokens; a reward of tokens or steps at those that it belongs to.
    """
    scored, infos = score_conversations(reward, [Played.of(episode.info) for episode in episodes])
    for episode, value, info in zip(episodes, scored.values.tolist(), infos, strict=True):
        episode.rewards = [*[0.0] * (len(episode.response_ids) - 1), value]
        episode.info.pop("reward_skipped", None)  # the environment's, which nobody learns from
        episode.info |= {"episode": {**episode.info["episode"], "r": value}, **info}
        episode.spread()


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
        self.beside: Beside[list[int] | Reply] = Beside(env.slow)
        self.finished: dict[int, Episode] = {}
        # Episodes whose value the future has: the state, and our last tokens in it.
        self.cut: list[tuple[Episode, list[int], int]] = []
        shape = (env.num_envs, policy.language_model.hidden_size)
        self.hidden = torch.zeros(shape, device=policy.device)

    def run(self, per_slot: int) -> list[Episode]:
        """Generate ``per_slot`` episodes in every slot."""
        n = self.env.num_envs
        waiting = [deque(range(self.first + i, self.first + per_slot * n, n)) for i in range(n)]
        with self.beside:
            drawn: list[int] = []  # slots with a token that the model has not read
            while True:
                heard = self._hear(waiting)
                if not self.open:
                    break
                self._read(drawn, heard)
                drawn = self._speak()
        return [self.finished[number] for number in sorted(self.finished)]

    def _hear(self, waiting: list[deque[int]]) -> dict[int, list[int] | Reply]:
        """Begin episodes in slots that have none, and take what environments say; wait only where no slot can go on.

        Args:
            waiting: of each slot, the numbers of the episodes that it has not begun.

        Returns:
            The first messages of episodes that began, and replies after which they go on, by slot.
        """
        heard: dict[int, list[int] | Reply] = {}
        while True:
            for slot, numbers in enumerate(waiting):
                if slot not in self.open and numbers:
                    self._begin(slot, numbers.popleft())
            for slot, said in self.beside.take(wait=self.beside.asked == self.open.keys()).items():
                one = self.open[slot]
                if not isinstance(said, Reply):
                    one.context = one.episode.prompt_ids = said
                    heard[slot] = said
                elif (reply := self._note(slot, said)).end:
                    del self.open[slot]
                else:
                    heard[slot] = reply
            if any(numbers and slot not in self.open for slot, numbers in enumerate(waiting)):
                continue  # episodes have ended, and others can begin
            if not self.open or self.beside.asked != self.open.keys():
                return heard

    def _begin(self, slot: int, number: int) -> None:
        """Reset a slot's environment, for the episode of this number."""
        group = (number - self.first) // self.group_size
        episode = Episode([], [], [], [], [], ended=False)
        one = self.open[slot] = _Open(number, episode, episode_uniforms(self.seed, number, _NOISE))
        options = None
        if self.env.prompts is not None:
            one.prompt = self.env.prompts.number(self.seed, self.first // self.group_size + group)
            options = {"prompt": one.prompt}
        seed = episode_seed(self.seed, self.first, group)
        self.beside.ask(slot, partial(self.env.talks[slot].begin, seed=seed, options=options))

    def _read(self, drawn: list[int], heard: dict[int, list[int] | Reply]) -> None:
        """Have the model read what was drawn, and what environments said.

        Args:
            drawn: slots that were decoded last.
            heard: what environments said, by slot.
        """
        replies = {slot: said for slot, said in heard.items() if isinstance(said, Reply)}
        # A reply that came at once is read behind the turn's last token, one that came later together with it.
        at_once = [s for s, reply in replies.items() if s in drawn and not reply.fresh]
        read_on = [s for s, reply in replies.items() if not reply.fresh and (reply.context or s not in drawn)]
        live = self.open.keys() - self.beside.asked
        if going := sorted([*at_once, *(s for s in drawn if s in live and s not in heard)]):
            fed = torch.tensor([self.open[slot].episode.response_ids[-1] for slot in going])
            held = [
                s
                for s in (*sorted(self.beside.asked), *read_on)
                if s not in going and self.open[s].episode.response_ids
            ]
            fed = fed.to(self.policy.device, non_blocking=True)
            self.hidden[self._index(going)] = self.decoder.append(going, fed, held).float()
        start_over = [slot for slot, reply in replies.items() if reply.fresh]
        begun = [slot for slot in heard if slot not in replies]
        for read, slots in (
            (self.decoder.extend, read_on),
            (self.decoder.start, start_over),
            (self.decoder.start, begun),
        ):
            if slots:
                self.hidden[self._index(slots)] = read(slots, [self.env.talks[slot].ids for slot in slots]).float()

    def _speak(self) -> list[int]:
        """Draw a token in every slot whose turn it is, and give turns that end to the environments; returns the slots."""
        live = sorted(self.open.keys() - self.beside.asked)
        for slot, token in zip(live, self._draw(live), strict=True):
            one, talk = self.open[slot], self.env.talks[slot]
            one.turn.append(token)
            ended = talk.ended(one.turn)
            if ended or len(one.turn) >= self.policy.limits.max_new_tokens:
                one.ended.append(ended)
                one.texts.append(talk.read(one.turn))
                one.before = list(talk.ids)
                self.beside.ask(slot, partial(talk.answer, one.turn))
        return live

    def _draw(self, live: list[int]) -> list[int]:
        """Draw a token for every live slot, and note its log-probability and value."""
        states = self.hidden[self._index(live)].to(self.model.model.dtype)
        places = [len(self.open[slot].turn) for slot in live]
        uniforms = [self._uniform(self.open[slot]) for slot in live]
        drawn = self.policy.draw(states, places, uniforms, [slot in self.greedy for slot in live], model=self.model)
        for slot, token, log_prob, value in zip(live, *drawn, strict=True):
            episode = self.open[slot].episode
            episode.response_ids.append(token)
            episode.log_probs.append(log_prob)
            episode.values.append(value)
        return drawn[0]

    def _index(self, slots: list[int]) -> Tensor:
        return index_on(self.hidden.device, slots)

    def _uniform(self, one: _Open) -> float:
        """The random number of an episode's next token."""
        place = len(one.episode.response_ids)
        if place >= len(one.noise):  # a longer row of them begins with the same ones
            one.noise = episode_uniforms(self.seed, one.number, 2 * len(one.noise))
        return float(one.noise[place])

    def _note(self, slot: int, reply: Reply) -> Reply:
        """Note what the environment says to a turn; returns it as the policy is to read it.

        Args:
            slot: the environment's.
            reply: the environment's.
        """
        one = self.open[slot]
        episode, turn = one.episode, one.turn
        if self.model.encoder_decoder:  # the encoder reads all that came before a turn
            episode.turns = (*episode.turns, Turn(one.before, len(turn), True))
        else:
            episode.turns = (*episode.turns, Turn(one.context, len(turn), one.fresh))
        if reply.earlier:
            episode.rewards = [paid + more for paid, more in zip(episode.rewards, reply.earlier, strict=True)]
        episode.rewards += reply.rewards
        for name, value in reply.info.get("reward_terms", {}).items():
            one.terms[name] = one.terms.get(name, 0.0) + float(value)
        one.turn, one.context, one.fresh = [], reply.context, reply.fresh
        if reply.end:
            self._end(slot, reply, turn)
        elif self.model.encoder_decoder:
            reply = replace(reply, fresh=True)
        return reply

    def _end(self, slot: int, reply: Reply, turn: list[int]) -> None:
        one, talk = self.open[slot], self.env.talks[slot]
        episode = one.episode
        episode.end, episode.ended = reply.end, all(one.ended)
        info = dict(reply.info)
        info["prompt"] = next((m["content"] for m in talk.messages if m["role"] == "user"), "")
        info["response"] = "\n".join(one.texts)
        if one.prompt is not None:
            info["prompt_number"] = one.prompt
        if one.terms:
            info["reward_terms"] = one.terms
        info["episode"] = {"r": episode.score, "l": len(episode.response_ids), "t": 0.0}
        episode.info = info
        self.finished[one.number] = episode
        scored_whole = self.env.reward is not None
        if reply.end != "terminated" and self.policy.value_head is not None and not scored_whole:
            # An unscored limit: the value function estimates the rewards that would have come.
            state = list(reply.context) if reply.fresh and reply.context else [*one.before, *turn, *reply.context]
            self.cut.append((episode, state, 0 if reply.context else len(turn)))

    def add_bootstraps(self) -> None:
        """Estimate what would have come after the episodes that were cut."""
        size = self.env.num_envs
        for begin in range(0, len(self.cut), size):
            episodes, rows, generated = zip(*self.cut[begin : begin + size], strict=True)
            values = self.policy.state_values(list(rows), list(generated)).tolist()
            for episode, value in zip(episodes, values, strict=True):
                episode.bootstrap = value
