from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.agent_catalogue import AGENTS
from rlhf_gym.loop.config import SECTIONS
from rlhf_gym.loop.config_file import (
    QUICK,
    build,
    differences,
    dump,
    load_settings,
    merge,
    parse_override,
    quick,
    to_settings,
)
from rlhf_gym.loop.config_page import renewed
from rlhf_gym.loop.config_values import convert
from rlhf_gym.loop.sections import Key, keys


def all_keys(agent: str = "ppo") -> list[tuple[str, str, Key]]:
    """Every setting with its section and name."""
    return [(section, name, key) for section in SECTIONS for name, key in keys(section, agent).items()]


def test_every_setting_has_help_and_survives_yaml() -> None:
    assert all(key.help for _, _, key in all_keys())
    for text in (dump(build({})), dump(build({}), with_help=True)):
        assert build(yaml.safe_load(text)) == build({})
    assert build(to_settings(build({}))) == build({})


def test_the_documentation_shows_every_setting_as_it_is() -> None:
    """Otherwise: python -m rlhf_gym.loop.config_page docs/configuration.md."""
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert renewed(page) == page


@pytest.mark.parametrize("agent", AGENTS)
def test_the_help_with_its_bounds_stands_above_each_key(agent: str) -> None:
    config = build({"agent": {"name": agent}})
    lines = dump(config, with_help=True).splitlines()
    assert all(len(line) <= 110 for line in lines)
    for section, name, key in all_keys(agent):
        begin = lines.index(f"{section}:")
        at = next(i for i in range(begin, len(lines)) if lines[i].startswith(f"  {name}: "))
        above = list(takewhile(lambda line: line.startswith("  #"), reversed(lines[:at])))
        words = " ".join(line.strip("# ") for line in reversed(above))
        assert key.bounds in words
        assert key.help.split()[0] == words.split()[0]
    assert build(yaml.safe_load(dump(config))) == config


@settings(max_examples=50)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "stop": st.none() | st.lists(st.text(max_size=8), max_size=3),
            "prompts": st.none() | st.text(max_size=12),
            "held_out_fraction": st.floats(0.01, 0.99),
        },
    )
)
def test_any_text_survives_yaml(task: dict[str, Any]) -> None:
    config = build({"task": task})
    assert build(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent.klcoef=1", "there is no key 'agent.klcoef'; did you mean 'agent.kl_coef'?"),
        ("aggent.kl_coef=1", "there is no section 'aggent'; did you mean 'agent'?"),
        ("agent.seed=1", "agent.seed is set by run.seed"),
        ("agent.rounds=1", "did you mean 'run.rounds'?"),
        ("agent.mask_top_p=0.5", "agent.mask_top_p: PPO has no"),
        ("reward_model.patience=0", "reward_model.patience must be at least 1, got 0"),
        ("kl_coef=1", "did you mean 'agent.kl_coef'?"),
        ("agent.kl_coef", "--set takes section.key=value"),
        ("zzz.y=1", "expected one of task, model"),
        ("agent.kl_coef=much", "agent.kl_coef must be a number, got the text 'much'"),
        ("agent.kl_coef=.nan", "agent.kl_coef must be a finite number, got the number nan"),
        ("agent.kl_coef=-0.1", "agent.kl_coef must be at least 0, got -0.1"),
        ("agent.iterations=2.5", "agent.iterations must be a whole number, got the number 2.5"),
        ("agent.iterations=true", "agent.iterations must be a whole number, got true"),
        ("agent.iterations=null", "agent.iterations must be a whole number, got null"),
        ("agent.gamma=1.5", "agent.gamma must be at least 0 and at most 1, got 1.5"),
        ("reward_model.enabled=1", "reward_model.enabled must be true or false, got the number 1"),
        ("model.dtype=float23", "did you mean 'float32'?"),
        ("log.to=[wanb]", "log.to[0] must be one of wandb, tensorboard; got the text 'wanb'; did you mean 'wandb'?"),
        ("task.stop=[1]", "task.stop[0] must be a text, got the number 1"),
        ("task.stop=3", "task.stop must be a list, got the number 3"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_meant(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(parse_override(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"agent": {"n_episodes": 10, "n_envs": 3, "batch_size": 2}}, "multiple of agent.n_envs (3)"),
        ({"agent": {"n_episodes": 8, "batch_size": 9}}, "agent ppo: batch_size (9) must be at most"),
        ({"agent": {"on_kl_limit": "back_off"}}, "agent ppo: on_kl_limit='back_off' needs a kl_limit"),
        ({"agent": {"kl_target": 6.0, "kl_coef": 0}}, "agent ppo: kl_target needs a kl_coef above 0"),
        ({"agent": {"value_start": "reward_model"}}, "give agent.value_network separate"),
        ({"rater": {"query_type": "pair"}, "sampling": {"candidates": 3}}, "must be even, got 3"),
        ({"task": {"max_new_tokens": 4, "min_new_tokens": 5}}, "must be at most task.max_new_tokens"),
        ({"task": {"difficulty_every": 5}}, "goes with task.prompt_order difficulty, not epochs"),
        (
            {"rater": {"name": "web", "query_type": "thumbs"}, "people": {"warm_up": 1}},
            "the simulated rater, who answers no thumbs queries",
        ),
        ({"agent": 3}, "section 'agent' must hold keys and values, got the number 3"),
        ([1], "expected sections"),
    ],
)
def test_contradictions(plain: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(plain)
    assert message in str(caught.value)


def test_overrides_are_yaml_and_later_ones_win() -> None:
    texts = [
        "agent.learning_rate=1e-4",
        "agent.kl_target=null",
        "log.to=wandb, tensorboard",
        "task.name=my: task",
        "agent.gamma=1",
    ]
    config = build(merge({"agent": {"learning_rate": 1.0, "kl_coef": 0.3}}, *map(parse_override, texts)))
    expected = {"learning_rate": 1e-4, "kl_coef": 0.3, "gamma": 1.0}
    assert config.agent.settings == {**build({}).agent.settings, **expected}
    assert config.log.to == ("wandb", "tensorboard")
    assert isinstance(config.agent.settings["gamma"], float)
    assert config.task.name == "my: task"
    assert build(parse_override("task.prompts=a=[b.txt")).task.prompts == "a=[b.txt"
    assert build(parse_override("task.prompts=null")).task.prompts is None


def test_a_file_that_is_not_right_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match=r"no configuration file .*rlhf-gym config > c\.yaml"):
        load_settings(file)
    file.write_text("agent:\n  kl_coef: [1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 3, column 1: not YAML"):
        load_settings(file)
    file.write_bytes(b"\x00")
    with pytest.raises(ConfigError, match=r"c\.yaml: not YAML \(unacceptable character [^\n]*\)$"):
        load_settings(file)
    file.write_text("run:\n  sead: 1\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: there is no key 'run\.sead'; did you mean 'run\.seed'"):
        load_settings(file)
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"expected sections .*got the list \[1\]"):
        load_settings(file)
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(file)
    file.write_text("")
    assert load_settings(file) == {}
    file.write_text("agent:\n")
    assert build(load_settings(file)) == build({})


