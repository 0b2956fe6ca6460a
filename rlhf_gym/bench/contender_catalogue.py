"""Contenders by name: the agents of a run, the baselines, trainers from outside. Importing this file imports none of them."""

from __future__ import annotations

from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.agent_catalogue import AGENTS
from rlhf_gym.objects import is_place, load_object
from rlhf_gym.text import nearest

CONTENDERS = {
    "untrained": "rlhf_gym.bench.baselines:Untrained",
    "random": "rlhf_gym.bench.baselines:RandomTokens",
    "best_of_n": "rlhf_gym.bench.baselines:BestOfSamples",
    "sft_best": "rlhf_gym.bench.baselines:SFTOnBest",
    "trl_grpo": "rlhf_gym.bench.trl_contender:TRLGRPO",
    "trl_rloo": "rlhf_gym.bench.trl_contender:TRLRLOO",
    "sb3_ppo": "rlhf_gym.bench.sb3_contender:StockPPO",
    "sb3_a2c": "rlhf_gym.bench.sb3_contender:StockA2C",
    "sb3_maskable_ppo": "rlhf_gym.bench.sb3_contender:StockMaskablePPO",
}
"""Contenders that are no agents of a run: name, place of the class."""

NOT_COMPARED = ("sft", "preference_optimization", "ilql")
"""Agents of a run that learn from given responses, which a suite's task need not have."""


def known_contenders() -> list[str]:
    """The names of all contenders that come with the package."""
    return [*(name for name in AGENTS if name not in NOT_COMPARED), *CONTENDERS]


def find_contender(agent: str) -> Any:
    """Find a contender's class.

    Args:
        agent: a name of :data:`CONTENDERS`, an agent of a run, or the place of either of one's own.

    Returns:
        A class with ``train(bench)``, as :class:`~rlhf_gym.bench.contender.Contender` says; None for an agent of a run.

    Raises:
        ConfigError: there is none of that name, or what is there is no contender.
    """
    if agent in CONTENDERS:
        return load_object(CONTENDERS[agent], kind="contender")
    if agent in AGENTS:
        return None
    if not is_place(agent):
        known = known_contenders()
        raise ConfigError(f"there is no contender {agent!r}{nearest(agent, known)} Expected one of {', '.join(known)}")
    found = load_object(agent, kind="contender")
    from rlhf_gym.agents import TokenAlgorithm

    if isinstance(found, type) and issubclass(found, TokenAlgorithm):
        return None
    if not callable(getattr(found, "train", None)):
        raise ConfigError(
            f"contender {agent!r} is neither an agent (a subclass of rlhf_gym.agents.TokenAlgorithm) nor a class with "
            "train(bench): see docs/bench.md"
        )
    return found
