"""A model's files: find them, say what is wrong with them, and read the weights, complete or not at all.

A model is embedded, in a folder, in a GGUF file or on the Hugging Face hub. transformers reports a missing one in a dozen ways,
some after a minute of retries. Here the place is checked first, so that a wrong name is refused at once, by a message that says
what was expected and what to do. Weights come from safetensors or GGUF, from a pickle only if allowed.

torch and transformers are imported when weights are read: environments need a tokenizer and no network.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import ModelError, first_line

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
_ALIGNED = 64  # bytes, as PyTorch allocates
_ONE_AT_A_TIME = threading.RLock()


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
    location, gguf_file = name_or_path, None
    head, _, tail = name_or_path.rpartition(":")
    if head and tail.endswith(".gguf"):
        location, gguf_file = head, tail
    path = Path(location).expanduser()
    if gguf_file is None and path.suffix == ".gguf" and path.is_file():
        path, gguf_file = path.parent, path.name
    return ModelSource(name_or_path, str(path) if path.is_dir() else location, gguf_file)


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
        ModelError: there is no such device, or not on this machine.
    """
    import torch

    expected = "expected 'auto' (a GPU where there is one), 'cpu', 'cuda', 'cuda:1', ..."
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; {expected}") from error
    try:
        torch.empty(0, device=place)
    except Exception as error:  # each backend raises its own kind
        reason = first_line(error) or type(error).__name__
        raise ModelError(f"device {device!r} does not work on this machine: {reason}; {expected}") from error
    return place


def refuse_adapter(source: ModelSource) -> None:
    """Refuse a folder that holds a LoRA adapter without its base: transformers would look for the base elsewhere.

    Raises:
        ModelError: there is an adapter; the message names the base that it was made for.
    """
    file = Path(source.location) / "adapter_config.json"
    if not source.is_folder or not file.is_file():
        return
    try:
        settings = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        settings = {}
    raise _adapter_error(source, settings.get("base_model_name_or_path"), settings.get("task_type"))


def _adapter_error(source: ModelSource, base: str | None, task: str | None) -> ModelError:
    if task == "SEQ_CLS":
        return ModelError(
            f"{source.name!r} holds the adapter of a sequence classifier (its base: {base or 'unknown'}), which is a reward "
            f"and not a language model: give it as one, load_reward({source.name!r}) or --reward {source.name}"
        )
    return ModelError(
        f"{source.name!r} holds a LoRA adapter and not a whole model (its base: {base or 'unknown'}): load the base, and "
        "rlhf_gym.lm.lora.load_adapter(base, folder); or merge the two with peft, and load the result"
    )


def load_weights(
    source: ModelSource, options: dict[str, Any], allow_pickle: bool, *, auto: Any = None,
    what: str = "language model", given: Container[str] = (),
) -> PreTrainedModel:  # fmt: skip
    """The model, all of its weights read from the files.

    Args:
        source: its place.
        options: for ``from_pretrained``.
        allow_pickle: take weights from a pickle where there are no safetensors.
        auto: the transformers class that knows what kind of model it is; default ``AutoModelForCausalLM``.
        what: name of that kind in messages.
        given: names of weights that may be missing, since the caller has them.

    Raises:
        ModelError: it cannot be loaded, is no such model, or weights are missing.
    """
    from rlhf_gym.lm.quantization import settle

    with one_thread_loads():
        from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

    if source.gguf_file and "quantization_config" in options:
        raise ModelError(
            f"{source.name!r} is a GGUF file, which cannot be quantized while it is read: load it without quantization, save "
            "it with LanguageModel.save, and load that folder"
        )
    if source.gguf_file:
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
    false = ("transformers.distributed.tensor_parallel", *(["transformers.modeling_utils"] if given else []))
    with one_thread_loads(), _errors_only(false):
        try:
            loaded: Any = (auto or AutoModelForCausalLM).from_pretrained(
                source.location, output_loading_info=True, **options
            )
        except Exception as error:  # transformers raises a dozen kinds
            raise source.cannot_load(what, error) from error
    model, report = loaded
    if adapters := getattr(model, "peft_config", None):  # from the hub; of folders, refuse_adapter has said so
        config = next(iter(adapters.values()))
        raise _adapter_error(source, config.base_model_name_or_path, config.task_type)
    if missing := sorted(name for name in report["missing_keys"] if name not in given):
        # transformers would fill them with random numbers.
        raise ModelError(
            f"the files of {source.name!r} lack {len(missing)} of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), so it is not a trained {what}; give another "
            "folder or name"
        )
    assert isinstance(model, PreTrainedModel)
    settle(model)
    _align(model)
    return model


