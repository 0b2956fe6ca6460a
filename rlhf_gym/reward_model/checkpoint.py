"""A reward model's folder: safetensors and JSON, never a pickle; complete or not there; and checked when it is read.

The folder holds the language model's own files, ``head.safetensors``, ``reward_model.json``, and hashes of the prompts that it
was fitted to (``fitted_prompts.txt``). ``reward_model.json`` records the score of a fixed row of ids (:func:`probe_ids`), which
is computed again after reading: a trunk, head or configuration from another checkpoint cannot go unnoticed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.reward_model.readout import Readout

FORMAT = 1
PROBE_LENGTH = 8
PROMPTS_FILE = "fitted_prompts.txt"
TOLERANCE = {"float32": 1e-2, "bfloat16": 2e-1, "float16": 1e-1}


@dataclass(frozen=True)
class Moments:
    """What the heads of a reward model said of the samples that it was normalised on, so that its weights can change later.

    Attributes:
        mean: of each head.
        covariance: of the heads, ``A`` rows of ``A``.
    """

    mean: list[float]
    covariance: list[list[float]]

    def of_sum(self, weights: Iterable[float]) -> tuple[float, float]:
        """Mean and standard deviation of the weighted sum of the heads."""
        w = np.array(list(weights))
        return float(w @ np.array(self.mean)), float(max(0.0, w @ np.array(self.covariance) @ w)) ** 0.5


@dataclass(frozen=True)
class SavedRewardModel:
    """The parts of a reward model that a folder holds.

    Attributes:
        language_model: the trunk, with its tokenizer.
        head: the head's tensors by name.
        gain: multiplies raw scores.
        bias: added after that.
        probe: the raw score of :func:`probe_ids`.
        readout: the layers that are run (the trunk is cut to them) and the tokens that are read.
        attributes: the attributes' weights, in the order of the heads; empty with one head.
        moments: of the heads on the samples that it was normalised on; None with one head, or before.
        fitted_prompts: hashes of the prompts that it was fitted to; empty where they are not known.
    """

    language_model: LanguageModel
    head: dict[str, Tensor]
    gain: float
    bias: float
    probe: float
    readout: Readout
    attributes: Mapping[str, float] = field(default_factory=dict)
    moments: Moments | None = None
    fitted_prompts: frozenset[str] = frozenset()


def probe_ids(vocab_size: int) -> list[int]:
    """The fixed row of ids whose score tells checkpoints apart."""
    return [(2 + 7 * i) % vocab_size for i in range(PROBE_LENGTH)]


def write_folder(saved: SavedRewardModel, path: Path | str) -> None:
    """Write a reward model to a folder.

    It is written to a folder next to its place and moved there when complete: an interrupted save leaves the older one whole.

    Args:
        saved: the reward model.
        path: the folder; replaced if it is there.

    Raises:
        ModelError: it cannot be written (a full disk, no permission); an older one is untouched.
    """
    path = Path(path)
    lm = saved.language_model
    data = {
        "format": FORMAT,
        "trunk": lm.name,
        "hidden_size": lm.hidden_size,
        "vocab_size": lm.vocab_size,
        "eos_id": lm.tokenizer.eos_id,
        "gain": saved.gain,
        "bias": saved.bias,
        "probe": saved.probe,
        "readout": asdict(saved.readout),
    }
    if saved.attributes:
        data["attributes"] = [[name, weight] for name, weight in saved.attributes.items()]
        data["moments"] = saved.moments and asdict(saved.moments)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.head.items()}
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-new-"))
        lm.save(folder)
        save_file(head, folder / "head.safetensors")
        if saved.fitted_prompts:
            (folder / PROMPTS_FILE).write_text("\n".join(sorted(saved.fitted_prompts)) + "\n", encoding="ascii")
        (folder / "reward_model.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        folder.chmod(0o777 & ~_umask())  # mkdtemp's folders are closed to everybody else
        _replace(folder, path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot save the reward model to {path}: {error}; nothing that was there is lost") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def read_folder(
    path: Path | str, *, device: str = "auto", dtype: str = "float32", tokenizer: AnyTokenizer | None = None
) -> SavedRewardModel:
    """Read a folder written by :func:`write_folder`.

    Args:
        path: the folder.
        device: device of the trunk's weights: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``.
        dtype: the trunk's dtype.
        tokenizer: for models whose tokenizer is not Hugging Face's.

    Raises:
        ModelError: the folder is not a reward model, is of another format, or its files do not belong together.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"there is no reward model in {str(path)!r}; expected a folder written by RewardModel.save")
    try:
        data: Any = json.loads((path / "reward_model.json").read_text(encoding="utf-8"))
        head = load_file(path / "head.safetensors")
        prompts = (path / PROMPTS_FILE).read_text(encoding="ascii") if (path / PROMPTS_FILE).exists() else ""
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{path} is not a whole reward model: {error}. Fit it again, or give another folder"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ModelError(f"{path}/reward_model.json has format {found!r}; this version of rlhf-gym reads {FORMAT}")
    lm = LanguageModel.load(str(path), device=device, dtype=dtype, tokenizer=tokenizer)
    found_sizes = {"hidden_size": lm.hidden_size, "vocab_size": lm.vocab_size, "eos_id": lm.tokenizer.eos_id}
    for what, found in found_sizes.items():
        if data.get(what) != found:
            raise ModelError(
                f"the files in {path} do not belong together: its language model has {what} {found}, reward_model.json "
                f"says {data.get(what)}"
            )
    gain, bias, probe = (float(data[name]) for name in ("gain", "bias", "probe"))
    attributes = {str(name): float(weight) for name, weight in data.get("attributes", ())}
    moments = Moments(**data["moments"]) if data.get("moments") else None
    readout = Readout(**data.get("readout", {}))
    return SavedRewardModel(lm, head, gain, bias, probe, readout, attributes, moments, frozenset(prompts.split()))


def check_head(path: Path | str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse a head of other shapes than the language model needs.

    Args:
        path: the folder, for the message.
        found: the tensors that were read, by name.
        expected: the tensors of a new head, by name: ``weight`` is ``[1, D]``, ``bias`` ``[1]``; with attributes
            a row for each.

    Raises:
        ModelError: a name or a shape differs.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in head.items()} for head in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"the head in {path} has the shapes {shapes[0]}; its language model needs {shapes[1]}")


def check_probe(path: Path | str, score: float, recorded: float, dtype: str) -> None:
    """Refuse a model whose score of :func:`probe_ids` is another one than was recorded.

    Args:
        path: the folder, for the message.
        score: the raw score of the model that was read.
        recorded: the raw score when it was saved.
        dtype: the trunk's dtype, which says how far rounding may move the score.

    Raises:
        ModelError: the scores differ by more than rounding.
    """
    # Other machines and dtypes round differently; another checkpoint's weights are off by far more.
    if not abs(score - recorded) <= TOLERANCE[dtype] * max(1.0, abs(recorded)):
        raise ModelError(
            f"the files in {path} do not belong together: the model scores {score:.6g} where reward_model.json recorded "
            f"{recorded:.6g}. Some file was replaced; fit it again, or copy the whole folder once more"
        )


def _replace(folder: Path, path: Path) -> None:
    """Move a folder to its place.

    POSIX cannot swap two folders, so the old one is set aside first and put back on failure.
    """
    if not path.exists():
        os.replace(folder, path)
        return
    aside = path.parent / f".{path.name}-old-{folder.name.rpartition('-')[2]}"
    os.replace(path, aside)
    try:
        os.replace(folder, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
