"""The parts of an iteration that ranks share out: a rollout's tables, scores, gradients; and what the ranks must agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_gym.agents.common.collect import Scoring
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.agents.common.rollout import Rollout, pad
from rlhf_gym.agents.common.settings import AgentSettings
from rlhf_gym.version import __version__

OF_A_PROCESS = ("device", "tokens_per_batch", "verbose", "tensorboard_log")
"""Settings that each rank may have of its own: they change no result."""


def fill_tables(ranks: Ranks, rollout: Rollout, names: Sequence[str], work: Callable[[Rollout], None]) -> None:
    """Fill in tables of a rollout, each rank for its share of the episodes.

    Args:
        ranks: the processes.
        rollout: the episodes, the same ones on every rank.
        names: of the tables.
        work: fills them in for the rollout that it is given, from its episodes alone.
    """
    if not ranks.shared:
        work(rollout)
        return
    rows = ranks.share(range(len(rollout.episodes)), rollout.totals)
    part = Rollout.of([rollout.episodes[i] for i in rows])

    def own() -> tuple[list[int], bool, bool, list[Tensor]]:
        if rows:
            work(part)
        return rows, part.has_reference, part.restricted, [getattr(part, name)[part.mask] for name in names]

    tables = [torch.zeros(rollout.mask.shape) for _ in names]
    for theirs, has_reference, restricted, values in ranks.gather(own):
        rollout.has_reference |= has_reference
        rollout.restricted |= restricted
        mask = rollout.mask[theirs]
        for table, numbers in zip(tables, values, strict=True):
            filled = torch.zeros(mask.shape)
            filled[mask] = numbers
            table[theirs] = filled
    for name, table in zip(names, tables, strict=True):
        setattr(rollout, name, table)


def finish_scores(ranks: Ranks, scoring: Scoring, rollout: Rollout) -> None:
    """Wait for the scores, which rank 0 asks for, and write them into the episodes and the rollout of every rank.

    Args:
        ranks: the processes.
        scoring: of this iteration.
        rollout: the episodes.

    Raises:
        RewardError: the reward failed.
    """

    def scores() -> list[tuple[list[float], bool, dict[str, Any]]]:
        scoring.finish(rollout)
        return [(episode.rewards, episode.ended, episode.info) for episode in rollout.episodes]

    found = ranks.from_main(scores)
    if not ranks.is_main:
        for episode, (rewards, ended, info) in zip(rollout.episodes, found, strict=True):
            episode.rewards, episode.ended, episode.info = rewards, ended, info
        rollout.rewards = pad(rollout.mask, [episode.rewards for episode in rollout.episodes])


def sum_tables(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums of the ranks' numbers, by name; a rank may lack some."""
    out = dict(tables[0])
    for table in tables[1:]:
        for name, number in table.items():
            out[name] = out.get(name, 0.0) + number
    return out


def check_agreement(ranks: Ranks, policy: LMPolicy, settings: AgentSettings, plan: Mapping[str, Any]) -> None:
    """Refuse ranks that would not learn the same.

    Args:
        ranks: the processes.
        policy: its weights must be the same.
        settings: the agent's.
        plan: further values by name, JSON all of them.

    Raises:
        ConfigError: they differ; it names the first value that does.
    """

    def facts() -> dict[str, Any]:
        values = {name: value for name, value in settings.as_json().items() if name not in OF_A_PROCESS}
        versions = {"the version of rlhf-gym": __version__, "the version of torch": torch.__version__}
        return {**versions, **plan, **values, "the weights (their checksum)": checksum(policy)}

    ranks.check_same(facts, "start every process with the same command, files and versions")


def check_weights(ranks: Ranks, policy: LMPolicy, where: str) -> None:
    """Refuse to go on with weights that have come apart.

    Args:
        ranks: the processes.
        policy: its weights must be the same on every rank, bit for bit.
        where: the place in training, for the message.

    Raises:
        ConfigError: they differ.
    """
    ranks.check_same(
        lambda: {f"the weights after {where} (their checksum)": checksum(policy)},
        "their processors round differently: take machines of one kind, with the same versions",
    )


@torch.no_grad()
def checksum(policy: LMPolicy) -> int:
    """A number that changes with the bits of the weights that learn; a sum of whole numbers, so no device rounds it."""
    weights = [p.detach().reshape(-1) for p in policy.parameters() if p.requires_grad]
    sums = torch.stack([weight.view(torch.int16).sum(dtype=torch.int64) for weight in weights])
    return sum((place + 1) * int(part) for place, part in enumerate(sums.tolist())) % 2**61