def _align(model: PreTrainedModel) -> None:
    """Move weights that stand at odd places of a file's memory to where PyTorch would have put them.

    BLAS adds up the product of a single row and a matrix in another order where the matrix is not aligned. A model that was
    saved and loaded would differ by rounding from what it was, and a resumed training from one that was not interrupted.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNED:
            tensor.data = tensor.data.clone()


@contextmanager
def _errors_only(names: Iterable[str]) -> Iterator[None]:
    """Let loggers print no warnings: of layers that are not sharded where none is, of missing weights that the caller has.

    Args:
        names: of the loggers.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def is_encoder_decoder(source: ModelSource, options: dict[str, Any]) -> bool:
    """True where the configuration is that of an encoder-decoder model; False where there is none to read.

    Args:
        source: the model's place.
        options: for ``from_pretrained``.
    """
    if source.gguf_file:
        return False  # no such family is stored so, and a GGUF file takes seconds to parse again
    options = {name: value for name, value in options.items() if name != "dtype"}
    with one_thread_loads():
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(source.location, **options)
        except Exception:  # loading the weights will say what is wrong
            return False
    return bool(getattr(config, "is_encoder_decoder", False))


def context_length(config: Any) -> int:
    """The most tokens that a model has positions for, from its configuration; windows of its layers do not count.

    With LongRoPE it is the length before the extension: transformers changes the frequencies of a whole batch once one row
    exceeds it, so that beyond it a row's numbers would depend on the rows next to it, and on what a cache holds.
    """
    # Names that transformers' configurations give it; GPT-2's n_positions answers to the first.
    names = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "max_target_positions")
    length = min(int(getattr(config, name, None) or UNLIMITED) for name in names)
    rotary = getattr(config, "rope_parameters", None) or {}
    for scaling in (rotary, *rotary.values()):  # one for all layers, or one for each type of layer
        if isinstance(scaling, dict) and scaling.get("rope_type") == "longrope":
            length = min(length, int(scaling["original_max_position_embeddings"]))
    return length


def shown_length(config: Any, tokenizer: Any) -> int:
    """The most tokens of a text that a network is shown: its positions' number, or fewer where its tokenizer says so.

    Args:
        config: the network's.
        tokenizer: a transformers one.
    """
    length = min(context_length(config), int(tokenizer.model_max_length))
    # RoBERTa's positions begin behind the padding's id: two fewer than the configuration says.
    return length - (config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0)


def has_windows(config: Any) -> bool:
    """True where a configuration says that some layers look back through a window, or within chunks."""
    names = (
        "sliding_window",
        "sliding_window_size",
        "attention_window_size",
        "local_attention",
        "attention_chunk_size",
    )
    return any(getattr(config, name, None) for name in names)


@contextmanager
def one_thread_loads() -> Iterator[None]:
    """Let one thread at a time load, adapt or save models, without transformers' own progress bars, which would break ours.

    While a model is read, transformers and peft change what the whole process shares: methods of their classes, torch's
    functions and default dtype, filters of warnings, the random state. Two threads at once would restore each other's changes,
    and everything that is loaded later would be broken too.
    """
    with _ONE_AT_A_TIME:
        from transformers.utils import logging

        hub_logging: Any = logging  # it has no types
        shown = hub_logging.is_progress_bar_enabled()
        hub_logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                hub_logging.enable_progress_bar()
