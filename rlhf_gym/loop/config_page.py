"""The generated part of ``docs/configuration.md``: every setting, from the dataclasses that define them.

Update it after a change of a setting::

    python -m rlhf_gym.loop.config_page docs/configuration.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_gym.loop.agent_catalogue import AGENTS
from rlhf_gym.loop.config_file import build, dump
from rlhf_gym.loop.config_values import to_yaml
from rlhf_gym.loop.sections import DEFAULT_AGENT, keys

BEGIN, END = "<!-- settings: begin (generated) -->", "<!-- settings: end -->"


def generated() -> str:
    """The part between the marks: the default configuration, and the defaults that other agents change."""
    base = keys("agent", DEFAULT_AGENT)
    rows = [
        "| agent | settings and defaults that differ | settings of ppo that it does not have |",
        "| --- | --- | --- |",
    ]
    for agent in AGENTS:
        if agent == DEFAULT_AGENT:
            continue
        own = keys("agent", agent)
        differ = [
            f"`{name}: {to_yaml(key.default)}`"
            for name, key in own.items()
            if name != "name" and (name not in base or base[name].default != key.default)
        ]
        lacking = [f"`{name}`" for name in base if name not in own]
        rows.append(f"| `{agent}` | {', '.join(differ) or '-'} | {', '.join(lacking) or '-'} |")
    return "\n".join(
        [
            BEGIN, "", "```yaml", dump(build({}), with_help=True).rstrip(), "```", "",
            "The section `agent` holds the settings of the agent that `agent.name` chooses. Those of another agent, each with "
            "its help: `rlhf-gym", "config --set agent.name=grpo`.", "", *rows, "", END,
        ]
    )  # fmt: skip


def renewed(page: str) -> str:
    """The page with its generated part updated.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return before + generated() + after


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(renewed(target.read_text(encoding="utf-8")), encoding="utf-8")
