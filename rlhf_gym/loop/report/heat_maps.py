"""Heat maps of responses: every token shaded by its reward, value, advantage and KL."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_gym.loop.report.html import page
from rlhf_gym.loop.report.run_data import finite

if TYPE_CHECKING:
    from rlhf_gym.agents.common.traces import Trace

QUANTITIES = (
    ("rewards", "reward", "the environment's reward for the token"),
    ("values", "value", "the value function before the token"),
    ("advantages", "advantage", "the advantage that the agent learned from"),
    ("kls", "KL", "log-ratio of the policy to the reference, in nats"),
)
"""The quantities of a token: key in a trace, name, explanation."""
SHADES = 3  # on either side of 0


@dataclass(frozen=True)
class Cell:
    """A token in a heat map: its text, its value, its shade from -3 (low) to 3 (high); and if a further turn begins there."""

    token: str
    value: float | None
    shade: int
    begins: bool


@dataclass(frozen=True)
class Strip:
    """A response's tokens, shaded by one quantity."""

    name: str
    words: str
    cells: list[Cell]


@dataclass(frozen=True)
class HeatMap:
    """One response: its facts, and a strip for each quantity that its agent has; of several turns also the conversation."""

    why: str
    prompt: str
    score: float | None
    kl: float | None
    strips: list[Strip]
    talk: str


@dataclass(frozen=True)
class IterationMaps:
    """The heat maps of one iteration; `scales` has each quantity's name, explanation and value of the darkest shade."""

    title: str
    maps: list[HeatMap]
    scales: list[tuple[str, str, float]]


def heat_maps(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[IterationMaps]:
    """Make the heat maps of some iterations, on one scale for all, so that they can be compared.

    Args:
        found: traces as mappings, by the title of their iteration.
    """
    everything = [trace for traces in found.values() for trace in traces]
    tops = {key: _top([value for trace in everything for value in _numbers(trace, key)]) for key, _, _ in QUANTITIES}
    there = [(name, words, tops[key]) for key, name, words in QUANTITIES if any(_numbers(t, key) for t in everything)]
    return [IterationMaps(title, [_map(trace, tops) for trace in traces], there) for title, traces in found.items()]


def _map(trace: Mapping[str, Any], tops: Mapping[str, float]) -> HeatMap:
    tokens = [str(token) for token in trace.get("tokens") or []]
    lengths = [int(length) for length in trace.get("turns") or []]
    begin = {sum(lengths[:i]) for i in range(1, len(lengths))}
    strips = []
    for key, name, words in QUANTITIES:
        values = _numbers(trace, key)
        if len(values) == len(tokens) and tokens:
            cells = [
                Cell(token, v, _shade(v, tops[key]), i in begin)
                for i, (token, v) in enumerate(zip(tokens, values, strict=True))
            ]
            strips.append(Strip(name, words, cells))
    return HeatMap(
        str(trace.get("why", "")),
        str(trace.get("prompt", "")),
        finite(trace.get("score")),
        finite(trace.get("kl")),
        strips,
        str(trace.get("response", "")) if lengths else "",
    )


def _numbers(trace: Mapping[str, Any], key: str) -> list[float | None]:
    values = trace.get(key)
    return [finite(value) for value in values] if isinstance(values, list) else []


def _top(values: Sequence[float | None]) -> float:
    """The value of the darkest shade: the 98th percentile of absolute values, so that one outlier does not pale the rest."""
    sizes = sorted(abs(value) for value in values if value)
    return sizes[min(len(sizes) - 1, int(0.98 * len(sizes)))] if sizes else 1.0


def _shade(value: float | None, top: float) -> int:
    shade = 0 if value is None else round(SHADES * value / top)
    return max(-SHADES, min(SHADES, shade))


def write_heat_maps(path: str | os.PathLike[str], found: Sequence[Trace], title: str = "heat maps") -> None:
    """Write a page with heat maps of any rollout.

    Args:
        path: the HTML file.
        found: traces of the rollout, from :func:`rlhf_gym.agents.common.traces.traces`.
        title: title of the page.
    """
    shown = heat_maps({title: [asdict(trace) for trace in found]})
    Path(path).write_text(page("heat_map_page.html.j2", title=title, heat_maps=shown), encoding="utf-8")
