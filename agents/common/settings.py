"""The settings of an agent as one frozen dataclass: constructor, checks, checkpoints, configuration and docs follow from it.

A setting is a field with its type, default, help, range and source::

    @dataclass(frozen=True, kw_only=True)
    class MySettings(CriticFreeSettings):
        beta: float = setting(0.1, "strength of the pull to the reference", above=0, source="Rafailov et al. 2023")
        kl_coef: float = setting(0.0)  # another default; help and range stay those of the base

An *argument* is a field that a run's configuration does not set: a model, a device, a seed.
"""

# ruff: noqa: RUF009 - setting and argument return fields

from __future__ import annotations

import collections.abc
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from inspect import Parameter, Signature, get_annotations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import torch
from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.common.sb3_names import in_our_words
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.precision import Precision
from rlhf_gym.ranges import bounds_of, is_within
from rlhf_gym.text import closest, nearest

SCHEDULE = "a function of the remaining progress (1 to 0)"
SIZES = ("n_episodes", "batch_size", "group_size")
"""The settings whose defaults adapt to the number of environments."""
POSITIONAL = "learning_rate"
"""The setting that may be given by its place, the third, as in stable-baselines3."""
UNSET: Any = MISSING
"""The value of an argument that was not given, where None means something."""


def setting(
    default: Any = MISSING,
    help: str | None = None,  # noqa: A002 - the word of argparse and of the documentation
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    source: str | None = None,
) -> Any:
    """Make a dataclass field of a setting; its type and choices come from the annotation.

    A subclass that changes a default leaves out the rest: help, range and source are inherited.

    Args:
        default: the default; without one, the setting must be given.
        help: one sentence.
        at_least: smallest value.
        above: the value must be larger.
        at_most: largest value.
        below: the value must be smaller.
        source: the paper that the setting, or its default, comes from.
    """
    metadata = {
        "help": help, "at_least": at_least, "above": above, "at_most": at_most, "below": below, "source": source,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def argument(
    default: Any = MISSING,
    help: str | None = None,  # noqa: A002
    *,
    at_least: float | None = None,
    compare: bool = True,
) -> Any:
    """Make a field that the constructor takes and a run's configuration does not set.

    Args:
        default: the default; without one, the argument must be given.
        help: one sentence.
        at_least: smallest value.
        compare: False leaves the argument out when settings are compared.
    """
    return field(default=default, compare=compare, metadata={"help": help, "at_least": at_least, "argument": True})


@dataclass(frozen=True)
class Setting:
    """One field of a settings class, for checks and documentation.

    Attributes:
        name: the constructor's keyword.
        annotation: its type as it stands in the source.
        default: ``dataclasses.MISSING`` where it must be given.
        help: one sentence.
        source: the paper it comes from; empty where there is none.
        is_argument: True for a field that a run's configuration does not set.
        kind: ``int``, ``float``, ``bool``, ``str``, or None for anything else.
        choices: the allowed values, where there are only some.
        optional: None is allowed.
        schedule: a function of the remaining progress is allowed.
        bounds: the range of its numbers, as :func:`rlhf_gym.ranges.bounds_of` gives it.
    """

    name: str
    annotation: str
    default: Any
    help: str
    source: str
    is_argument: bool
    kind: type | None
    choices: tuple[Any, ...]
    optional: bool
    schedule: bool
    bounds: Mapping[str, float]

    @property
    def type_in_words(self) -> str:
        """The type for readers, e.g. ``float, schedule or None``."""
        if not self.choices and self.kind is None:
            return self.annotation.replace(" | ", " or ")
        word = "choice" if self.choices or self.kind is None else self.kind.__name__
        words = [word] + ["schedule"] * self.schedule + ["None"] * self.optional
        return word if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

    @property
    def range_in_words(self) -> str:
        """The allowed values, e.g. ``a finite number above 0``; empty where anything of the type is allowed."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.kind is bool:
            return "True or False"
        if self.kind is str:
            return "a text"
        if self.kind is None:
            return ""
        bounds = self.bounds
        low, high = bounds.get("at_least", bounds.get("above")), bounds.get("at_most", bounds.get("below"))
        noun = "whole number" if self.kind is int else "number"
        if low is not None and high is not None:
            left, right = "[" if "at_least" in bounds else "(", "]" if "at_most" in bounds else ")"
            return f"a {noun} in {left}{low:g}, {high:g}{right}"
        noun = noun if self.kind is int else f"finite {noun}"
        if low is not None:
            return f"a {noun} {'of at least' if 'at_least' in bounds else 'above'} {low:g}"
        if high is not None:
            return f"a {noun} {'of at most' if 'at_most' in bounds else 'below'} {high:g}"
        return f"a {noun}"

    def check(self, value: Any) -> None:
        """Refuse a value of the wrong type or out of range.

        Raises:
            ConfigError: names the setting, the value and the allowed values.
        """
        if (value is None and self.optional) or (self.schedule and callable(value)):
            return
        others = f", or {SCHEDULE}" * self.schedule + ", or None" * self.optional
        if self.choices:
            if value not in self.choices:
                raise ConfigError(f"{self.name} must be {self.range_in_words}{others}; got {value!r}")
        elif (self.kind is not None and not self._fits(value)) or (value is None and not self.is_argument):
            raise ConfigError(f"{self.name} must be {self.range_in_words or self.annotation}{others}, got {value!r}")

    def _fits(self, value: Any) -> bool:
        if self.kind is bool:
            return isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str | Path)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return False
        return math.isfinite(value) and is_within(value, self.bounds)


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """The settings that every agent has. Subclasses add their own, and refuse contradictions in ``__post_init__``."""

    absence: ClassVar[str] = ""  # the reason, for messages, why an agent has none of a class's settings
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # settings by the name of the method that they make

    language_model: LanguageModel | str = argument("embedded", "the model that is trained (in place), or its name")
    reference: LanguageModel | str | None = argument(
        None,
        "the model that KL is measured from, or its name. None takes the policy as it was handed over, an adapter that it came "
        "with included; where nothing needs the KL (a `kl_coef` of 0 and no `kl_limit`), None takes no reference, and "
        "`objective/kl` is not measured. `base` takes the model beneath the adapter",
    )
    lora: Lora | Mapping[str, Any] | None = argument(
        None,
        'trains a LoRA adapter: `{"rank": 8, "alpha": 16, "targets": [...]}`, each of which may be left out. The model itself '
        "is frozen, and is the reference by default. An adapter needs a learning rate about ten times as high",
    )
    learning_rate: float | Schedule = setting(
        1e-4,
        "AdamW's learning rate. The default suits models of 1 to 10 million parameters; from 100 million on, take 3e-6 to 1e-5",
        above=0,
    )
    learning_rate_decay: Literal["constant", "linear", "cosine"] = setting(
        "constant", "linear and cosine let the learning rate fall to 0 at the end of training"
    )
    learning_rate_warmup: float = setting(
        0.0, "the part of training in which the learning rate rises from near 0", at_least=0, below=1
    )
    optimizer: Literal["adamw", "adamw_8bit"] = setting(
        "adamw",
        "adamw_8bit is AdamW with its two moments in 8 bits a number, 2 bytes a weight in place of 8 (tensors of fewer than "
        "4,096 numbers keep float32). Needs pip install 'rlhf-gym[quantized]'",
        source="Dettmers et al. 2022",
    )
    adam_beta1: float = setting(
        0.9, "AdamW's decay rate of the mean gradient", at_least=0, below=1, source="Loshchilov and Hutter 2019"
    )
    adam_beta2: float = setting(0.999, "AdamW's decay rate of the mean squared gradient", at_least=0, below=1)
    adam_epsilon: float = setting(
        1e-5,
        "added to the root of the mean squared gradient. The default is PPO's for small models; a billion weights share a "
        "gradient of norm 1 as 3e-5 each, so that large models need 1e-8",
        above=0,
    )
    weight_decay: float = setting(0.0, "AdamW's weight decay", at_least=0)
    n_episodes: int | None = setting(
        None, "episodes per iteration, a multiple of the number of environments; None takes one episode per environment",
        at_least=1,
    )  # fmt: skip
    batch_size: int | None = setting(
        None,
        "whole episodes per minibatch; None takes all of them. The default is lowered to the episodes of an iteration",
        at_least=1,
    )
    tokens_per_batch: int = setting(
        4096,
        "padded tokens per forward pass; gradients are accumulated, so it changes memory and speed only. It halves itself "
        "where a GPU's memory runs out (in TRPO's policy step it does not)",
        at_least=1,
    )
    precision: Precision = setting(
        "float32",
        "bf16 and fp16 multiply matrices in bfloat16 or float16 (fp16 with loss scaling), while weights, optimizer and losses "
        "stay float32; auto takes bf16 where this machine multiplies faster in it",
        source="Micikevicius et al. 2018",
    )
    gradient_checkpointing: bool = setting(
        False,
        "the backward pass computes each layer's activations anew in place of keeping them: less memory, more time",
        source="Chen et al. 2016",
    )
    max_grad_norm: float = setting(1.0, "the norm that gradients are clipped to", above=0)
    stats_window_size: int = argument(100, "number of episodes that `rollout/ep_rew_mean` averages", at_least=1)
    tensorboard_log: str | None = argument(None, "folder for TensorBoard's files; None writes none")
    verbose: int = argument(0, "1 prints the logger's tables", at_least=0)
    seed: int | None = argument(None, "seed of everything random; None draws one", at_least=0)
    device: torch.device | str = argument("auto", "device of the models that are given by name", compare=False)

    def __post_init__(self) -> None:
        for known in settings_of(type(self)).values():
            known.check(getattr(self, known.name))
        for name in ("language_model", "reference"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, LanguageModel | str):
                raise ConfigError(
                    f"{name} must be a rlhf_gym.lm.language_model.LanguageModel or a name, got {type(given).__name__}; a model "
                    "of transformers becomes one with LanguageModel(model, tokenizer, name)"
                )
        if callable(self.learning_rate) and (self.learning_rate_decay != "constant" or self.learning_rate_warmup):
            raise ConfigError(
                "learning_rate is a schedule already; leave learning_rate_decay at 'constant' and learning_rate_warmup at 0"
            )
        if self.n_episodes is not None and (self.batch_size or 1) > self.n_episodes:
            raise ConfigError(f"batch_size ({self.batch_size}) must be at most n_episodes ({self.n_episodes})")

    @classmethod
    def needs_reference(cls, values: Mapping[str, Any]) -> bool:
        """True where KL is measured from a reference: one was given, or a setting needs it.

        Args:
            values: of all settings, by name; without ``reference``, none was given.
        """
        return values.get("reference") is not None

    @classmethod
    def learns_with_reference(cls, values: Mapping[str, Any]) -> bool:
        """True where the losses of a minibatch need passes of the reference, which then stays whole.

        Args:
            values: of all settings, by name.
        """
        return False

    @classmethod
    def of(cls, given: Mapping[str, Any], owner: str | None = None, *, num_envs: int | None = None) -> Self:
        """Settings from keywords.

        Args:
            given: values by name; the others take their defaults.
            owner: the agent's name, for messages.
            num_envs: the number of environments, which some defaults adapt to; None where it is not known.

        Raises:
            ConfigError: an unknown name (with the nearest known one), a missing or bad value, or a contradiction.
        """
        owner = owner or owner_of(cls)
        known = settings_of(cls)
        given = in_our_words(given, known, owner)
        for name in given:
            if name not in known:
                raise ConfigError(_unknown(cls, name, owner))
        for spec in known.values():
            if spec.default is MISSING and spec.name not in given:
                raise ConfigError(f"{owner} needs {spec.name}: {spec.help}")
        return cls(**{**cls.adapted_defaults(given, num_envs), **given})

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any], num_envs: int | None) -> dict[str, Any]:
        """The defaults that adapt to what was given and to the environment, by name; all others are the class's own.

        Args:
            given: values by name, not yet checked.
            num_envs: the number of environments; None where it is not known.
        """
        known = settings_of(cls)
        episodes, size = given.get("n_episodes", known["n_episodes"].default) or num_envs, known["batch_size"].default
        if "batch_size" in given or size is None or not isinstance(episodes, int):
            return {}
        return {"batch_size": min(size, episodes)}

    def adapted(self, chosen: Mapping[str, Any], num_envs: int) -> Self:
        """The same for another number of environments.

        Args:
            chosen: those of :data:`SIZES` that somebody gave; the others are adapted.
            num_envs: the number of environments.
        """
        known = settings_of(type(self))
        defaults = {name: known[name].default for name in SIZES if name in known}
        return replace(self, **{**defaults, **self.adapted_defaults(chosen, num_envs), **chosen})

    @classmethod
    def preset(cls, name: str, owner: str | None = None) -> dict[str, Any]:
        """The settings of a named preset.

        Args:
            name: of the preset.
            owner: the agent's name, for messages.

        Raises:
            ConfigError: there is no preset of that name; the nearest one is named.
        """
        if name in cls.presets:
            return dict(cls.presets[name])
        owner = owner or owner_of(cls)
        if not cls.presets:
            raise ConfigError(f"{owner} has no presets, got {name!r}; leave it out")
        raise ConfigError(
            f"{owner} has no preset {name!r}{nearest(str(name), cls.presets)} Expected one of {', '.join(cls.presets)}"
        )

    @classmethod
    def names(cls) -> set[str]:
        """The names of all settings and arguments."""
        return {f.name for f in fields(cls)}

    @classmethod
    def argument_names(cls) -> set[str]:
        """The names of the arguments, which a run's configuration does not set."""
        return {spec.name for spec in settings_of(cls).values() if spec.is_argument}

    def named(self) -> Self:
        """The same with models by their names: a reference that was given as a model is None."""
        model, reference = self.language_model, self.reference
        changes: dict[str, Any] = {
            "language_model": model if isinstance(model, str) else model.name,
            "reference": reference if isinstance(reference, str) else None,
            "lora": None if self.lora is None else Lora.of(self.lora),
        }
        return replace(self, **changes)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values.

        ``given_at_load`` lists the names of those that JSON cannot hold (schedules, raters, data).
        """
        values = {f.name: getattr(self.named(), f.name) for f in fields(self) if f.name != "device"}
        values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        if isinstance(values["lora"], Lora):
            values["lora"] = values["lora"].settings()
        out = {name: value for name, value in values.items() if name == "lora" or is_json(value)}
        return {**out, "given_at_load": [name for name in values if name not in out]}


def settings_of(cls: type[AgentSettings]) -> Mapping[str, Setting]:
    """The fields of a settings class by name, in their order; bounds and help are inherited where a subclass gives none."""
    return _described(cls)  # type: ignore[arg-type]  # mypy takes a class of unhashable objects for unhashable


@cache
def _described(cls: Any) -> Mapping[str, Setting]:
    hints, out = get_type_hints(cls), {}
    for f in fields(cls):
        merged: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            if f.name in get_annotations(base):
                metadata = base.__dict__["__dataclass_fields__"][f.name].metadata
                merged |= {key: value for key, value in metadata.items() if value is not None}
        hint = hints[f.name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = [part for part in parts if part in (bool, int, float, str)]
        others = [part for part in parts if part not in (*kinds, NoneType) and get_origin(part) is not Literal]
        schedule = bool(others) and all(get_origin(part) is collections.abc.Callable for part in others)
        out[f.name] = Setting(
            name=f.name, annotation=f.type if isinstance(f.type, str) else str(f.type), default=f.default,
            help=merged.get("help", ""), source=merged.get("source", ""), is_argument=merged.get("argument", False),
            kind=kinds[0] if kinds and (schedule or not others) else None,
            choices=tuple(choice for part in parts if get_origin(part) is Literal for choice in get_args(part)),
            optional=NoneType in parts, schedule=schedule,
            bounds=bounds_of(merged),
        )  # fmt: skip
    return out


def signature_of(cls: type[AgentSettings]) -> Signature:
    """The signature of the constructor of an agent with these settings."""
    places = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        Parameter("policy", places, default="LMPolicy", annotation="str | type[LMPolicy]"),
        Parameter("env", places, default=None, annotation="GymEnv | str | None"),
    ]
    specs = settings_of(cls)
    for name in (POSITIONAL, *(name for name in specs if name != POSITIONAL)):
        spec, kind = specs[name], places if name == POSITIONAL else Parameter.KEYWORD_ONLY
        default = Parameter.empty if spec.default is MISSING else spec.default
        parameters.append(Parameter(name, kind, default=default, annotation=spec.annotation))
    return Signature(parameters)


def owner_of(cls: type) -> str:
    """The agent's name by its settings': ``PPO`` of ``PPOSettings``, ``Mine`` of ``Mine.Settings``."""
    return cls.__qualname__.removesuffix("Settings").rstrip(".").rpartition(".")[2] or cls.__name__


def is_json(value: object) -> bool:
    """JSON can hold the value, and a reader gets the same one back."""
    return value is None or isinstance(value, str | int | float | bool)


def _unknown(cls: type[AgentSettings], name: str, owner: str) -> str:
    """The message for a setting that a class does not have."""
    declaring = [other for other in _descendants(AgentSettings) if name in get_annotations(other)]
    if declaring and declaring[0].absence not in ("", cls.absence):
        return f"{owner} has no {name}: {declaring[0].absence}"
    near = closest(name, cls.names())
    if declaring or near is None:  # another agent's setting is no slip of the pen
        return f"{owner} has no setting {name}; leave it out"
    return f"{owner} has no setting {name}; did you mean {near!r}?"


def _descendants(cls: type[AgentSettings]) -> list[type[AgentSettings]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _descendants(child))]
