"""Settings that do not go with the processes that learn together: refused by a run, and by a plan of one."""

from __future__ import annotations

from rlhf_gym.agents import ES
from rlhf_gym.agents.common.optimizer import check_parts
from rlhf_gym.agents.common.ranks import Ranks, check_divides
from rlhf_gym.agents.es import check_alone
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.config import Config


def check_processes(ranks: Ranks, config: Config) -> None:
    """Refuse processes that the agent, the number of environments or the optimizer does not go with.

    Args:
        ranks: the processes.
        config: the configuration.

    Raises:
        ConfigError: with the reason.
    """
    cls = find_agent(config.agent.name)
    if issubclass(cls, ES):
        check_alone(ranks)
    check_divides(ranks, config.agent.environments, int(config.agent.settings.get("group_size", cls.group_size)))
    check_parts(config.agent.settings.get("optimizer", "adamw"), ranks)
