"""A model's files: find them, say what is wrong with them, and read the weights, complete or not at all.

A model is embedded, in a folder, in a GGUF file or on the Hugging Face hub. transformers reports a missing one in a dozen ways,
some after a minute of retries. Here the place is checked first, so that a wrong name is refused at once, by a message that says
what was expected and what to do. Weights come from safetensors or GGUF, from a pickle only if allowed.

torch and transformers are imported when weights are read: environments need a tokenizer and no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_ADVICE = (
    "Give 'embedded', a folder written by save_pretrained, 'folder:file.gguf', or a name on the Hugging Face hub such "
    "as 'openai-community/gpt2'."
)
_HUB_TIMEOUT = 10.0  # seconds
UNLIMITED = 1 << 30
"""The context length of a model whose configuration states none."""


@dataclass(frozen=True)
class ModelSource:
    """A model's place.

    Attributes:
        name: the name that the user gave.
        location: a folder, or a name on the hub.
        gguf_file: name of a GGUF file in there, where one was given.
    """

    name: str
    location: str
    gguf_file: str | None = None

    @property
    def is_folder(self) -> bool:
        """True where the files are in a folder of this machine."""
        return Path(self.location).is_dir()

    def cannot_load(self, what: str, error: Exception) -> ModelError:
        """The error for a place that is there, with files that do not load.

        Args:
            what: ``"tokenizer"`` or ``"language model"``.
            error: the error that transformers raised.
        """
        lines = str(error).strip().splitlines()
        reason = (lines[0] if lines else type(error).__name__)[:300]
        if "safetensors" in reason and "no file" in reason:
            reason += " (a GGUF file has to be named: 'folder:file.gguf')"
        return ModelError(f"cannot load the {what} of {self.name!r} from {self.location}: {reason}. {_ADVICE}")


def resolve(name_or_path: str) -> ModelSource:
    """The place that a name means; it is not checked.

    Args:
        name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, a path to a GGUF file, or a name on the hub.
    """
    if name_or_path == "embedded":
        return ModelSource(name_or_path, str(EMBEDDED_LM))
    head, _, tail = name_or_path.rpartition(":")
    if head and tail.endswith(".gguf"):
        return ModelSource(name_or_path, head, tail)
    path = Path(name_or_path).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return ModelSource(name_or_path, str(path.parent), path.name)
    return ModelSource(name_or_path, str(path) if path.is_dir() else name_or_path)


def find(name_or_path: str, *, revision: str | None = None) -> ModelSource:
    """The place that a name means, checked: there is something there.

    Args:
        name_or_path: as for :func:`resolve`.
        revision: commit, tag or branch on the hub.

    Raises:
        ModelError: there is no such folder and no such file; and the hub does not have it or cannot be reached, and its
            cache on this machine does not have it either.
    """
    source = resolve(name_or_path)
    folder = Path(source.location)
    if folder.is_dir():
        if source.gguf_file and not (folder / source.gguf_file).is_file():
            raise ModelError(f"there is no file {source.gguf_file!r} in the folder {folder} (given: {name_or_path!r})")
        if not any(folder.iterdir()):
            raise ModelError(f"the folder {folder} (given: {name_or_path!r}) is empty; expected a model's files")
        return source
    if folder.exists():
        raise ModelError(f"{name_or_path!r} is a file, and neither a model's folder nor a GGUF file. {_ADVICE}")
    if reason := _missing_on_hub(source, revision):
        raise ModelError(f"unknown model {name_or_path!r}: there is no such folder here, and {reason}. {_ADVICE}")
    return source


def _missing_on_hub(source: ModelSource, revision: str | None) -> str:
    """The reason why the hub cannot give a model; empty where it can, or where it is cached on this machine.

    Args:
        source: a name on the hub.
        revision: commit, tag or branch.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = source.location
    try:
        if isinstance(try_to_load_from_cache(name, source.gguf_file or "config.json", revision=revision), str):
            return ""
        HfApi().repo_info(name, revision=revision, timeout=_HUB_TIMEOUT)
    except HFValidationError:
        return f"{name!r} cannot be a name on the Hugging Face hub (expected 'owner/model')"
    except GatedRepoError:
        return "on the Hugging Face hub it is gated: ask for access there, then log in with `hf auth login`"
    except RepositoryNotFoundError:
        return "the Hugging Face hub has no such model (a private one needs `hf auth login`)"
    except RevisionNotFoundError:
        return f"the Hugging Face hub has the model, but not its revision {revision!r}"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE forbids requests to the Hugging Face hub"
    except Exception as error:
        return f"the Hugging Face hub could not be reached ({type(error).__name__}: {error})"
    return ""


