"""No reference where nothing needs one: none is copied, run or saved, and nothing pretends to have measured a KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ppo_setups import assert_same_weights, learn, letters_env, small_agent, small_ppo, weights
from tiny_models import tiny_language_model

from rlhf_gym.agents import A2C, GRPO, GSPO, NLPO, PPO, RAFT, RLOO, SFT, TRPO, OnlineDPO
from rlhf_gym.agents.common.completions import as_table
from rlhf_gym.agents.common.traces import traces
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel

QUICK: dict[str, Any] = {"task": {"limit": 4}, "kl_coef": 0.0}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PPO, {}), (PPO, {"kl_in": "loss", "lora": {"rank": 2}}), (A2C, {"top_k": 4}), (NLPO, {}), (TRPO, {"cg_steps": 1}),
        (GSPO, {}), (RLOO, {"old_log_probs": "recompute"}), (RAFT, {}),
    ],
)  # fmt: skip
def test_none_is_made_or_run_or_saved(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    copies = []
    frozen_copy = LanguageModel.frozen_copy

    def counted(self: LanguageModel) -> LanguageModel:
        copies.append(self)
        return frozen_copy(self)

    with patch.object(LanguageModel, "frozen_copy", counted):
        agent = small_agent(kind, **QUICK, **options)
    assert agent.reference is None
    lagging_or_values = kind in (NLPO, TRPO)
    assert len(copies) == int(lagging_or_values or "lora" in options)  # the adapter is put on a copy, too
    (row,) = learn(agent, None, iterations=1)
    assert not {name for name in row if name.startswith("objective/kl") and name != "objective/kl_coef"}
    assert row["objective/non_score_reward"] == 0
    assert agent.rollout is not None
    assert not agent.rollout.has_reference
    shown = traces(agent, 1)
    assert (shown[0].kl, shown[0].kls) == (None, None)
    as_table(shown, "completions")
    agent.save(tmp_path / "agent.zip")
    base = {"language_model": tiny_language_model()} if "lora" in options else {}
    again = kind.load(tmp_path / "agent.zip", env=letters_env(limit=4), **base)
    assert again.reference is None
    for one in (agent, again):
        learn(one, None, iterations=2, reset_num_timesteps=False)
    assert_same_weights(weights(agent), weights(again))
    with pytest.raises(ConfigError, match=r"holds no reference.*load\(path, reference=\.\.\.\)"):
        kind.load(tmp_path / "agent.zip", env=letters_env(limit=4), kl_coef=0.1, **base)
    moved = {"kl_coef": 0.1, "reference": tiny_language_model(seed=1)}
    given = kind.load(tmp_path / "agent.zip", env=letters_env(limit=4), **moved, **base)
    assert given.reference is not None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PPO, {"kl_limit": 100.0}), (PPO, {"reference": tiny_language_model(seed=1)}),
        (PPO, {"lora": {"rank": 2}, "reference": "base"}), (OnlineDPO, {}), (GRPO, {"kl_coef": 0.01}),
    ],
)  # fmt: skip
def test_one_is_kept_where_it_is_needed_or_given(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    given = {name: value for name, value in (QUICK | options).items() if name != "kl_coef" or kind is not OnlineDPO}
    agent = small_ppo(**given) if kind is PPO else kind(
        env=letters_env(limit=4), language_model=tiny_language_model(), seed=0,
        **{name: value for name, value in given.items() if name != "task"},
    )  # fmt: skip
    (row,) = learn(agent, None, iterations=1)
    assert row["objective/kl"] == pytest.approx(float(agent.rollout.kl.sum(1).mean()))
    agent.save(tmp_path / "agent.zip")
    base = {"language_model": tiny_language_model()} if "lora" in options else {}
    again = kind.load(tmp_path / "agent.zip", env=letters_env(limit=4), **base)
    assert again.settings.reference == agent.settings.reference
    for one in (agent, again):
        one_row = learn(one, None, iterations=2, reset_num_timesteps=False)[-1]
        assert "objective/kl" in one_row
    torch.testing.assert_close(agent.rollout.kl, again.rollout.kl, atol=0, rtol=0)


def test_supervised_learning_has_none_unless_it_is_given() -> None:
    made: dict[str, Any] = {"data": [("abc", "de")] * 4, "language_model": tiny_language_model(), "seed": 0}
    alone = SFT(env=letters_env(4), **made)
    assert alone.reference is None
    assert "objective/kl" not in learn(alone, None, iterations=1)[0]
    assert (
        "objective/kl" in learn(SFT(env=letters_env(4), **made, reference=tiny_language_model()), None, iterations=1)[0]
    )
