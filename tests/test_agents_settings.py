"""Settings are stated once: checks, attributes, signatures, typed keywords and the docs' table come from the dataclass."""

from __future__ import annotations

import inspect
import json
from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from ppo_setups import letters_env
from tiny_models import tiny_language_model

import rlhf_gym.agents
from rlhf_gym.agents import GRPO, PPO, REINFORCE, RLOO
from rlhf_gym.agents.common.settings import AgentSettings, setting, settings_of
from rlhf_gym.agents.common.settings_tables import keywords_source, settings_classes, with_table
from rlhf_gym.agents.common.shared_settings import CriticFreeSettings
from rlhf_gym.agents.rloo import RLOOSettings
from rlhf_gym.errors import ConfigError

ROOT = Path(__file__).parents[1]
CLASSES = settings_classes()


def make(kind: Any, **options: Any) -> Any:
    return kind(env=letters_env(), language_model=tiny_language_model(), seed=0, device="cpu", **options)


def test_the_typed_keywords_are_what_the_dataclasses_say() -> None:
    """Otherwise: python -m rlhf_gym.agents.common.settings_tables agents/common/keywords.py docs/algorithms.md."""
    assert (ROOT / "agents" / "common" / "keywords.py").read_text(encoding="utf-8") == keywords_source()


def test_the_table_in_the_docs_is_what_the_dataclasses_say() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert with_table(text) == text
    for name, cls in CLASSES.items():
        for setting_name in cls.names():
            assert f"| `{setting_name}` |" in text, name


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_setting_has_help_and_the_default_of_the_nearest_base(cls: type[AgentSettings]) -> None:
    """A dataclass of several bases takes a field from the first of them that *has* it, inherited or not."""
    for field in fields(cls):
        nearest = next(base for base in cls.__mro__ if field.name in inspect.get_annotations(base))
        assert field.default is nearest.__dataclass_fields__[field.name].default, field.name  # type: ignore[attr-defined]
        assert settings_of(cls)[field.name].help, field.name


def test_every_agent_of_the_package_is_listed() -> None:
    kinds = [getattr(rlhf_gym.agents, name) for name in rlhf_gym.agents.__all__]
    own = {kind.Settings for kind in kinds if isinstance(kind, type) and "Settings" in vars(kind)} - {AgentSettings}
    assert own == set(CLASSES.values())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PPO, {"gamma": 0.9, "ent_coef": 0.2, "vf_coef": 0.5, "gae_lambda": 0.8, "learning_rate": 1e-2}),
        (REINFORCE, {"gamma": 0.9, "ent_coef": 0.2, "learning_rate": 1e-2}),
    ],
)
def test_attributes_of_stable_baselines_hold_the_settings(kind: Any, options: dict[str, Any]) -> None:
    agent = make(kind, **options)
    for name, value in options.items():
        assert getattr(agent, name) == getattr(agent.settings, name) == value


def test_settings_are_frozen_and_json() -> None:
    agent = make(GRPO, scale_rewards="batch", clip_range=lambda progress: 0.2 * progress)
    with pytest.raises(FrozenInstanceError):
        agent.settings.kl_coef = 1.0
    written = json.loads(json.dumps(agent.settings.as_json()))
    assert written["scale_rewards"] == "batch"
    assert written["language_model"] == "tiny-gpt2"
    assert written["given_at_load"] == ["clip_range"]


def test_the_signature_names_every_setting_with_its_default() -> None:
    parameters = inspect.signature(GRPO).parameters
    assert set(parameters) == {"policy", "env"} | GRPO.Settings.names()
    assert parameters["kl_coef"].default == 0.04


@dataclass(frozen=True, kw_only=True)
class MySettings(CriticFreeSettings):
    strength: float = setting(0.5, "of mine", above=0, at_most=1)
    taste: Literal["sweet", "sour"] | None = setting(None, "of mine")
    kl_coef: float = setting(0.3)


class Mine(RLOO):
    Settings: ClassVar[type[AgentSettings]] = MySettings
    strength: float


def test_a_users_own_settings_need_a_dataclass_only() -> None:
    agent: Any = make(Mine, strength=0.25, batch_size=16)
    assert (agent.strength, agent.taste, agent.kl_coef, agent.settings.kl_coef) == (0.25, None, 0.3, 0.3)
    described = settings_of(MySettings)
    assert described["strength"].range_in_words == "a number in (0, 1]"
    assert described["kl_coef"].help == settings_of(RLOOSettings)["kl_coef"].help
    for options, message in (
        ({"strength": 2}, r"strength must be a number in \(0, 1\], got 2"),
        ({"strength": None}, "strength must be"),
        ({"taste": "bitter"}, "taste must be one of sweet, sour, or None; got 'bitter'"),
        ({"kl_coef": -1}, "kl_coef must be a finite number of at least 0"),
        ({"strenght": 0.1}, r"Mine has no setting strenght; did you mean 'strength'\?"),
        ({"vf_coef": 0.1}, "Mine has no vf_coef: it learns without a value function"),
        ({"n_epochs": True}, "n_epochs must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(Mine, **options)
