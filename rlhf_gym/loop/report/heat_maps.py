"""Responses with every token shaded by its reward, value, advantage and KL."""

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
    ("rewards", "reward", "what the environment paid for the token"),
    ("values", "value", "what the value function expected before it"),
    ("advantages", "advantage", "what was learned from: better or worse than expected"),
    ("kls", "KL", "log-probability over the reference's, in nats"),
)
SHADES = 3  # on either side of 0


@dataclass(frozen=True)
class Cell:
    """A token in a heat map: its text, its value, its shade from -3 (low) to 3 (high)."""

    token: str
    value: float | None
    shade: int


@dataclass(frozen=True)
class Strip:
    """A response's tokens by one quantity."""

    name: str
    words: str
    cells: list[Cell]


@dataclass(frozen=True)
class HeatMap:
    """One response: its facts, and a strip for each quantity that its agent has."""

    why: str
    prompt: str
    score: float | None
    kl: float | None
    strips: list[Strip]


@dataclass(frozen=True)
class Look:
    """The heat maps of one iteration, and what the darkest shade stands for, by quantity."""

    title: str
    maps: list[HeatMap]
    scales: list[tuple[str, str, float]]


def looks(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Look]:
    """Heat maps by iteration; all iterations share one scale, so that they can be compared.

    Args:
        found: traces as mappings, by what their iteration is called.
    """
    everything = [trace for traces in found.values() for trace in traces]
    tops = {key: _top([value for trace in everything for value in _numbers(trace, key)]) for key, _, _ in QUANTITIES}
    there = [(name, words, tops[key]) for key, name, words in QUANTITIES if any(_numbers(t, key) for t in everything)]
    return [Look(title, [_map(trace, tops) for trace in traces], there) for title, traces in found.items()]


def _map(trace: Mapping[str, Any], tops: Mapping[str, float]) -> HeatMap:
    tokens = [str(token) for token in trace.get("tokens") or []]
    strips = []
    for key, name, words in QUANTITIES:
        values = _numbers(trace, key)
        if len(values) == len(tokens) and tokens:
            cells = [Cell(token, v, _shade(v, tops[key])) for token, v in zip(tokens, values, strict=True)]
            strips.append(Strip(name, words, cells))
    return HeatMap(
        str(trace.get("why", "")),
        str(trace.get("prompt", "")),
        finite(trace.get("score")),
        finite(trace.get("kl")),
        strips,
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
    """Write a page of heat maps of any rollout.

    Args:
        path: the HTML file.
        found: from :func:`rlhf_gym.agents.common.traces.traces`.
        title: the page's.
    """
    shown = looks({title: [asdict(trace) for trace in found]})
    Path(path).write_text(page("heat_maps.html.j2", title=title, looks=shown), encoding="utf-8")
