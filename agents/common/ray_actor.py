"""The worker's side of rollouts on Ray: generates and scores episodes by number and prompt, with the weights it is sent.

What it returns depends on nothing that it has done before, so any worker can do another's work again.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_gym.agents.common.collect import episode_of, note_score, observed_ids
from rlhf_gym.agents.common.ranks import Failure, failure_of
from rlhf_gym.agents.common.ray_packing import Packed, unpacked
from rlhf_gym.agents.common.share_queue import Drawn, Share
from rlhf_gym.agents.common.value_head import ValueHead
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.lm.engines.builtin_engine import BuiltinEngine
from rlhf_gym.lm.engines.engine import ResponseSettings
from rlhf_gym.lm.language_model import LanguageModel


@dataclass(frozen=True)
class Replica:
    """What a worker needs to generate as the learner would.

    Attributes:
        env: an environment that only appends tokens, with its reward.
        model: the model that learns.
        value_head: gives values in the pass that generates; None for none.
        settings: what responses are drawn with.
        seed: of the noise.
    """

    env: TokenVecEnv
    model: LanguageModel
    value_head: ValueHead | None
    settings: ResponseSettings
    seed: int


def learned_weights(model: LanguageModel, value_head: ValueHead | None) -> dict[str, Tensor]:
    """The tensors that change while an agent learns, by names that are the same in a replica.

    Args:
        model: the model that learns.
        value_head: the value head, if workers have it.

    Returns:
        Tensors of any shape ``[...]``.
    """
    weights = {f"model.{name}": weight for name, weight in model.model.named_parameters() if weight.requires_grad}
    # Its unit is measured: no parameter, and yet it changes.
    head = {} if value_head is None else value_head.state_dict()
    return weights | {f"value_head.{name}": tensor for name, tensor in head.items()}


def pack_weights(weights: Mapping[str, Tensor]) -> dict[str, Packed]:
    """Copies of weights ``[...]``, whatever their dtype and device, as bytes: uint8 ``[n]`` each."""
    return {
        name: weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for name, weight in weights.items()
    }


@torch.no_grad()
def unpack_weights(packed: Mapping[str, Packed], weights: Mapping[str, Tensor]) -> None:
    """Copy packed weights into weights of the same names, shapes and dtypes.

    Args:
        packed: as :func:`pack_weights` returns them.
        weights: ``[...]`` each; are written to.
    """
    for name, weight in weights.items():
        weight.copy_(torch.tensor(packed[name]).view(weight.dtype).view(weight.shape))


class RolloutActor:
    """An actor of Ray that generates episodes.

    Failures are returned, not raised: the learner prints them as its own.
    """

    def prepare(self, replica: Packed, device: str) -> str | Failure:
        """Load what it generates with.

        Args:
            replica: a :class:`Replica`, packed.
            device: where the model is to be.

        Returns:
            Where it runs, for people.
        """
        try:
            self.replica: Replica = unpacked(replica, device)
            self.engine = BuiltinEngine(self.replica.value_head)
            self.label = (-1, -1)
        except Exception as error:
            return failure_of(error)
        return f"{socket.gethostname()}, process {os.getpid()}"

    def draw(self, share: Share, label: tuple[int, int], weights: dict[str, Packed]) -> Drawn | Failure:
        """Generate and score the episodes of a share.

        Args:
            share: their numbers and prompts.
            label: of the weights: their version, and a number that no others of this version have.
            weights: those that learn, packed.
        """
        try:
            if self.label != label:
                unpack_weights(weights, learned_weights(self.replica.model, self.replica.value_head))
                self.engine.load_weights(self.replica.model, label[0])
                self.label = label
            return self._draw(share, label[0])
        except Exception as error:
            return failure_of(error)

    def _draw(self, share: Share, version: int) -> Drawn:
        env, slots = self.replica.env, list(range(len(share.numbers)))
        spent = env.reward_seconds
        prompts = observed_ids(env.place_prompts(share.prompts))[: len(slots)]
        generations = self.engine.generate(
            prompts, self.replica.settings, seed=self.replica.seed, episodes=share.numbers
        )
        scores, infos = env.score_ended(env.end_episodes(slots, [one.ids for one in generations]))
        episodes = [episode_of(prompt, one) for prompt, one in zip(prompts, generations, strict=True)]
        for episode, score, info in zip(episodes, scores, infos, strict=True):
            note_score(episode, float(score), info)
        return Drawn(episodes, version, env.reward_seconds - spent)
