"""Rewards by name, as ``--reward`` and YAML files give them; and the list of the built-in ones.

A text is a built-in name (``sentiment``), ``path/to/file.py:function``, ``module:function``, a folder that holds a reward
model, the address of a service (``https://...``), a judge's (``judge:https://...``), a YAML file that holds a mapping, or the
mapping itself (``"{reward: length, unit: characters}"``)::

    sum:
      - {reward: sentiment, clip: [-3, 3]}
      - {reward: length, unit: words, weight: -0.02}
      - {reward: my_rewards.py:politeness, name: polite}

:mod:`rlhf_gym.rewards.mapping` lists the keys of a mapping.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.objects import is_place, load_object
from rlhf_gym.rewards.base import AnyReward
from rlhf_gym.rewards.mapping import CHANGES, build
from rlhf_gym.text import nearest

# The place of each built-in reward; its module is imported when the reward is built.
BUILT_IN = {
    "sentiment": "rlhf_gym.rewards.builtin.sentiment_scorer:SentimentScorer.embedded",
    "sentiment_judge": "rlhf_gym.rewards.builtin.sentiment_judge:SentimentJudge.embedded",
    "length": "rlhf_gym.rewards.builtin.text_statistics:Length",
    "repetition": "rlhf_gym.rewards.builtin.text_statistics:Repetition",
    "format": "rlhf_gym.rewards.builtin.text_match:Format",
    "contains_words": "rlhf_gym.rewards.builtin.text_match:ContainsWords",
    "exact_match": "rlhf_gym.rewards.builtin.text_match:ExactMatch",
    "readability": "rlhf_gym.rewards.builtin.text_statistics:Readability",
    "harm": "rlhf_gym.rewards.builtin.harm:Harm",
    "perplexity": "rlhf_gym.rewards.builtin.perplexity:Perplexity",
    "rouge": "rlhf_gym.rewards.builtin.rouge:Rouge",
    "bleu": "rlhf_gym.rewards.builtin.bleu_chrf:Bleu",
    "chrf": "rlhf_gym.rewards.builtin.bleu_chrf:ChrF",
    "meteor": "rlhf_gym.rewards.builtin.meteor:Meteor",
    "bert_score": "rlhf_gym.rewards.builtin.bert_score:BertScore",
    "embedding_similarity": "rlhf_gym.rewards.builtin.embedding:EmbeddingSimilarity",
    "vader": "rlhf_gym.rewards.builtin.vader:Vader",
    "profanity": "rlhf_gym.rewards.builtin.profanity:Profanity",
    "language": "rlhf_gym.rewards.builtin.language:LanguageId",
    "math": "rlhf_gym.rewards.builtin.math_answer:MathAnswer",
    "classifier": "rlhf_gym.rewards.builtin.classifier:Classifier",
    "reward_model": "rlhf_gym.rewards.builtin.classifier:reward_model",
    "per_token": "rlhf_gym.rewards.builtin.per_token:PerToken",
    "steps": "rlhf_gym.rewards.builtin.steps:Steps",
    "process_reward_model": "rlhf_gym.rewards.builtin.process_model:process_reward_model",
    "toxicity": "rlhf_gym.rewards.builtin.classifier:toxicity",
    "sentiment_classifier": "rlhf_gym.rewards.builtin.classifier:sentiment_classifier",
    "json_schema": "rlhf_gym.rewards.builtin.json_schema:JsonSchema",
    "judge": "rlhf_gym.judge.reward:JudgeReward",
}

OTHER_NAMES = {
    "bertscore": "bert_score", "cosine": "embedding_similarity", "flesch": "readability", "json": "json_schema",
    "langid": "language", "language_id": "language", "ngram": "repetition", "prm": "process_reward_model",
    "process": "process_reward_model", "regex": "format", "regexp": "format",
    "regular_expression": "format", "similarity": "embedding_similarity", "swearing": "profanity",
}  # fmt: skip
"""Names from other packages, for hints in messages only."""

TOKEN_VARIABLE = "RLHF_GYM_REWARD_TOKEN"
"""The environment variable with a reward service's token, for its clients and for ``serve-reward``."""

JUDGE_PREFIX = "judge:"
"""The beginning of a judge's address, for rewards and for raters."""

_MARKUP = re.compile(r":\w+:`~?([^`]*)`|``([^`]*)``")


def load_reward(spec: str | Mapping[str, Any], **options: Any) -> AnyReward:
    """Build a reward from its specification.

    Args:
        spec: a built-in name, ``path/to/file.py:function``, ``module:function``, a reward model's folder, a service's
            address, a judge's, a YAML file, or a mapping (see :mod:`rlhf_gym.rewards.mapping`). Code that it names is run:
            take specifications from people you trust.
        options: options of the reward: arguments of its class, or further arguments of its function.

    Raises:
        ConfigError: no such reward, or options that it does not take.

    >>> load_reward("length", unit="characters")([""], ["four"])
    [4.0]
    """
    if isinstance(spec, Mapping):
        return build({**spec, **options}, load_reward)
    if not isinstance(spec, str) or not spec.strip():
        raise ConfigError(f"a reward is given as a text or a mapping, got {spec!r}")
    if spec.startswith(("http://", "https://")):
        return _remote(spec, options)
    if spec.startswith(JUDGE_PREFIX):
        url, model = judge_address(spec)
        return load_reward("judge", url=url, model=model, **options)
    if spec.lstrip().startswith("{"):
        return build({**_mapping(spec, "the reward in braces"), **options}, load_reward)
    if spec.endswith((".yaml", ".yml")):
        return build({**_read_yaml(Path(spec)), **options}, load_reward)
    if spec not in BUILT_IN and Path(spec).expanduser().is_dir():
        return load_reward("reward_model", path=Path(spec).expanduser(), **options)
    if spec in BUILT_IN:
        return _build(built_in(spec), options, spec)
    if not is_place(spec):
        raise _unknown(spec, ", or path/to/file.py:function, or module:function")
    found = load_object(spec, kind="reward")
    if isinstance(found, type):
        return _build(found, options, spec)
    return partial(found, **options) if options else found


