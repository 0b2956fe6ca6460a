"""Rewards as mappings: Python's combinators in YAML.

A mapping has exactly one of these keys::

    reward: sentiment            # a name, path/to/file.py:function, module:function; its options are further keys
    sum: [REWARD, ...]           # weighted by each one's `weight`
    product: [REWARD, ...]
    minimum: [REWARD, ...]
    ensemble: [REWARD, ...]      # further keys: variance_weight, std_weight
    gate: {when: REWARD, reward: REWARD, level: 0.5, otherwise: -5}
    constrained: {objective: REWARD, constraint: REWARD, level: 20, rate: 0.001, damping: 0, multiplier: 0, most: 100}

and, applied in this order, any of these::

    cache: true                          # or the number of samples to keep
    time_limit: 60                       # seconds a call
    on_error: {fill: -1, most: 100}      # or skip, or {skip: true, most: 100}, or raise
    per_word: true
    clip: [low, high]
    above: level
    standardise: samples.jsonl           # columns prompt and response: mean 0, standard deviation 1 on these
    running: true                        # or {shift: false, clip: 5}: standardised over everything scored so far
    schedule: [[0, 0.0], [10000, 1.0]]   # samples scored, weight
    name: text
    slow: true                           # it waits for another machine or device: overlapped scoring

Where a REWARD stands, a text is short for ``{reward: text}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.rewards.adaptive import Constrained, RunningStandardise, Scheduled
from rlhf_gym.rewards.base import AnyReward
from rlhf_gym.rewards.cached import CachedReward
from rlhf_gym.rewards.combine import Combination, Gate, Product, Sum, term
from rlhf_gym.rewards.ensemble import Ensemble, Minimum
from rlhf_gym.rewards.on_error import on_error
from rlhf_gym.rewards.service.limits import TimeLimit
from rlhf_gym.text import nearest

Load = Callable[..., AnyReward]

LISTS = ("sum", "product", "minimum", "ensemble")
PAIRS: dict[str, tuple[Callable[..., Combination], tuple[str, str]]] = {
    "gate": (Gate, ("when", "reward")),
    "constrained": (Constrained, ("objective", "constraint")),
}
KINDS = ("reward", *LISTS, *PAIRS)
CHANGES = (
    "cache",
    "time_limit",
    "on_error",
    "per_word",
    "clip",
    "above",
    "standardise",
    "running",
    "schedule",
    "name",
    "slow",
)


def build(given: Mapping[str, Any], load: Load, place: str = "") -> AnyReward:
    """Build the reward that a mapping describes.

    Args:
        given: the mapping; see the top of this file.
        load: builds a reward from its name and options.
        place: the mapping's place in a larger one, for messages.

    Raises:
        ConfigError: the mapping is wrong; the message names the place in it.
    """
    data = dict(given)
    kinds = [key for key in KINDS if key in data]
    if len(kinds) != 1:
        raise ConfigError(
            f"{_at(place)}a reward needs exactly one of the keys {', '.join(KINDS)}; got "
            f"{', '.join(map(repr, given)) or 'none'}"
        )
    kind, inner = kinds[0], data.pop(kinds[0])
    changes = {key: data.pop(key) for key in CHANGES if key in data}
    here = f"{place}.{kind}" if place else kind
    made: AnyReward
    if kind == "reward":
        try:
            made = load(inner, **data)
        except ConfigError as error:
            raise ConfigError(f"{_at(place)}{error}") from error
    elif kind in PAIRS:
        _no_more(data, place, kind)
        made = _pair(kind, inner, load, here)
    else:
        made = _list(kind, inner, data, load, place, here)
    return _changed(made, changes, place) if changes else made


def _list(kind: str, inner: Any, data: dict[str, Any], load: Load, place: str, here: str) -> Combination:
    """A sum, product, minimum or ensemble."""
    if not isinstance(inner, list) or not inner:
        raise ConfigError(f"{_at(place)}{kind!r} needs a list of rewards, got {inner!r}")
    penalties: dict[str, Any] = {}
    if kind == "ensemble":
        found = [key for key in ("variance_weight", "std_weight") if key in data]
        penalties = {key: _number(here, key, data.pop(key)) for key in found}
    _no_more(data, place, kind)
    weights, parts = [], []
    for i, item in enumerate(inner):
        spot = f"{here}[{i}]"
        item = dict(item) if isinstance(item, Mapping) else {"reward": item}
        if "weight" in item and kind != "sum":
            raise ConfigError(f"{spot}: weights belong to a sum; {kind!r} has none")
        weights.append(_number(spot, "weight", item.pop("weight", 1.0)))
        parts.append(build(item, load, spot))
    if kind == "sum":
        return Sum(list(zip(parts, weights, strict=True)))
    if kind == "ensemble":
        return Ensemble(parts, **penalties)
    return (Product if kind == "product" else Minimum)(parts)


def _pair(kind: str, inner: Any, load: Load, here: str) -> Combination:
    """A gate or a constraint: two rewards by name, and settings."""
    factory, names = PAIRS[kind]
    if not isinstance(inner, Mapping) or not set(names) <= set(inner):
        raise ConfigError(f"{here} needs the rewards {' and '.join(names)}, got {inner!r}")
    settings = {key: _number(here, key, value) for key, value in inner.items() if key not in names}
    parts = []
    for name in names:
        item = inner[name] if isinstance(inner[name], Mapping) else {"reward": inner[name]}
        parts.append(build(item, load, f"{here}.{name}"))
    made: Combination = _made(here, factory, *parts, **settings)
    return made


def _changed(reward: AnyReward, changes: dict[str, Any], place: str) -> Combination:
    """Apply the changes to a reward, in the order of ``CHANGES``."""
    if changes.get("cache"):
        size = {} if changes["cache"] is True else {"size": int(_number(place, "cache", changes["cache"]))}
        reward = _made(f"{place}.cache", CachedReward, reward, **size)
    if "time_limit" in changes:
        reward = _made(f"{place}.time_limit", TimeLimit, reward, _number(place, "time_limit", changes["time_limit"]))
    if "on_error" in changes:
        reward = _made(f"{place}.on_error", on_error, reward, policy=changes["on_error"])
    # A combination keeps its own name as a term, although ``name`` comes last.
    out = reward if isinstance(reward, Combination) else term(reward)
    if "per_word" in changes and _flag(place, "per_word", changes["per_word"]):
        out = out.per_word()
    if "clip" in changes:
        out = out.clip(*_two_numbers(place, "clip", changes["clip"], "[low, high]"))
    if "above" in changes:
        out = out.above(_number(place, "above", changes["above"]))
    if "standardise" in changes:
        out = _standardised(out, changes["standardise"], place)
    if running := changes.get("running"):
        settings = {} if running is True else _settings(place, "running", running)
        out = _made(f"{place}.running", RunningStandardise, out, **settings)
    if "schedule" in changes:
        points = changes["schedule"]
        if not isinstance(points, list):
            raise ConfigError(f"{_at(place)}schedule must be a list of [samples, weight], got {points!r}")
        pairs = [_two_numbers(place, "schedule", point, "[[samples, weight], ...]") for point in points]
        out = _made(f"{place}.schedule", Scheduled, out, pairs)
    if "name" in changes:
        out = out.named(str(changes["name"]))
    if "slow" in changes:
        out.slow = _flag(place, "slow", changes["slow"])
    return out


def _standardised(reward: Combination, file: Any, place: str) -> Combination:
    from rlhf_gym.table_files import rows_from_file

    try:
        rows = list(rows_from_file(str(file)))
    except TaskError as error:
        raise ConfigError(f"{_at(place)}standardise: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row.get("prompt"), str) and isinstance(row.get("response"), str)):
            raise ConfigError(
                f"{_at(place)}standardise: {file}, row {number}: expected texts in the columns prompt and response; its "
                f"columns are {', '.join(map(str, row)) or 'none'}"
            )
    names = {name: None for row in rows for name in row if name not in ("prompt", "response")}
    columns = {name: [row.get(name) for row in rows] for name in names}
    return reward.standardise([row["prompt"] for row in rows], [row["response"] for row in rows], columns)


def _made(here: str, factory: Callable[..., Any], *parts: Any, **settings: Any) -> Any:
    """Call a combinator; an error about its settings names the place."""
    try:
        return factory(*parts, **settings)
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{_at(here.lstrip('.'))}{error}; it was given {settings or 'no settings'}") from error


def _settings(place: str, what: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{_at(place)}{what} must be a mapping of settings, got {given!r}")
    return dict(given)


def _no_more(data: Mapping[str, Any], place: str, kind: str) -> None:
    if not data:
        return
    hint = nearest(next(iter(data)), CHANGES)
    raise ConfigError(f"{_at(place)}{kind!r} has the unknown keys {', '.join(map(repr, data))}{hint}")


def _two_numbers(place: str, what: str, given: Any, form: str) -> tuple[float, float]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise ConfigError(f"{_at(place)}{what} must be {form}, got {given!r}")
    return _number(place, what, given[0]), _number(place, what, given[1])


def _number(place: str, what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{_at(place)}{what} must be a number, got {value!r}")
    return float(value)


def _flag(place: str, what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{_at(place)}{what} must be true or false, got {value!r}")
    return value


def _at(place: str) -> str:
    return f"{place}: " if place else ""
