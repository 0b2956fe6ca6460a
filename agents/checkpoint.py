"""Saving and loading agents without pickle: a zip of safetensors, JSON, and the language model's own folder."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from rlhf_gym.agents.policy import LMPolicy
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ModelError
from rlhf_gym.language_model import LanguageModel

FORMAT = 1
FOLDERS = ("model", "reference")


class Checkpointed(OnPolicyAlgorithm):
    """``save`` and ``load`` for agents whose constructor's settings are in ``settings``.

    A checkpoint holds everything needed to go on as if never interrupted: weights, optimizer, counters, random states (the
    environment's too), and the reference unless it was given by name. Opening one never runs code from it.
    """

    policy: LMPolicy
    settings: dict[str, Any]

    def state(self) -> dict[str, Any]:
        """Counters and random states, as JSON values."""
        agent: Any = self
        env = self.env.state() if isinstance(self.env, TokenVecEnv) else None
        return {
            "num_timesteps": self.num_timesteps,
            "iteration": agent.iteration,
            "episode_count": agent.episode_count,
            "tokens_not_stepped": agent._tokens_not_stepped,
            "seed": self.seed,
            "update_rng": agent._update_rng.bit_generator.state,
            "env": env,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`."""
        agent: Any = self
        self.num_timesteps = state["num_timesteps"]
        agent.iteration = state["iteration"]
        agent.episode_count = state["episode_count"]
        agent._tokens_not_stepped = state["tokens_not_stepped"]
        agent._update_rng.bit_generator.state = state["update_rng"]
        if isinstance(self.env, TokenVecEnv) and state["env"] and len(state["env"]["generators"]) == self.env.num_envs:
            self.env.restore(state["env"])
            # learn() resets an environment it has no observation of, which would draw a prompt that nobody used before.
            self._last_obs = dict(self.env.env.episodes.observe())

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write a checkpoint (``.zip`` is added where it is missing); an older one is replaced only once all is written.

        Args:
            path: where to.
            exclude: not used; here for stable-baselines3's signature.
            include: not used.
        """
        path = with_suffix(Path(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        agent: Any = self
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as name:
            folder = Path(name)
            self.policy.language_model.save(folder / "model")
            if not isinstance(self.settings["reference"], str):
                agent.reference.save(folder / "reference")
            extra = {k: v for k, v in self.policy.state_dict().items() if not k.startswith("lm.")}
            save_file(_separate(extra), folder / "policy.safetensors")
            tensors, scalars = _flatten(self.policy.optimizer.state_dict())
            save_file(tensors, folder / "optimizer.safetensors")
            data = {"format": FORMAT, "class": type(self).__name__, "settings": self.settings, "optimizer": scalars,
                    "state": self.state()}  # fmt: skip
            (folder / "data.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
            packed = folder.with_suffix(".tmp")
            try:
                with zipfile.ZipFile(packed, "w") as archive:
                    for file in sorted(folder.rglob("*")):
                        archive.write(file, file.relative_to(folder).as_posix())
                os.replace(packed, path)
            finally:
                packed.unlink(missing_ok=True)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: Any,
        env: Any = None,
        device: torch.device | str = "auto",
        **changes: Any,
    ) -> Self:
        """Read a checkpoint.

        Args:
            path: a file written by :meth:`save`.
            env: the environment to go on in; needed.
            device: where to put the weights.
            changes: constructor arguments to use instead of the saved ones.

        Raises:
            ModelError: no such file, or not a checkpoint of this class.
        """
        path = Path(path) if Path(path).is_file() else with_suffix(Path(path))
        try:
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                archive.extractall(folder)
                data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
                if data["class"] != cls.__name__ or data["format"] != FORMAT:
                    raise ModelError(f"{path} holds a {data['class']} of format {data['format']}; expected {cls.__name__}")
                return cls._build(folder, data, env, str(device), changes)
        except (OSError, KeyError, zipfile.BadZipFile, json.JSONDecodeError) as error:
            raise ModelError(f"cannot load {cls.__name__} from {path}: {error}") from error

    @classmethod
    def _build(cls, folder: Path, data: dict[str, Any], env: Any, device: str, changes: dict[str, Any]) -> Self:
        # Tokenizers that are not Hugging Face's are not in the checkpoint; the environment has its own.
        in_checkpoint = (folder / "model" / "tokenizer_config.json").exists()
        tokenizer = None if in_checkpoint or not isinstance(env, TokenVecEnv) else env.env.episodes.tokenizer
        model = LanguageModel.load(str(folder / "model"), device=device, tokenizer=tokenizer)
        settings = {**data["settings"], "seed": data["state"]["seed"], **changes}
        if settings["reference"] is None:
            settings["reference"] = LanguageModel.load(str(folder / "reference"), device=device, tokenizer=tokenizer)
        for loaded in (model, settings["reference"]):
            if isinstance(loaded, LanguageModel):
                loaded.name = str(data["settings"]["language_model"] or "checkpoint")
        agent = cls(env=env, language_model=model, **{k: v for k, v in settings.items() if k != "language_model"})
        agent.settings = {**data["settings"], **{k: v for k, v in changes.items() if _is_json(v)}}
        missing, unexpected = agent.policy.load_state_dict(load_file(folder / "policy.safetensors"), strict=False)
        if unexpected or any(not key.startswith("lm.") for key in missing):
            raise ModelError(f"the checkpoint's policy does not fit: missing {missing}, unexpected {unexpected}")
        agent.policy.optimizer.load_state_dict(_unflatten(load_file(folder / "optimizer.safetensors"), data["optimizer"]))
        agent.restore(data["state"])
        return agent


def settings_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments as JSON values: models by their name where they were given by name, else None.

    Learning-rate schedules cannot be written down: :meth:`Checkpointed.load` needs them again.
    """
    skip = {"self", "env", "device", "_init_setup_model", "verbose", "tensorboard_log"}
    out = {k: v for k, v in arguments.items() if k not in skip and not k.startswith("__")}
    name = out.get("language_model")
    out["language_model"] = name if isinstance(name, str) else getattr(name, "name", None)
    return {k: v if _is_json(v) else None for k, v in out.items() if _is_json(v) or k == "reference"}


def with_suffix(path: Path) -> Path:
    """The path with ``.zip`` at its end."""
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them (a separate value network ties its embeddings)."""
    return {k: v.detach().clone().contiguous() for k, v in tensors.items()} or {"empty": torch.zeros(0)}


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and its parameter groups as JSON."""
    tensors = {f"{i}.{k}": v.clone() for i, entry in state["state"].items() for k, v in entry.items()}
    groups = [{k: v for k, v in group.items() if _is_json(v) or isinstance(v, list | tuple)} for group in state["param_groups"]]
    return tensors, {"param_groups": groups}


def _unflatten(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": scalars["param_groups"]}
