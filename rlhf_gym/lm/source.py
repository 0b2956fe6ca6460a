"""Where a model's files are: embedded, in a folder, a GGUF file or on the Hugging Face hub; and what to say where not.

transformers reports a missing model in a dozen ways, some after a minute of retries. Here the place is looked up first,
so that a wrong name is refused at once, by a message that says what was looked for and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import ModelError

_ADVICE = (
    "Give 'embedded', a folder written by save_pretrained, 'folder:file.gguf', or a name on the Hugging Face hub such "
    "as 'openai-community/gpt2'."
)
_HUB_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class ModelSource:
    """A model's place.

    Attributes:
        name: what the user gave.
        location: a folder, or a name on the hub.
        gguf_file: name of a GGUF file in there, where one was given.
    """

    name: str
    location: str
    gguf_file: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the files are on this machine, by a path."""
        return Path(self.location).is_dir()

    def cannot_load(self, what: str, error: Exception) -> ModelError:
        """The error for a place that is there, with files that do not load.

        Args:
            what: ``"tokenizer"`` or ``"language model"``.
            error: what transformers raised.
        """
        lines = str(error).strip().splitlines()
        reason = (lines[0] if lines else type(error).__name__)[:300]
        if "safetensors" in reason and "no file" in reason:
            reason += " (a GGUF file has to be named: 'folder:file.gguf')"
        return ModelError(f"cannot load the {what} of {self.name!r} from {self.location}: {reason}. {_ADVICE}")


def resolve(name_or_path: str) -> ModelSource:
    """The place that a name means; nothing is looked up.

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
    """The place that a name means, after a look whether anything is there.

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
    """Why the hub cannot give a model, in words; empty where it can, or where it is cached on this machine."""
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
        return "HF_HUB_OFFLINE forbids asking the Hugging Face hub"
    except Exception as error:
        return f"the Hugging Face hub could not be reached ({type(error).__name__}: {error})"
    return ""