def judge_address(spec: str) -> tuple[str, str | None]:
    """Read a judge's address, ``judge:URL`` or ``judge:MODEL@URL``: the service's URL, and the model's name if there is one.

    Raises:
        ConfigError: there is no URL in it.

    >>> judge_address("judge:http://localhost:8000/v1"), judge_address("judge:gpt-4.1-mini@https://api.openai.com/v1")
    (('http://localhost:8000/v1', None), ('https://api.openai.com/v1', 'gpt-4.1-mini'))
    """
    rest = spec.removeprefix(JUDGE_PREFIX)
    begin = min((at for scheme in ("http://", "https://") if (at := rest.find(scheme)) >= 0), default=-1)
    model = rest[:begin].removesuffix("@")
    if begin < 0 or (model and not rest[:begin].endswith("@")):
        raise ConfigError(
            f"a judge is written judge:URL or judge:MODEL@URL, e.g. judge:http://localhost:8000/v1; got {spec!r}"
        )
    return rest[begin:], model or None


def built_in(name: str) -> Callable[..., AnyReward]:
    """The class of a built-in reward, or the function that builds it.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in BUILT_IN:
        raise _unknown(name)
    factory: Callable[..., AnyReward] = load_object(BUILT_IN[name], kind="reward")
    return factory


def listing() -> str:
    """The list of built-in rewards: a line for each, with the first line of its docstring."""
    width = max(map(len, BUILT_IN))
    return "\n".join(f"{name:{width}}  {_words(built_in(name)).splitlines()[0]}" for name in BUILT_IN)


def described(name: str) -> str:
    """One built-in reward's docstring, and its options with their defaults.

    Raises:
        ConfigError: there is no such built-in reward.
    """
    factory = built_in(name)
    options = [
        f"{p.name}: {'...' if p.default is p.empty else json.dumps(p.default)}"
        for p in inspect.signature(factory).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    line = f"{{reward: {name}{''.join(', ' + option for option in options)}}}"
    return f"{_words(factory)}\n\nIn YAML, and on a command line in quotes:\n    {line}"


def _words(factory: Any) -> str:
    """A docstring without its markup, its ``Raises:`` and its examples."""
    text = (inspect.getdoc(factory) or "").partition("\n\nRaises:")[0].partition("\n\n>>>")[0]
    return _MARKUP.sub(lambda found: (found[1] or found[2]).rpartition(".")[2] if found[1] else found[2], text)


def _unknown(name: str, others: str = "") -> ConfigError:
    other = OTHER_NAMES.get(name.lower().replace("-", "_"))
    hint = nearest(other or name, BUILT_IN, cutoff=0.7)
    return ConfigError(f"there is no reward {name!r}{hint} Expected one of {', '.join(BUILT_IN)}{others}")


def _remote(url: str, options: dict[str, Any]) -> AnyReward:
    """A reward service, with the token from the environment where there is one."""
    from rlhf_gym.rewards.service.remote import RemoteReward

    token = os.environ.get(TOKEN_VARIABLE)
    if token and "headers" not in options:
        options = {**options, "headers": {"Authorization": f"Bearer {token}"}}
    return _build(partial(RemoteReward, url), options, url)


def _build(factory: Callable[..., AnyReward], options: dict[str, Any], spec: str) -> AnyReward:
    _check_options(factory, options, spec)
    try:
        reward = factory(**options)
    except TypeError as error:
        raise ConfigError(f"reward {spec!r}: {error}; it was given the options {options or 'none'}") from error
    if not callable(reward):
        raise ConfigError(f"reward {spec!r}: its objects cannot be called; give the class a __call__")
    return reward


def _check_options(factory: Callable[..., AnyReward], options: Mapping[str, Any], spec: str) -> None:
    """Refuse unknown and missing options, with a clearer message than Python's."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    takes = f"It takes {', '.join(names) or 'none'}"
    for option in options:
        if option not in names and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            hint = nearest(str(option), [*names, *CHANGES, "weight"])
            raise ConfigError(f"reward {spec!r} has no option {option!r}{hint} {takes}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(
            f"reward {spec!r} needs the option {missing[0]!r}. {takes}. On a command line: --reward '{{reward: {spec}, "
            f"{missing[0]}: ...}}'"
        )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no reward file {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the reward in {str(path)!r}: {error}") from error
    return _mapping(text, str(path))


def _mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text; ``source`` says where it is from, for messages."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{source} must hold a mapping such as 'reward: sentiment', got {type(data).__name__}")
    return data
