"""Presets: named settings of published methods, in Python and in a run."""

from __future__ import annotations

from typing import Any

import pytest
from ppo_setups import small_agent

from rlhf_gym import agents
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config_file import build, dump, load_settings, parse_override, to_settings

PRESETS = [
    (kind, name)
    for kind in agents.__all__
    for name in getattr(getattr(getattr(agents, kind), "Settings", None), "presets", ())
]


@pytest.mark.parametrize(("kind", "name"), PRESETS)
def test_every_preset_makes_an_agent(kind: str, name: str) -> None:
    cls: Any = getattr(agents, kind)
    wanted = cls.preset(name)
    agent = small_agent(cls, **({"kl_coef": cls.Settings.of({}).kl_coef} | wanted))
    assert {key: getattr(agent.settings, key) for key in wanted} == wanted
    wanted["kl_coef"] = -1  # a copy: the preset stays as it is
    assert cls.preset(name).get("kl_coef") != -1


def test_presets_of_grpo_are_the_papers() -> None:
    original, dr_grpo, dapo = (agents.GRPO.preset(name) for name in ("original", "dr_grpo", "dapo"))
    assert (original["scale_rewards"], original["aggregation"], original["kl_coef"]) == ("group", "sequence", 0.04)
    assert (dr_grpo["scale_rewards"], dr_grpo["aggregation"], dr_grpo["kl_coef"]) == ("none", "constant", 0)
    assert (dapo["clip_range"], dapo["clip_range_high"], dapo["aggregation"], dapo["kl_coef"]) == (
        0.2,
        0.28,
        "token",
        0,
    )
    assert dapo["dynamic_sampling"]
    defaults: Any = agents.GRPO.Settings.of({})
    assert (defaults.scale_rewards, defaults.aggregation) == ("none", "token")
    gspo: Any = agents.GSPO.Settings.of({})
    assert (gspo.scale_rewards, gspo.aggregation) == ("group", "sequence")


def test_a_run_takes_a_preset_and_settings_that_are_given_win(tmp_path: Any) -> None:
    given = {"agent": {"name": "grpo", "preset": "dapo", "clip_range_high": 0.4}}
    config = build(given)
    assert (config.agent.preset, config.agent.settings["clip_range_high"]) == ("dapo", 0.4)
    assert config.agent.settings["dynamic_sampling"] is True
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))  # the resolved configuration of a run, which is resumed from
    assert to_settings(build(load_settings(file))) == to_settings(config)
    plus_plus = build({"agent": {"name": "reinforce_plus_plus", **parse_override("agent.preset=baseline")["agent"]}})
    assert plus_plus.agent.settings["kl_estimator"] == "k2"


@pytest.mark.parametrize(
    ("agent", "preset", "message"),
    [
        ("grpo", "dappo", "agent.preset: GRPO has no preset 'dappo'; did you mean 'dapo'?"),
        ("ppo", "dapo", "agent.preset: PPO has no presets, got 'dapo'; leave it out"),
        ("gspo", "dapo", "agent.preset: GSPO has no presets"),
    ],
)
def test_an_unknown_preset_is_refused(agent: str, preset: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"agent": {"name": agent, "preset": preset}})
    with pytest.raises(ConfigError, match=message.removeprefix("agent.preset: ")):
        getattr(agents, {"grpo": "GRPO", "ppo": "PPO", "gspo": "GSPO"}[agent]).preset(preset)
