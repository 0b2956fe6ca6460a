"""Rewards by name: what ``--reward`` and a YAML file may say.

A text is a built-in name (``sentiment``), ``path/to/file.py:function``, ``module:function``, or a YAML file. A mapping says
more::

    sum:                                        # or product, minimum, ensemble: a list of rewards
      - {reward: sentiment, weight: 1.0}
      - {reward: length, unit: words, weight: -0.02, clip: [0, 50]}
      - {reward: my_rewards.py:politeness, name: polite}

Keys of one reward: ``reward``, its options (``unit``), and, applied in this order, ``per_word: true``, ``clip: [low,
high]``, ``above: level``, ``name: text``; inside a sum also ``weight``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.base import Reward
from rlhf_gym.rewards.combine import Combination, Product, Sum, term
from rlhf_gym.rewards.ensemble import Ensemble, Minimum

# Where each built-in reward is: a module is imported only when its reward is asked for.
BUILT_IN = {
    "sentiment": "rlhf_gym.sentiment:SentimentScorer.embedded",
    "length": "rlhf_gym.rewards.builtin:Length",
    "repetition": "rlhf_gym.rewards.builtin:Repetition",
    "format": "rlhf_gym.rewards.builtin:Format",
    "contains_words": "rlhf_gym.rewards.builtin:ContainsWords",
    "exact_match": "rlhf_gym.rewards.builtin:ExactMatch",
    "readability": "rlhf_gym.rewards.builtin:Readability",
    "harm": "rlhf_gym.rewards.harm:Harm",
    "perplexity": "rlhf_gym.rewards.perplexity:Perplexity",
    "rouge": "rlhf_gym.rewards.metrics:Rouge",
    "bleu": "rlhf_gym.rewards.metrics:Bleu",
    "chrf": "rlhf_gym.rewards.metrics:ChrF",
    "meteor": "rlhf_gym.rewards.meteor:Meteor",
    "bert_score": "rlhf_gym.rewards.bert_score:BertScore",
    "vader": "rlhf_gym.rewards.metrics:Vader",
    "json_schema": "rlhf_gym.rewards.metrics:JsonSchema",
}

AnyReward = Reward | Callable[..., Any]
LISTS = ("sum", "product", "minimum", "ensemble")


def load_reward(spec: str | Mapping[str, Any], **options: Any) -> AnyReward:
    """Build a reward from what a user wrote.

    Args:
        spec: a built-in name, ``path/to/file.py:function``, ``module:function``, a YAML file, or a mapping (see the top of
            this file). Code that it names is run: take specifications from people you trust.
        options: options of the reward: arguments of its class, or further arguments of its function.

    Raises:
        ConfigError: no such reward, or options that it does not take.

    >>> load_reward("length", unit="characters")([""], ["four"])
    [4.0]
    """
    if isinstance(spec, Mapping):
        return _from_mapping({**spec, **options})
    if not isinstance(spec, str) or not spec.strip():
        raise ConfigError(f"a reward is given as a text or a mapping, got {spec!r}")
    if spec.endswith((".yaml", ".yml")):
        return _from_mapping({**_read_yaml(Path(spec)), **options})
    if spec.endswith(".py"):
        raise ConfigError(f"{spec!r} names a file but no reward in it; write {spec}:FUNCTION")
    head, colon, attribute = BUILT_IN.get(spec, spec).rpartition(":")
    if not colon or not head or not attribute:
        near = get_close_matches(spec, BUILT_IN, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"there is no reward {spec!r}{hint} Expected one of {', '.join(BUILT_IN)}, or path/to/file.py:function, or "
            "module:function"
        )
    found = _attribute(_import(head, spec), attribute, spec)
    if spec in BUILT_IN or isinstance(found, type):
        return _build(found, options, spec)
    if not callable(found):
        raise ConfigError(f"{spec!r} is a {type(found).__name__}, expected a function, a class or a callable object")
    return partial(found, **options) if options else found


def _build(factory: Callable[..., AnyReward], options: dict[str, Any], spec: str) -> AnyReward:
    try:
        reward = factory(**options)
    except TypeError as error:
        raise ConfigError(f"reward {spec!r}: {error}; it was given the options {options or 'none'}") from error
    if not callable(reward):
        raise ConfigError(f"reward {spec!r}: its objects cannot be called; give the class a __call__")
    return reward


def _import(module: str, spec: str) -> Any:
    """Import a module by name, or a file by its path."""
    try:
        if not module.endswith(".py"):
            if os.getcwd() not in sys.path:  # a console script's path does not hold the folder it is called in
                sys.path.append(os.getcwd())
            return importlib.import_module(module)
        path = Path(module).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"cannot find the reward {spec!r}: there is no file {module!r}")
        # A name of its own per file: two files called reward.py must not be taken for one another.
        name = f"rlhf_gym_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        if name in sys.modules:
            return sys.modules[name]
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None
        assert found.loader is not None
        loaded = importlib.util.module_from_spec(found)
        sys.modules[name] = loaded  # before it runs: dataclasses and pickle look their module up there
        sys.path.insert(0, str(path.parent))  # the file may import its neighbours, as a script may
        try:
            found.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            sys.path.remove(str(path.parent))
        return loaded
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(f"cannot import the reward {spec!r}: {type(error).__name__}: {error}") from error


def _attribute(module: Any, path: str, spec: str) -> Any:
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            near = get_close_matches(name, [n for n in vars(found) if not n.startswith("_")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"cannot find the reward {spec!r}: there is no {name!r} in it{hint}")
        found = getattr(found, name)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the reward in {str(path)!r}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping such as 'reward: sentiment', got {type(data).__name__}")
    return data


def _from_mapping(given: dict[str, Any]) -> AnyReward:
    """A reward, or a list of them, with what is to be done to it."""
    data = dict(given)
    kinds = [key for key in ("reward", *LISTS) if key in data]
    if len(kinds) != 1:
        raise ConfigError(
            f"a reward needs exactly one of the keys reward, {', '.join(LISTS)}; got {', '.join(map(repr, given)) or 'none'}"
        )
    kind, inner = kinds[0], data.pop(kinds[0])
    changes: dict[str, Any] = {key: data.pop(key) for key in ("per_word", "clip", "above", "name") if key in data}
    if kind == "reward":
        plain = load_reward(inner, **data)
        return _changed(term(plain), changes) if changes else plain
    if not isinstance(inner, list) or not inner:
        raise ConfigError(f"{kind!r} needs a list of rewards, got {inner!r}")
    if kind == "ensemble":
        variance_weight = _number("variance_weight", data.pop("variance_weight", 0.0))
    if data:
        raise ConfigError(f"{kind!r} has the unknown keys {', '.join(map(repr, data))}")
    weights = []
    parts = []
    for item in inner:
        item = dict(item) if isinstance(item, Mapping) else {"reward": item}
        if "weight" in item and kind != "sum":
            raise ConfigError(f"weights belong to a sum; {kind!r} has none")
        weights.append(_number("weight", item.pop("weight", 1.0)))
        parts.append(_from_mapping(item))
    combined: Combination
    if kind == "sum":
        combined = Sum(list(zip(parts, weights, strict=True)))
    elif kind == "ensemble":
        combined = Ensemble(parts, variance_weight=variance_weight)
    else:
        combined = (Product if kind == "product" else Minimum)(parts)
    return _changed(combined, changes)


def _changed(reward: Combination, changes: dict[str, Any]) -> Combination:
    if changes.get("per_word"):
        reward = reward.per_word()
    if "clip" in changes:
        bounds = changes["clip"]
        if not isinstance(bounds, list | tuple) or len(bounds) != 2:
            raise ConfigError(f"clip must be [low, high], got {bounds!r}")
        reward = reward.clip(_number("clip", bounds[0]), _number("clip", bounds[1]))
    if "above" in changes:
        reward = reward.above(_number("above", changes["above"]))
    if "name" in changes:
        reward = reward.named(str(changes["name"]))
    return reward


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{what} must be a number, got {value!r}")
    return float(value)
