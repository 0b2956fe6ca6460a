"""Every test that the documentation names as a witness exists."""

from __future__ import annotations

import re
from pathlib import Path

DOCS, TESTS = Path(__file__).parents[1] / "docs", Path(__file__).parent


def defined(file: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE))


def test_the_tests_that_hold_the_claims_are_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (DOCS / "correctness.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [f"{file}::{test}" for file, test in named if test not in defined(file)] == []


def test_the_tests_that_hold_ppos_details_are_there() -> None:
    files = {"F": "formulas", "C": "collect", "P": "ppo", "S": "sb3"}
    page = (DOCS / "ppo-details.md").read_text(encoding="utf-8")
    named = [
        (letter, test)
        for letter, group in re.findall(r"\b([FCPS])\s+((?:`\w+`(?:,\s+)?)+)", page)
        for test in re.findall(r"`(\w+)`", group)
    ]
    assert len(named) > 30
    missing = [
        f"{letter} {test}" for letter, test in named if f"test_{test}" not in defined(f"test_agents_{files[letter]}.py")
    ]
    assert missing == []


def test_every_metric_of_an_iteration_is_in_the_documentation() -> None:
    """The page of the metrics lists what the agents log, and nothing else."""
    from ppo_setups import NUM_ENVS, learn
    from test_agents_guarantees import NAMES, agent_of

    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    logged = {key for name in NAMES for row in learn(agent_of(name), NUM_ENVS) for key in row}
    logged |= set(learn(agent_of("GRPO", dynamic_sampling=True, max_resamples=1), NUM_ENVS)[0])
    logged |= set(learn(agent_of("PPO", kl_limit=1000.0, kl_in="loss", ent_target=1.0), NUM_ENVS)[0])
    logged = {key for key in logged if not key.startswith("reward/")}
    named = set(re.findall(r"`([a-z]+(?:/[a-z_]+)?)`", page)) & {
        key for key in re.findall(r"`([^`]+)`", page) if "/" in key
    }
    assert sorted(key for key in logged if f"`{key}`" not in page) == []
    not_on_policy = {
        "reward/skipped",
        "reward/left_out",
        "reward/proxy",
        "reward/gold",
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "train/loss_scale",
        "train/overflows",
        "train/value_grad_norm",
    }
    not_on_policy |= {name for name in named if name.startswith("validation/")}  # of a callback
    # Of engines and workers elsewhere.
    not_on_policy |= {name for name in named if name.startswith(("engine/", "ray/"))} | {"time/weights_seconds"}
    not_on_policy |= {name for name in named if name.startswith("conversation/")}  # see tests/test_turns.py
    assert sorted(named - logged - not_on_policy) == []
