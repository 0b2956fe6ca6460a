"""The batch at which an agent diverged, as a file beside its checkpoints, and its replay."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.logger import Logger

from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.checkpoint import pack
from rlhf_gym.agents.common.rollout import TABLES, Episode, Rollout, Turn
from rlhf_gym.errors import ModelError, NotFiniteError, TrainingError

BATCH, TENSORS, AGENT = "batch.json", "batch.safetensors", "agent.zip"
MADE = ("advantages", "returns")
"""Tables that one response's NaN may spread through, as advantages are normalised together."""


class SaveDivergence(IterationCallback):
    """Writes a file where training ends because a loss, a gradient or a rollout is NaN or infinite.

    Args:
        folder: gets ``divergence-ITERATION.zip``, which :func:`replay_divergence` replays.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        self.folder = Path(folder)

    def on_divergence(self, agent: Any, error: NotFiniteError) -> None:
        """Write the batch, and name the file in the error.

        Args:
            agent: the agent.
            error: what went wrong.
        """
        path = self.folder / f"divergence-{agent.iteration + 1}.zip"
        try:
            save_divergence(agent, path, str(error))
        except Exception as failure:  # a full disk has many names, and nothing may hide the error itself
            error.add_note(f"the batch could not be written to {path}: {failure}")
            return
        error.args = (f"{error}. The batch is in {path}: rlhf_gym.agents.replay_divergence replays it",)


def save_divergence(agent: TokenAlgorithm, path: str | os.PathLike[str], message: str = "") -> Path:
    """Write the weights as they are, and the batch that the agent was learning from, as one zip without pickle.

    Args:
        agent: after ``learn`` has raised a ``NotFiniteError``, before anything else is done with it.
        path: of the zip, ``.zip`` included.
        message: what went wrong.

    Returns:
        The path.

    Raises:
        TrainingError: the agent has no rollout.
    """
    rollout = agent.rollout
    if rollout is None:
        raise TrainingError("there is no batch to write before the first rollout")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "class": type(agent).__name__, "message": message, "where": agent.where, "rows": agent.updating,
        "progress_remaining": agent._current_progress_remaining, "episodes": [_as_json(e) for e in rollout.episodes],
        "learn_from": rollout.learn_from, "together": rollout.together, "restricted": rollout.restricted,
        "has_reference": rollout.has_reference, "entropy_bonus": agent.entropy_controller.bonus,
    }  # fmt: skip
    tables = {name: getattr(rollout, name).clone().contiguous() for name in TABLES}
    tables |= {f"masks.{i}": torch.from_numpy(e.masks) for i, e in enumerate(rollout.episodes) if e.masks is not None}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / BATCH).write_text(json.dumps(data, default=_plain), encoding="utf-8")
        save_file(tables, folder / TENSORS)
        agent.save(folder / AGENT)
        partial = target.with_name(f".{target.name}.tmp")
        try:
            pack(folder, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _plain(value: Any) -> Any:
    """A number of NumPy's as one of Python's."""
    return value.item()


def _as_json(episode: Episode) -> dict[str, Any]:
    kept = {key: episode.info[key] for key in ("prompt", "response", "reward_terms") if key in episode.info}
    values = {one.name: getattr(episode, one.name) for one in fields(episode) if one.name not in ("masks", "info")}
    return {**values, "turns": [asdict(turn) for turn in episode.turns], "info": kept}


@dataclass(frozen=True)
class Replay:
    """A divergence that was replayed.

    Attributes:
        message: what training said.
        again: what the replay says; None where it goes through, on another machine or with other settings.
        where: the place in training.
        rows: the rows of the minibatch; None where the rollout itself was not finite.
        culprits: the rows that fail alone; empty where none does, or where ``again`` is None.
        agent: the agent with the weights before the failed step.
        rollout: the rollout, its tables filled in.
    """

    message: str
    again: str | None
    where: str
    rows: list[int] | None
    culprits: list[int]
    agent: TokenAlgorithm
    rollout: Rollout


def replay_divergence(
    kind: type[TokenAlgorithm], path: str | os.PathLike[str], device: str = "auto", **options: Any
) -> Replay:
    """Do the failed update again, from the weights before it; then each of its responses alone, to find those that fail.

    Nothing in the file is executed, so it need not be trusted.

    Args:
        kind: the agent's class.
        path: as :func:`save_divergence` returned it.
        device: device of the weights.
        options: as of the class's ``load``, settings to try instead of the saved ones included.

    Raises:
        ModelError: there is no such file, or it is none of this class.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in (BATCH, TENSORS, AGENT):
                with archive.open(file) as source, (folder / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
            data = json.loads((folder / BATCH).read_text(encoding="utf-8"))
            tables = load_file(folder / TENSORS)
            agent = kind.load(folder / AGENT, device=device, **options)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"cannot replay {path}: {error}. Expected a divergence-ITERATION.zip of {kind.__name__}"
        ) from error
    rollout = _rollout(data, tables)
    agent.rollout, agent.where = rollout, data["where"]
    agent._current_progress_remaining = data["progress_remaining"]
    agent.entropy_controller.bonus = data["entropy_bonus"]
    agent.set_logger(Logger(None, []))
    again = _try(agent, rollout, data["rows"])
    culprits: list[int] = []
    if again is not None and data["rows"] is not None:
        unit = rollout.together
        parts = [data["rows"][i : i + unit] for i in range(0, len(data["rows"]), unit)]
        culprits = [row for part in parts if _try(agent, rollout, part) is not None for row in part]
    elif again is not None:
        culprits = _not_finite(rollout, [name for name in TABLES if name not in MADE]) or _not_finite(rollout, TABLES)
    return Replay(data["message"], again, data["where"], data["rows"], culprits, agent, rollout)


def _rollout(data: dict[str, Any], tables: dict[str, torch.Tensor]) -> Rollout:
    episodes = [Episode(**{**one, "turns": tuple(Turn(**turn) for turn in one["turns"])}) for one in data["episodes"]]
    for row, episode in enumerate(episodes):
        if f"masks.{row}" in tables:
            episode.masks = tables[f"masks.{row}"].numpy()
    named: dict[str, Any] = {name: tables[name] for name in TABLES}
    others = {name: data[name] for name in ("learn_from", "together", "restricted", "has_reference")}
    return Rollout(episodes, **named, **others)


def _try(agent: TokenAlgorithm, rollout: Rollout, rows: list[int] | None) -> str | None:
    """The message of the update of these rows (None: of preparing the rollout), whose step is not made; None if it goes on."""
    start = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    moments = deepcopy(agent.policy.optimizer.state_dict())
    try:
        if rows is None:
            agent._fill_advantages(rollout)
            agent.after_learning(rollout)  # TRPO's step
        else:
            agent.update(rollout, rows)
    except NotFiniteError as error:
        return str(error)
    finally:
        agent.policy.optimizer.zero_grad(set_to_none=True)
        agent.policy.load_state_dict(start)
        agent.policy.optimizer.load_state_dict(moments)
    return None


def _not_finite(rollout: Rollout, names: Sequence[str]) -> list[int]:
    """The rows in which one of these tables is NaN or infinite."""
    finite = torch.stack([torch.isfinite(getattr(rollout, name)).all(1) for name in names]).all(0)
    return torch.nonzero(~finite).flatten().tolist()