def load_options(source: ModelSource, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Options of every ``from_pretrained``.

    Args:
        source: the model's place.
        revision: commit, tag or branch on the hub.
        trust_remote_code: let the hub's repository run its own Python code here.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    return options


def pick_device(device: str) -> torch.device:
    """The device of that name; ``"auto"`` is a GPU where there is one.

    Raises:
        ModelError: there is no such device, or it cannot be used on this machine.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; expected 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        why = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here: {why}; give 'auto', 'cpu', ...") from error
    return place


def expect_model(source: ModelSource) -> None:
    """Refuse a folder that holds a LoRA adapter without its base: transformers would look for the base elsewhere.

    Raises:
        ModelError: says which base it was made for.
    """
    file = Path(source.location) / "adapter_config.json"
    if not source.is_folder or not file.is_file():
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise ModelError(
        f"{source.name!r} holds a LoRA adapter and not a whole model (its base: {base or 'not said'}): load the base, and "
        "rlhf_gym.lm.lora.load_adapter(base, folder); or merge the two with peft, and load the result"
    )


def load_weights(
    source: ModelSource, options: dict[str, Any], allow_pickle: bool, *, auto: Any = None,
    what: str = "language model",
) -> PreTrainedModel:  # fmt: skip
    """The model, all of its weights read from the files.

    Args:
        source: its place.
        options: for ``from_pretrained``.
        allow_pickle: take weights from a pickle where there are no safetensors.
        auto: the transformers class that knows what kind of model it is; default ``AutoModelForCausalLM``.
        what: name of that kind in messages.

    Raises:
        ModelError: it cannot be loaded, is no such model, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if source.gguf_file:
        from transformers import GgufConfig

        options = options | {"quantization_config": GgufConfig(dequantize=True)}
    elif not allow_pickle:
        options = options | {"use_safetensors": True}
        folder = Path(source.location)
        pickles = [*folder.glob("pytorch_model*.bin")] if source.is_folder else []
        if pickles and not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{source.name!r} has its weights only as a pickle ({pickles[0].name}), which can run any code when it "
                f"is opened. If you trust it, load it once with allow_pickle=True and save it again as safetensors."
            )
    with no_progress_bars():
        try:
            loaded: Any = (auto or AutoModelForCausalLM).from_pretrained(
                source.location, output_loading_info=True, **options
            )
        except Exception as error:  # transformers raises a dozen kinds
            raise source.cannot_load(what, error) from error
    model, report = loaded
    if getattr(model, "peft_config", None):
        raise ModelError(
            f"{source.name!r} is a LoRA adapter and not a whole {what}: load its base, and rlhf_gym.lm.lora.load_adapter(base, "
            "folder); or merge the two with peft, and load the result"
        )
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers.
        raise ModelError(
            f"the files of {source.name!r} lack {len(missing)} of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): no trained {what}"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def is_encoder_decoder(source: ModelSource, options: dict[str, Any]) -> bool:
    """True where the configuration is that of an encoder-decoder model; False where there is none to read.

    Args:
        source: the model's place.
        options: for ``from_pretrained``.
    """
    from transformers import AutoConfig

    if source.gguf_file:
        return False  # no such family is stored so, and a GGUF file takes seconds to parse again
    options = {name: value for name, value in options.items() if name != "dtype"}
    try:
        config = AutoConfig.from_pretrained(source.location, **options)
    except Exception:  # loading the weights will say what is wrong
        return False
    return bool(getattr(config, "is_encoder_decoder", False))


def context_length(config: Any) -> int:
    """The most tokens that every layer attends to, from a model's configuration."""
    # Names that transformers' configurations give it; GPT-2's n_positions answers to the first.
    names = ["max_position_embeddings", "max_seq_len", "max_sequence_length", "attention_chunk_size"]
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if slides and getattr(config, "use_sliding_window", True):
        names.append("sliding_window")
    return min(int(getattr(config, name, None) or UNLIMITED) for name in names)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch transformers' own progress bars off, which would break ours."""
    from transformers.utils import logging

    hub_logging: Any = logging  # it has no types
    shown = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()
