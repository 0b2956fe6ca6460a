"""`rlhf-gym plan`: the memory that a run's training takes, and what would make it fit."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import Config

if TYPE_CHECKING:
    from rlhf_gym.loop.memory_plan import MemoryPlan

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def print_plan(config: Config, options: argparse.Namespace) -> int:
    """Print what holds memory, the peak of each phase, and whether it fits.

    Args:
        config: the run's configuration.
        options: the command line's.

    Returns:
        The exit code: 1 where nothing makes the run fit.

    Raises:
        ConfigError: a number of tokens or processes below 1, a size that is none, or processes that a run would refuse.
    """
    from rlhf_gym.agents.common.ranks import Ranks
    from rlhf_gym.loop.memory_plan import RESERVE, plan_memory, smaller

    response = options.response_tokens
    if response is None:
        response = config.task.max_new_tokens or 64
    if min(options.prompt_tokens, response) < 1:
        raise ConfigError("--prompt-tokens and --response-tokens must be at least 1")
    if options.processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {options.processes}")
    if options.parts and options.processes == 1:
        raise ConfigError(
            "--parts: a single process keeps all weights; give --processes N, the number that share them out"
        )
    ranks = Ranks(0, options.processes, sharded=options.parts)
    room = None if options.memory is None else bytes_of(options.memory)

    def planned(config: Config) -> MemoryPlan:
        return plan_memory(config, prompt_tokens=options.prompt_tokens, response_tokens=response, ranks=ranks)

    plan = planned(config)
    print(
        f"{config.model.name}: {plan.parameters:,} parameters, {plan.trainable:,} of them learn; agent {config.agent.name}"
    )
    print(f"prompts of {options.prompt_tokens} tokens, responses of {response}, {config.agent.environments} at once")
    if ranks.size > 1:
        weights = "parts of the weights, whole but in the optimizer's steps" if ranks.sharded else "all weights"
        print(f"each of {ranks.size} processes, with {weights}:")
    print()
    rows = [("Python and libraries", plan.libraries)] if plan.libraries else []
    for name, size in [*rows, *plan.held.items()]:
        print(f"  {name:<24}{in_words(size):>10}")
    print("\npeak of each phase, " + ("what it needs of that included:" if ranks.sharded else "all of that included:"))
    for name, size in plan.phases.items():
        print(f"  {name:<24}{in_words(plan.libraries + size):>10}")
    print(f"\nat most {in_words(plan.peak)}, with {RESERVE:.0%} for kernels and the allocator's reserve")
    if plan.peak_resumed > plan.peak:
        print(f"and {in_words(plan.peak_resumed)} while --resume loads a checkpoint, whose moments come whole")
    if room is None:
        return 0
    if plan.peak <= room:
        print(f"\nIt fits in {options.memory}{_exception(plan, room)}.")
        return 0
    print(f"\nIt does not fit in {options.memory}. Each change with those before it:")
    for changes, other in smaller(config, ranks):
        plan = planned(other)
        print(f"  --set {changes[-1]:<40} {in_words(plan.peak):>10}")
        if plan.peak <= room:
            print("\nIt fits with " + " ".join(f"--set '{change}'" for change in changes) + _exception(plan, room))
            return 0
    parts = ", or --parts" if ranks.size > 1 and not ranks.sharded else ""
    print(f"\nNo setting makes it fit: take a smaller model, fewer n_envs, or shorter responses{parts}.")
    return 1


def _exception(plan: MemoryPlan, room: int) -> str:
    """What does not fit, of a run that does."""
    return "" if plan.peak_resumed <= room else f"; --resume does not, which takes {in_words(plan.peak_resumed)}"


def bytes_of(text: str) -> int:
    """The bytes of a size: ``24GB``, ``512MiB``, ``8e9``.

    Args:
        text: a number, with a unit or without.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?", text.strip(), re.IGNORECASE)
    try:
        assert found is not None
        return int(float(found[1]) * UNITS[found[2].upper()])
    except (AssertionError, KeyError, OverflowError, ValueError):
        raise ConfigError(f"--memory: expected a size such as 24GB or 512MiB, got {text!r}") from None


def in_words(size: int) -> str:
    """A number of bytes for readers: ``1.5 GiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
