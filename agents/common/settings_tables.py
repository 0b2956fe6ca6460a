"""Writes what follows from the settings classes: the constructors' typed keywords, and the table in docs/algorithms.md.

    python -m rlhf_gym.agents.common.settings_tables agents/common/keywords.py docs/algorithms.md

A test fails when they are out of date.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path

from rlhf_gym.agents.common.settings import POSITIONAL, AgentSettings, Setting, settings_of

AGENTS = {
    "PPO": "ppo", "NLPO": "nlpo", "TRPO": "trpo", "A2C": "a2c", "CriticFree": "critic_free", "GRPO": "grpo", "GSPO": "grpo",
    "RLOO": "rloo", "ReMax": "remax", "REINFORCE": "reinforce", "ReinforcePlusPlus": "reinforce", "OnlineDPO": "online_dpo",
    "RAFT": "raft", "ES": "es", "PreferenceOptimization": "preference_optimization", "ILQL": "ilql", "SFT": "sft",
}  # fmt: skip
"""Agents, and the modules of this package that they are in."""
BEGIN, END = "<!-- settings: generated -->", "<!-- end of settings -->"

HEADER = '''"""The keywords of every agent's constructor, for editors and type checkers.

Generated from the settings classes by ``rlhf_gym.agents.common.settings_tables``; not to be edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import torch
from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.common.covariance import CovarianceControl
from rlhf_gym.agents.common.given_pairs import EncodedPair, EncodedPreference, Pair, PreferenceRow
from rlhf_gym.agents.common.given_trajectories import EncodedTrajectory, TrajectoryRow
from rlhf_gym.agents.common.kl import Action, Estimator
from rlhf_gym.agents.common.losses import Aggregation, PairLoss
from rlhf_gym.agents.common.mismatch import Correction
from rlhf_gym.agents.common.policy import ValueNetwork
from rlhf_gym.agents.common.policy_losses import PolicyLoss, TokenPolicyLoss
from rlhf_gym.agents.common.preference_losses import PreferenceLoss
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.precision import Precision
from rlhf_gym.raters.base import Rater
from rlhf_gym.raters.function import RaterFunction
from rlhf_gym.reward_model import RewardModel
'''


def settings_classes() -> dict[str, type[AgentSettings]]:
    """The settings class of every agent, by the agent's name."""
    return {name: getattr(import_module(f"rlhf_gym.agents.{module}"), name).Settings for name, module in AGENTS.items()}


def keywords_source() -> str:
    """The text of ``keywords.py``."""
    shared = {name: spec for name, spec in settings_of(AgentSettings).items() if name != POSITIONAL}
    parts = [HEADER, _typed_dict("AgentKeywords", "TypedDict, total=False", "The settings of every agent.", shared)]
    for name, cls in settings_classes().items():
        own = {key: spec for key, spec in settings_of(cls).items() if key not in (*shared, POSITIONAL)}
        parts.append(_typed_dict(f"{name}Keywords", "AgentKeywords, total=False", f"The settings of {name}.", own))
    return "\n\n".join(parts)


def _typed_dict(name: str, bases: str, docstring: str, specs: Mapping[str, Setting]) -> str:
    lines = [f"class {name}({bases}):", f'    """{docstring}"""', ""]
    for spec in specs.values():
        annotation = spec.annotation.replace("'", '"')
        lines += [f"    {spec.name}: {f'Required[{annotation}]' if spec.default is MISSING else annotation}"]
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """The settings of all agents as a Markdown table: one line per setting, with the agents that have it and their defaults."""
    classes = settings_classes()
    del classes["CriticFree"]
    by_name: dict[str, dict[str, Setting]] = {}
    for agent, cls in classes.items():
        for name, spec in settings_of(cls).items():
            by_name.setdefault(name, {})[agent] = spec
    lines = ["| setting | type and range | default | what it does | source |", "| --- | --- | --- | --- | --- |"]
    arguments: list[str] = []
    for name, specs in by_name.items():
        types = {agent: _type(spec) for agent, spec in specs.items()}
        defaults = {a: "must be given" if s.default is MISSING else str(s.default) for a, s in specs.items()}
        sources = dict.fromkeys(spec.source for spec in specs.values() if spec.source)
        help_of = {agent: spec.help.rstrip(".") for agent, spec in specs.items()}
        cells = (
            f"`{name}`", _variants(types), _by_agent(defaults, list(classes)), _sentences(help_of), "; ".join(sources),
        )  # fmt: skip
        line = f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        (arguments if specs[next(iter(specs))].is_argument else lines).append(line)
    return "\n".join([*lines, *arguments])


def _type(spec: Setting) -> str:
    words = spec.range_in_words.removeprefix("one of ") or spec.type_in_words
    others = ["schedule"] * spec.schedule + ["None"] * (spec.optional and bool(spec.range_in_words))
    return ", ".join([words, *others])


def _most(texts: Mapping[str, str]) -> str:
    """The commonest text; of equally common ones the first."""
    return Counter(texts.values()).most_common(1)[0][0]


def _by_agent(texts: Mapping[str, str], agents: list[str]) -> str:
    """The commonest text, then the others with their agents, then the agents that have none."""
    missing = [agent for agent in agents if agent not in texts]
    if len(missing) > len(texts):
        return "; ".join(f"{text} ({names})" for text, names in _grouped(texts).items())
    return _variants(texts) + (f"; not in {', '.join(missing)}" if missing else "")


def _variants(texts: Mapping[str, str]) -> str:
    """The commonest text, then the others with their agents."""
    most = _most(texts)
    return most + "".join(f"; {text} ({names})" for text, names in _grouped(texts).items() if text != most)


def _sentences(texts: Mapping[str, str]) -> str:
    most = _most(texts)
    return ". ".join([most, *(f"{names}: {text}" for text, names in _grouped(texts).items() if text != most)])


def _grouped(texts: Mapping[str, str]) -> dict[str, str]:
    """The agents of each text, in words."""
    return {text: ", ".join(a for a, other in texts.items() if other == text) for text in dict.fromkeys(texts.values())}


def with_table(text: str) -> str:
    """A document with a new table between its two marks.

    Raises:
        ValueError: the document has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


def main(keywords: str, document: str) -> None:
    """Write the keywords and the table.

    Args:
        keywords: path of ``keywords.py``.
        document: path of ``docs/algorithms.md``.
    """
    Path(keywords).write_text(keywords_source(), encoding="utf-8")
    path = Path(document)
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
