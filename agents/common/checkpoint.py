"""Saving and loading agents without pickle: a zip of safetensors, JSON, and the language model's own folder."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3.common.utils import ConstantSchedule
from torch import Tensor

from rlhf_gym.agents.common.kl import LastGood
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.sb3_names import our_name
from rlhf_gym.agents.common.settings import SIZES, AgentSettings, is_json
from rlhf_gym.agents.common.setup import BASE, made_env
from rlhf_gym.agents.common.slots import tokenizer_of
from rlhf_gym.agents.common.training_state import Agent, training_state
from rlhf_gym.envs.token_rows import token_spaces
from rlhf_gym.errors import ConfigError, ModelError, TrainingError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import fingerprint, load_adapter, save_adapter
from rlhf_gym.lm.quantization import without_codes
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import AnyTokenizer, HubTokenizer
from rlhf_gym.version import __version__

FORMAT = 2
REFERENCE, REFERENCE_ADAPTER = "reference", "reference_adapter"  # folders in a checkpoint
HELD = (
    "policy",
    "policy.optimizer",
    "policy_class",
    "observation_space",
    "action_space",
    "ep_info_buffer",
    "kl_controller",
)
"""What a checkpoint holds besides the settings and the state of training, by the names of an agent's attributes."""
NOTHING = "nothing"  # safetensors cannot hold no tensor at all: a policy without a value function

A = TypeVar("A")


def save_agent(agent: Agent, path: Any) -> None:
    """Write a checkpoint; an older one is replaced only once all is written.

    A checkpoint holds everything that training needs to go on exactly: weights, optimizer, counters, random states (the
    environment's too), and the reference unless it was given by name. Of an agent with an adapter it holds all weights that
    learn, but not the base, which is loaded by its name, or given. Opening a checkpoint never runs code from it.

    Args:
        agent: the agent.
        path: where to (``.zip`` is added where it is missing), or a binary file.

    Raises:
        TrainingError: it could not be written; an older checkpoint is still whole.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            _write(agent, folder)
            if hasattr(path, "write"):
                pack(folder, path)
                return
            path = with_suffix(Path(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            packed = path.with_name(f".{path.name}.tmp")
            try:
                pack(folder, packed)
                os.replace(packed, path)
            finally:
                packed.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(
                f"cannot write the checkpoint {path}: {error.strerror or error}; an older one is untouched"
            ) from error


def _write(agent: Agent, folder: Path) -> None:
    model = agent.policy.language_model
    if model.base is None:
        model.save(folder / "model")
    reference = agent.reference
    # Of one network there may be two LanguageModels: products are rounded, or not, for each alone.
    is_base = model.base is not None and reference is not None and reference.model is model.base.model
    if reference is not None and not isinstance(agent.settings.reference, str) and not is_base:
        # An adapter is kept as one: merged into weights, it would give other log-probabilities by rounding.
        whole = reference if reference.base is None else reference.base
        if model.base is None or whole.model is not model.base.model:
            whole.save(folder / REFERENCE)
        if reference.adapter is not None:
            save_adapter(reference, folder / REFERENCE_ADAPTER)
    save_file(_separate(own_weights(agent.policy)), folder / "policy.safetensors")
    state, last_good = agent.whole_state()
    tensors, scalars = _flatten(state)
    save_file(tensors, folder / "optimizer.safetensors")
    kept = None
    if last_good is not None:
        save_file(_separate(last_good.weights), folder / "last_good.safetensors")
        moments, kept = _flatten(last_good.optimizer)
        save_file(moments, folder / "last_good_optimizer.safetensors")
    assert isinstance(agent.observation_space, spaces.Dict)
    data = {
        "format": FORMAT, "version": __version__, "class": type(agent).__name__, "settings": agent.settings.as_json(),
        "dtype": _dtype(model), "reference_dtype": None if reference is None else _dtype(reference),
        "spaces": {name: list(space.shape or ()) for name, space in agent.observation_space.spaces.items()},
        "optimizer": scalars, "limits": asdict(agent.policy.limits), "state": agent.state(), "last_good": kept,
        "chosen": agent._chosen_sizes, "policy": type(agent.policy).__name__,
        "base": None if model.base is None else {
            "name": model.name, "fingerprint": fingerprint(model.base), "is_reference": is_base,
            "quantization": model.base.quantization,
            **({"chat_template": model.tokenizer.hub.chat_template} if isinstance(model.tokenizer, HubTokenizer) else {}),
        },
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps(data, indent=1), encoding="utf-8")


def check_whole(agent: Agent, exclude: Collection[str], include: Collection[str]) -> None:
    """Refuse a checkpoint that would hold less than training needs, or more than can be held.

    Args:
        agent: the agent.
        exclude: names of attributes to leave out, as stable-baselines3 has them.
        include: names of attributes that are not to be left out.

    Raises:
        ConfigError: a name of ``exclude`` that a checkpoint holds, or one of ``include`` that it does not.
    """
    if not (exclude or include):
        return  # the state of a large environment need not be read
    held = {*agent.settings.names(), *training_state(agent), *HELD} - {
        "env"
    }  # the state of the environment, not itself
    if less := sorted(held.intersection(exclude)):
        raise ConfigError(
            f"a checkpoint goes on exactly where it was taken, so it holds {', '.join(less)}; leave exclude out"
        )
    if more := sorted(set(include) - held):
        raise ConfigError(
            f"a checkpoint does not hold {', '.join(more)}: leave include out, and give an environment to load"
        )


def custom_settings(cls: type[AgentSettings], custom: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in stable-baselines3's ``custom_objects``, which may name anything that a file could hold.

    Args:
        cls: the settings of the agent.
        custom: values by name.
    """
    ours = {our_name(name, cls.names()): value for name, value in custom.items()}
    known = {name: value for name, value in ours.items() if name in cls.names()}
    rate = known.get("learning_rate")
    if callable(rate) or rate == 0:  # 0 is refused where an agent is made to learn
        known |= {"learning_rate": rate if callable(rate) else ConstantSchedule(0.0), "learning_rate_decay": "constant"}
        known["learning_rate_warmup"] = 0.0
    return known


