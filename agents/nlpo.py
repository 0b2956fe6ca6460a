"""PPO that draws from the nucleus of a lagging copy of itself (Ramamurthy et al. 2023, "NLPO", algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.collect import SteppingCollector
from rlhf_gym.agents.common.policy import LMPolicy, observed_rows
from rlhf_gym.agents.common.predictor import CachedPredictor
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import (
    ActorCriticSettings,
    ClipSettings,
    EntropySettings,
    ValueClipSettings,
    ValueLossSettings,
)
from rlhf_gym.agents.ppo import PPO
from rlhf_gym.lm.decoding import CachedDecoder
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.response_log_probs import masked_logits
from rlhf_gym.lm.sampling import sample_tokens, top_p_mask

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import NLPOKeywords


@dataclass(frozen=True, kw_only=True)
class NLPOSettings(ActorCriticSettings, ClipSettings, EntropySettings, ValueClipSettings, ValueLossSettings):
    """The settings of NLPO: PPO's without ``collect``, and those of the mask."""

    n_epochs: int = setting(2)
    clip_range: float | Schedule = setting(0.2, "the ratio is clipped at `1 - clip_range`")
    mask_top_p: float = setting(
        0.98, "mass of the lagging policy that its set holds at least; 1 is PPO", above=0, at_most=1,
        source="Ramamurthy et al. 2023",
    )  # fmt: skip
    mask_refresh: int = setting(
        10, "iterations after which the lagging policy becomes the policy as it then is (mu in the paper)", at_least=1
    )


class NLPO(PPO):
    """PPO over fewer actions: at each token only the top-p set of a lagging copy of the policy may be written.

    The set is found once, when a token is written, and kept with the episode; sampling, learning and the reference all
    renormalise over it, so the first ratio is 1, and ``objective/kl`` compares policy and reference within it. Minimum
    lengths and the environment's own masks come first: the set is the nucleus of what they leave. :meth:`predict` keeps to it,
    too. As the set needs the lagging copy's state at each token, responses are always written by stepping.

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's.
        settings: see :class:`NLPOSettings`.

    Attributes:
        lagging: the policy that masks.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = NLPOSettings

    mask_top_p: float
    mask_refresh: int
    collect = "step"

    if TYPE_CHECKING:

        def __init__(
            self, policy: str = "LMPolicy", env: GymEnv | str | None = None, **settings: Unpack[NLPOKeywords]
        ) -> None: ...

    def _setup_model(self) -> None:
        super()._setup_model()
        self.lagging = self.policy.language_model.frozen_copy()
        self.policy.mask_network = self.lagging.model  # a checkpoint holds it with the policy's other weights
        self._lagging_predictor = CachedPredictor(self.lagging)

    def stepping_collector(self, env: VecEnv) -> NucleusCollector:
        """Steps within the lagging policy's set."""
        assert self.seed is not None
        return NucleusCollector(env, self.policy, self.seed, self.lagging, self.mask_top_p)

    def after_learning(self, rollout: Rollout) -> None:
        """Every ``mask_refresh`` iterations, bring the lagging policy up to date."""
        super().after_learning(rollout)
        kept = np.concatenate([np.unpackbits(e.masks, axis=1).sum(1) for e in rollout.episodes if e.masks is not None])
        self.logger.record("masks/allowed_tokens", float(kept.mean()))
        if (self.iteration + 1) % self.mask_refresh == 0:
            self.lagging.model.load_state_dict(self.policy.language_model.model.state_dict())

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The next token of one observation or of a batch, from the lagging policy's set; see ``LMPolicy.predict``."""
        if not isinstance(observation, dict):
            return self.policy.predict(observation)  # says what it expects
        single = np.ndim(observation["ids"]) == 1
        batch = {key: np.atleast_2d(value) for key, value in observation.items()}
        rows, positions = observed_rows(batch, self.policy.language_model.device)
        with torch.no_grad():
            hidden = self._lagging_predictor.last_hidden(rows, positions.tolist())
            allowed = nucleus(self.policy, self.lagging, hidden, positions, self.mask_top_p)
            hidden = self.policy._predictor.last_hidden(rows, positions.tolist())
            log_probs = self.policy.distribution(hidden, positions, allowed)
            if deterministic:
                tokens = log_probs.argmax(-1)
            else:
                tokens = sample_tokens(log_probs, torch.rand(len(rows), dtype=torch.float64).to(hidden.device))
        actions = tokens.cpu().numpy()
        return (actions[0] if single else actions), state


def nucleus(
    policy: LMPolicy, lagging: LanguageModel, hidden: Tensor, positions: Tensor, p: float, allowed: Tensor | None = None
) -> Tensor:
    """The top-p set of the lagging policy among what may be written at all.

    Args:
        policy: its limits and temperature hold.
        lagging: whose probabilities count.
        hidden: ``[n, D]``, the lagging policy's states before each token.
        positions: int64 ``[n]``, response tokens written before.
        p: mass to keep.
        allowed: bool ``[n, V]``, the environment's masks, or None.

    Returns:
        bool ``[n, V]``, at least one True a row, each of them allowed.
    """
    logits = masked_logits(lagging, hidden, positions, policy.limits, allowed) / policy.sampling.temperature
    possible = logits > -torch.inf
    # At p = 1 rounding would leave out the least probable tokens; near it, let in some that are forbidden.
    return possible & top_p_mask(logits, p) if p < 1 else possible


class NucleusCollector(SteppingCollector):
    """Steps as its base does, the lagging policy's set laid over the environment's masks.

    Args:
        env: any VecEnv of token observations.
        policy: writes the responses.
        seed: seed of the noise.
        lagging: the policy that masks.
        p: mass that its set holds at least.
    """

    def __init__(self, env: VecEnv, policy: LMPolicy, seed: int, lagging: LanguageModel, p: float) -> None:
        super().__init__(env, policy, seed)
        self.lagging = lagging
        self.p = p

    def collect(self, first_episode: int, rounds: int, observation: Any) -> list[Episode]:
        """As the base's; the lagging policy starts over, since its weights may have changed."""
        self._decoder = CachedDecoder(self.lagging)
        return super().collect(first_episode, rounds, observation)

    def _act(self, live: list[int], open_: list[Episode | None], hidden: Tensor, noise: list[Any]) -> Any:
        episodes = [episode for i in live if (episode := open_[i])]
        device = self.policy.device
        going = [k for k, episode in enumerate(episodes) if episode.response_ids]
        fresh = [k for k, episode in enumerate(episodes) if not episode.response_ids]
        states: dict[int, Tensor] = {}
        if going:  # first, for it lets the slots go that are not named
            tokens = torch.tensor([episodes[k].response_ids[-1] for k in going], device=device)
            states |= dict(zip(going, self._decoder.append([live[k] for k in going], tokens), strict=True))
        if fresh:
            prompts = [episodes[k].prompt_ids for k in fresh]
            states |= dict(zip(fresh, self._decoder.start([live[k] for k in fresh], prompts), strict=True))
        self._states = torch.stack([states[k] for k in range(len(live))])
        self._positions = torch.tensor([len(episode.response_ids) for episode in episodes], device=device)
        return super()._act(live, open_, hidden, noise)

    def _masks(self, live: list[int]) -> NDArray[np.bool_] | None:
        """What the environment allows, and of that the set."""
        own = super()._masks(live)
        allowed = None if own is None else torch.as_tensor(own, device=self.policy.device)
        kept = nucleus(self.policy, self.lagging, self._states, self._positions, self.p, allowed)
        return np.asarray(kept.cpu().numpy(), dtype=np.bool_)
