"""Text to token ids and back: the few words of a tokenizer that the rest of the house needs.

Environments need token ids but no network, so nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import ModelError


@runtime_checkable
class Tokenizer(Protocol):
    """What an environment asks of a tokenizer.

    Attributes:
        name: the name or path it was loaded from.
        vocab_size: number of actions; every id is below it.
        eos_id: the id that ends a response.
        pad_id: the id that fills unused places; never equal to ``eos_id``.
    """

    name: str
    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special tokens added."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that a model is given before it answers; at least one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        ...


class HubTokenizer:
    """A Hugging Face tokenizer as a :class:`Tokenizer`.

    Args:
        tokenizer: a fast or slow transformers tokenizer.
        name: the name it was loaded from.
        vocab_size: the model's number of logits, where it is larger than the tokenizer's own size (padded embeddings).

    Raises:
        ModelError: there is no EOS token, or no id could be found for padding.
    """

    def __init__(self, tokenizer: Any, name: str, vocab_size: int | None = None) -> None:
        self.hub = tokenizer
        self.name = name
        self.vocab_size = max(len(tokenizer), vocab_size or 0)
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {name!r} has no EOS token, so no response could end. Set one, e.g. "
                f"tokenizer.eos_token = '</s>', and save the tokenizer again."
            )
        self.eos_id = int(tokenizer.eos_token_id)
        self.pad_id = self._find_pad()
        # Only a template of its own makes a chat model; transformers has no default templates any more.
        self.is_chat = bool(getattr(tokenizer, "chat_template", None))

    def _find_pad(self) -> int:
        """An id for padding that is not EOS: padding is never attended nor learned from, but must be told from EOS."""
        pad = self.hub.pad_token_id
        if pad is not None and pad != self.eos_id:
            return int(pad)
        for token in (self.hub.unk_token_id, self.hub.bos_token_id, *self.hub.all_special_ids):
            if token is not None and token != self.eos_id:
                return int(token)
        if self.eos_id != 0:
            return 0
        if self.vocab_size > 1:
            return 1
        raise ModelError(f"the tokenizer of {self.name!r} has a single token; expected at least an EOS and one other")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special tokens added."""
        return list(self.hub.encode(text, add_special_tokens=False))

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that the model is given: through the chat template for chat models, else the text's own ids.

        An empty prompt gives BOS (EOS where there is none), so that the model has a token to start from.
        """
        if self.is_chat:
            messages = [{"role": "user", "content": text}]
            shown = self.hub.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return list(self.hub.encode(shown, add_special_tokens=False))
        ids = list(self.hub.encode(text))
        # Some tokenizers close every text with EOS; a prompt that is to be continued must not end.
        while len(ids) > 1 and ids[-1] == self.eos_id:
            ids.pop()
        if not ids:
            bos = self.hub.bos_token_id
            ids = [self.eos_id if bos is None else int(bos)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return str(self.hub.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def resolve(name_or_path: str) -> tuple[str, str | None]:
    """Where a model's files are: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the hub.

    Returns:
        A folder or hub name, and the GGUF file's name where one was given.
    """
    if name_or_path == "embedded":
        return str(EMBEDDED_LM), None
    head, _, tail = name_or_path.rpartition(":")
    if head and tail.endswith(".gguf"):
        return head, tail
    path = Path(name_or_path)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), path.name
    return name_or_path, None


def load_tokenizer(
    name_or_path: str = "embedded", *, revision: str | None = None, trust_remote_code: bool = False
) -> HubTokenizer:
    """The tokenizer of a model, by the same name as the model.

    Args:
        name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the Hugging Face hub.
        revision: commit, tag or branch on the hub.
        trust_remote_code: let the hub's repository run its own Python code here. Off unless you trust it.

    Raises:
        ModelError: nothing by that name can be loaded.
    """
    from transformers import AutoTokenizer

    source, gguf = resolve(name_or_path)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if gguf:
        options["gguf_file"] = gguf
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # transformers raises a dozen kinds
        raise cannot_load("tokenizer", name_or_path, error) from error
    return HubTokenizer(tokenizer, name_or_path)


def cannot_load(what: str, name: str, error: Exception) -> ModelError:
    """One clear message for the many ways in which transformers says that it found nothing."""
    source, _ = resolve(name)
    if Path(source).is_dir():
        reason = f"the folder {source} is there, but: {_first_line(error)}"
    elif Path(source).exists():
        reason = "that is a file; expected a folder with config.json, model.safetensors and tokenizer.json"
    else:
        reason = f"there is no such folder, and the Hugging Face hub gave nothing ({_first_line(error)})"
    return ModelError(
        f"cannot load the {what} of {name!r}: {reason}. Give 'embedded', a folder saved with save_pretrained, "
        f"'folder:file.gguf', or a name on the hub that this machine can reach."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