def load_agent(
    cls: type[A],
    path: Any,
    env: Any,
    device: str,
    changes: dict[str, Any],
    *,
    language_model: LanguageModel | str | None = None,
    tokenizer: AnyTokenizer | None = None,
) -> A:
    """Read a checkpoint. Nothing in it is executed, so it need not be trusted.

    Args:
        cls: the agent's class.
        path: as :func:`save_agent` was given it.
        env: the environment to go on in; None is enough for ``predict``.
        device: device of the weights.
        changes: settings to use instead of the saved ones.
        language_model: the base (or its name) of an agent with an adapter, where it cannot be loaded by its old name.
        tokenizer: needed where the tokenizer is not a Hugging Face one and no token environment is given that has it.

    Raises:
        ModelError: there is no such file, or it is no checkpoint of this class.
        ConfigError: a value that the checkpoint cannot hold, such as a schedule, was not given again.
    """
    if not hasattr(path, "read"):
        path = Path(path) if Path(path).is_file() else with_suffix(Path(path))
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            archive.extractall(folder)
            data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
            if data["class"] != cls.__name__ or data["format"] != FORMAT:
                raise ModelError(
                    f"{path} holds a {data['class']} in format {data['format']}; expected {cls.__name__} in format {FORMAT}"
                )
            env = made_env(env)
            if tokenizer is None and env is not None:
                tokenizer = tokenizer_of(env)
            return _build(cls, folder, data, env, device, language_model, tokenizer, changes)
    except (OSError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        raise ModelError(
            f"cannot load {cls.__name__} from {path}: {error}. Expected a file written by {cls.__name__}.save"
        ) from error


def _build(
    cls: type[A],
    folder: Path,
    data: dict[str, Any],
    env: Any,
    device: str,
    given: LanguageModel | str | None,
    tokenizer: AnyTokenizer | None,
    changes: dict[str, Any],
) -> A:
    saved = data["settings"]
    if lacking := [name for name in saved["given_at_load"] if name not in changes]:
        raise ConfigError(
            f"the checkpoint was made with values of {', '.join(lacking)} that it cannot hold (functions, raters, data): give "
            f"them again, load(path, {', '.join(f'{name}=...' for name in lacking)})"
        )
    if data["policy"] != LMPolicy.__name__ and "policy" not in changes:
        raise ConfigError(f"the checkpoint's policy is of a class of its own: load(path, policy={data['policy']})")
    elsewhere = {"given_at_load", "language_model", "value_start"}  # the value network is among the weights
    elsewhere |= {name for name in SIZES if name not in data["chosen"]}  # they adapt to this environment
    settings = {name: value for name, value in saved.items() if name not in elsewhere}
    changes = {our_name(name, saved): value for name, value in changes.items()}
    settings |= {"seed": data["state"]["seed"], **changes}
    optimizer = saved.get("optimizer", "adamw")
    if changes.get("optimizer", optimizer) != optimizer:
        raise ConfigError(
            f"the checkpoint holds the moments of optimizer={optimizer!r}, which {changes['optimizer']!r} cannot go on from: "
            "leave optimizer out, or begin a new agent from the checkpoint's language model"
        )
    base = data.get("base")
    if (given is not None and base is None) or "lora" in changes or "value_start" in changes:
        raise ConfigError(
            "a checkpoint's language model, adapter and value network are its own: leave language_model, lora and "
            "value_start out"
        )
    model = _load_base(base, data, device, given, tokenizer) if base else None
    if model is None:
        model = _load_model(folder / "model", data, data["dtype"], device, tokenizer)
    if settings["reference"] is None and data["reference_dtype"] is not None:
        is_base = base is not None and base["is_reference"]
        settings["reference"] = BASE if is_base else _load_reference(folder, model, data, device, tokenizer)
    make: Any = cls
    agent = make(env=env, language_model=model, device=device, _init_setup_model=False, **settings)
    if settings["reference"] is None and agent.settings.needs_reference(vars(agent.settings)):
        raise ConfigError(
            "the checkpoint holds no reference, since it was trained without one (kl_coef=0 and no kl_limit), and the settings "
            "that it is loaded with need one: load(path, reference=...)"
        )
    by_name = [name for name in ("language_model", "value_start", "reference") if name not in changes]
    names = {name: saved[name] for name in by_name if name in saved}
    agent.settings = replace(agent.settings, **names)
    if env is None:
        capacity = data["spaces"]["ids"][0]  # those of the environment that it learned in, for use without one
        agent.observation_space, agent.action_space = token_spaces(model.vocab_size, capacity, capacity)
    agent._setup_model()
    if env is None:
        limits: dict[str, Any] = {k: tuple(x) if isinstance(x, list) else x for k, x in data["limits"].items()}
        agent.policy.limits = Limits(**limits)
    extra = {k: v for k, v in load_file(folder / "policy.safetensors").items() if k != NOTHING}
    _, unexpected = agent.policy.load_state_dict(extra, strict=False)
    missing = [key for key in own_weights(agent.policy) if key not in extra]
    if unexpected or missing:
        raise ModelError(f"the checkpoint's policy does not fit: missing {missing}, unexpected {unexpected}")
    moments = _unflatten(load_file(folder / "optimizer.safetensors"), data["optimizer"])["state"]
    # The groups' options are the settings', some of which may have been changed; the weights' order never differs.
    groups = agent.policy.optimizer.state_dict()["param_groups"]
    agent.policy.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if (last_good := data.get("last_good")) is not None:
        moments = _unflatten(load_file(folder / "last_good_optimizer.safetensors"), last_good)["state"]
        kept = {"state": moments, "param_groups": groups}
        agent.kl_guard.last_good = LastGood(load_file(folder / "last_good.safetensors"), kept)
    agent.restore(data["state"])
    agent.kl_controller.coef = changes.get("kl_coef", agent.kl_controller.coef)
    loaded: A = agent
    return loaded


def _load_reference(
    folder: Path, model: LanguageModel, data: dict[str, Any], device: str, tokenizer: AnyTokenizer | None
) -> LanguageModel:
    """The reference that a checkpoint holds: a model, an adapter on the policy's base, or both.

    Args:
        folder: the checkpoint's.
        model: the policy before its adapter is put on.
        data: the checkpoint's values.
        device: device of the weights.
        tokenizer: the user's own, if any.
    """
    reference = model
    if (folder / REFERENCE).is_dir():
        reference = _load_model(folder / REFERENCE, data, data["reference_dtype"], device, tokenizer)
    if (folder / REFERENCE_ADAPTER).is_dir():
        reference = load_adapter(reference, folder / REFERENCE_ADAPTER)
    return reference


def _load_model(
    folder: Path, data: dict[str, Any], dtype: str, device: str, tokenizer: AnyTokenizer | None
) -> LanguageModel:
    """A model of the checkpoint, under the name that it was first loaded by."""
    # The user's own tokenizer is not in the checkpoint.
    own = (folder / "tokenizer_config.json").exists()
    if not own and tokenizer is None:
        raise ModelError("the checkpoint's tokenizer is not a Hugging Face one; give it: load(path, tokenizer=...)")
    model = LanguageModel.load(str(folder), device=device, dtype=dtype, tokenizer=None if own else tokenizer)
    model.name = str(data["settings"]["language_model"] or "checkpoint")
    return model


def _load_base(
    base: dict[str, Any],
    data: dict[str, Any],
    device: str,
    given: LanguageModel | str | None,
    tokenizer: AnyTokenizer | None,
) -> LanguageModel:
    """The model that a checkpoint's adapter belongs to.

    Raises:
        ModelError: it cannot be loaded, or has other weights.
    """
    model, name = given, given if isinstance(given, str) else base["name"]
    if not isinstance(model, LanguageModel):
        try:
            # Other kinds are in the base's own files.
            quantization = "nf4" if base.get("quantization") == "nf4" else None
            model = LanguageModel.load(
                name, device=device, dtype=data["dtype"], quantization=quantization, tokenizer=tokenizer
            )
            if tokenizer is None and "chat_template" in base and isinstance(model.tokenizer, HubTokenizer):
                # The base's own files do not know that it was left off, or replaced.
                model.tokenizer.set_template(base["chat_template"])
        except ModelError as error:
            raise ModelError(
                f"the checkpoint holds a LoRA adapter without its base, {name!r}, which cannot be loaded: {error} Or give the "
                "base: load(path, language_model=...)"
            ) from error
    if fingerprint(model) != base["fingerprint"]:
        raise ModelError(
            f"the checkpoint's LoRA adapter was made for a base {base['name']!r} with other weights than {model.name!r} has: "
            "give the right one, load(path, language_model=...)"
        )
    return model


def own_weights(policy: LMPolicy) -> dict[str, Tensor]:
    """The weights that a checkpoint keeps besides the language model's folder; of an adapted model all but the base's.

    Args:
        policy: the policy.

    Returns:
        Tensors of any shape ``[...]``, by their name in the policy.
    """
    model = policy.language_model
    if model.base is None:
        return {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("lm.")}
    shared = {tensor.data_ptr() for tensor in model.base.model.state_dict().values()}
    return {name: tensor for name, tensor in without_codes(policy).items() if tensor.data_ptr() not in shared}


def _dtype(model: LanguageModel) -> str:
    return str(model.model.dtype).removeprefix("torch.")


def pack(folder: Path, target: Any) -> None:
    """Put a folder's files into a zip (stored as they are: weights hardly shrink).

    Args:
        folder: holds the files.
        target: path of the zip, or a binary file.
    """
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())


def with_suffix(path: Path) -> Path:
    """The path with ``.zip`` at its end."""
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them (a separate value network ties its embeddings)."""
    return {k: v.detach().clone().contiguous() for k, v in tensors.items()} or {NOTHING: torch.zeros(0)}


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and its parameter groups as JSON. Whole numbers are tensors ``[]`` of int64."""
    tensors = dict(_named(state["state"]))
    groups = [
        {k: v for k, v in group.items() if is_json(v) or isinstance(v, list | tuple)} for group in state["param_groups"]
    ]
    return tensors, {"param_groups": groups}


def _named(entries: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Copies of the tensors and whole numbers in nested dicts, by the names on their way."""
    for key, value in entries.items():
        if isinstance(value, dict):  # bitsandbytes keeps its moments in one more
            yield from _named(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", torch.tensor(value) if isinstance(value, int) else value.clone()


def _unflatten(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, *inside, key = name.split(".")
        entry = state.setdefault(int(index), {})
        for one in inside:
            entry = entry.setdefault(one, {})
        entry[key] = int(tensor) if tensor.dtype == torch.int64 and not tensor.ndim else tensor
    return {"state": state, "param_groups": scalars["param_groups"]}