def test_differences_are_named_in_full() -> None:
    assert differences(build({}), build({"agent": {"kl_coef": 1}, "run": {"rounds": 2}})) == {
        "agent.kl_coef": (0.15, 1.0),
        "run.rounds": (1, 2),
    }


def test_the_demos_configuration_is_valid() -> None:
    config = build(load_settings(Path(__file__).parents[1] / "examples" / "quickstart.yaml"))
    assert (config.task.name, config.model.name, config.rater.name) == ("sentiment", "embedded", "simulated")


def test_quick_is_a_valid_configuration() -> None:
    assert all(build(quick(agent)).agent.iterations < build({}).agent.iterations for agent in AGENTS)
    assert quick("ppo") == QUICK


def test_settings_of_types_that_yaml_has_no_word_for() -> None:
    assert convert({"a": 1}, Mapping[str, int], "agent.options") == {"a": 1}
    assert convert({"a": 1}, dict | None, "agent.options") == {"a": 1}
    assert convert([1, "b"], list, "agent.parts") == [1, "b"]
    assert convert("a, b", tuple | None, "agent.parts") == ("a", "b")
    for expected in (Callable[[float], float], Any, Path):
        with pytest.raises(ConfigError, match=r"agent\.mine cannot be set from a configuration"):
            convert(3, expected, "agent.mine")
    with pytest.raises(ConfigError, match=r"agent\.kl_coef must be a number"):
        convert(10**400, float, "agent.kl_coef")


def test_a_function_returns_none_where_a_configuration_says_null() -> None:
    text = " ".join(dump(build({}), with_help=True).replace("#", "").split())
    assert "a function (prompt, a, b) that returns 0, 1 or None" in text
    assert "clipped to plus or minus this before learning; null does not clip" in text


def test_a_tasks_options_are_a_mapping() -> None:
    config = build(parse_override("task.options={difficulty: 3}"))
    assert config.task.options == {"difficulty": 3}
    assert "  options: {difficulty: 3}\n" in dump(config)
    with pytest.raises(ConfigError, match=r"task\.options must be a mapping of names to values, got the text 'gsm8k'"):
        build(parse_override("task.options=gsm8k"))
