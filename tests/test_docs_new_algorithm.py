"""The page that writes a new algorithm: its code runs, does what it says, learns, and is short."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import collected, gradient, learn, small_agent

from rlhf_gym.agents.common.forward import micro_batches
from rlhf_gym.loop.config_file import build

PAGE = Path(__file__).parents[1] / "docs" / "new-algorithm.md"


@pytest.fixture(scope="module")
def source() -> str:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) < 60
    return found[1]


@pytest.fixture(scope="module")
def kind(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(source, "new-algorithm.md", "exec"), names)
    return names["CISPO"]


def test_its_loss_is_the_papers(kind: Any) -> None:
    agent = small_agent(kind, scale=4.0, kl_coef=0.0, aggregation="token", clip_range=0.1, clip_range_high=0.1)
    rollout = collected(agent)
    rollout.log_probs = rollout.log_probs - 0.2 * rollout.mask  # as if the policy had moved: all ratios are e^0.2 > 1.1
    rows = list(range(len(rollout.episodes)))
    found = gradient(agent, rollout, rows)
    agent.policy.optimizer.zero_grad()
    total = torch.zeros(())
    for micro, logs, _, _ in micro_batches(agent.policy, rollout, rows, 4096):
        total = total - (1.1 * agent.flat(rollout.advantages, micro) * logs).sum() / sum(rollout.lengths)
    total.backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert agent.minibatch_metrics["policy/clipfrac_avg"] == [pytest.approx(1.0)]


def test_it_learns(kind: Any) -> None:
    rows = learn(small_agent(kind, learning_rate=2e-3, kl_coef=0.0), 4000)
    assert sum(row["objective/scores"] for row in rows[-3:]) / 3 > 6.0  # untrained 0.3, three seeds: 7.98 to 8.0


def test_a_run_can_name_it(source: str, tmp_path: Path) -> None:
    (tmp_path / "cispo.py").write_text(source)
    config = build({"agent": {"name": f"{tmp_path}/cispo.py:CISPO", "group_size": 4}})
    assert config.agent.settings["group_size"] == 4
