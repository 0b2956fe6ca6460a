"""Text to token ids and back: the few methods of a tokenizer that the rest of the package needs.

Environments need token ids but no network, so nothing here loads a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.loading import ModelSource, find, load_options, one_thread_loads


@runtime_checkable
class Tokenizer(Protocol):
    """The methods and attributes of a tokenizer that an environment needs.

    Attributes:
        name: the name or path it was loaded from.
        vocab_size: number of actions, which is the model's number of logits; every id is below it.
        eos_id: the id that ends a response.
        pad_id: the id that fills unused places; never equal to ``eos_id``, never drawn in a response.
    """

    name: str
    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special tokens added."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that a model starts a response from; at least one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        ...


class HubTokenizer:
    """A Hugging Face tokenizer as a :class:`Tokenizer`.

    Args:
        tokenizer: a transformers tokenizer.
        name: the name it was loaded from.
        vocab_size: the model's number of logits; it may be larger than the tokenizer's own size (padded embeddings) or,
            rarely, smaller. None: the tokenizer's own.

    Attributes:
        hub: the transformers tokenizer.
        is_chat: True where prompts go through a chat template.

    Raises:
        ModelError: there is no EOS token, EOS is no logit of the model, or no id is left for padding.
    """

    def __init__(self, tokenizer: Any, name: str, vocab_size: int | None = None) -> None:
        self.hub = tokenizer
        self.name = name
        self.vocab_size = vocab_size or len(tokenizer)
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {name!r} has no EOS token, so no response could end. Set one, e.g. "
                f"tokenizer.eos_token = '</s>', and save the tokenizer again."
            )
        self.eos_id = int(tokenizer.eos_token_id)
        if self.eos_id >= self.vocab_size:
            raise ModelError(
                f"the EOS token of {name!r} has id {self.eos_id}, but the model has {self.vocab_size} logits: "
                f"tokenizer and model do not belong together"
            )
        self.pad_id = self._find_pad()
        # Only a template of its own makes a chat model; transformers has no default templates any more.
        self.is_chat = bool(getattr(tokenizer, "chat_template", None))

    def _find_pad(self) -> int:
        """The first id that can serve as padding: it is never drawn in a response, so it must have no other use."""
        for token in self._pad_candidates():
            if token is not None and token != self.eos_id and 0 <= token < self.vocab_size:
                return int(token)
        raise ModelError(
            f"the tokenizer of {self.name!r} has no id left for padding that is not its EOS ({self.eos_id}); add one "
            f"with tokenizer.add_special_tokens({{'pad_token': '<pad>'}}), resize the model's embeddings and save both"
        )

    def _pad_candidates(self) -> Iterator[int | None]:
        """Ids for padding, best first: the pad token, then tokens without a use, then those that matter least."""
        yield self.hub.pad_token_id
        yield self.hub.unk_token_id
        vocabulary: dict[str, int] = self.hub.get_vocab()
        reserved = re.compile(r"[<\[]\|?(pad|unused|reserved)[\w ]*\|?[>\]]", re.IGNORECASE)
        yield from sorted(index for token, index in vocabulary.items() if reserved.fullmatch(token))
        # Rows of the embedding that no token has: there to round the matrix up.
        yield from range(max(vocabulary.values(), default=-1) + 1, self.vocab_size)
        # The byte 0xC0 is in no UTF-8 text; byte-level vocabularies (GPT-2's has no other spare) hold it all the same.
        for token in ("<0xC0>", "À"):
            index = vocabulary.get(token)
            if index is not None and self.hub.decode([index]) == "\N{REPLACEMENT CHARACTER}":
                yield index
        yield self.hub.bos_token_id
        yield from self.hub.all_special_ids
        yield from (0, 1)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, no special tokens added."""
        return list(self.hub.encode(text, add_special_tokens=False))

    def encode_prompt(self, text: str) -> list[int]:
        """The ids that a model starts a response from: through the chat template for chat models, else the text's own.

        An empty prompt gives BOS (EOS where there is none), so that the model has a token to start from.
        """
        if self.is_chat:
            return self.encode_messages([{"role": "user", "content": text}])
        ids = list(self.hub.encode(text))
        # Some tokenizers close every text with EOS; a prompt that is to be continued must not end.
        while len(ids) > 1 and ids[-1] == self.eos_id:
            ids.pop()
        if not ids:
            bos = self.hub.bos_token_id
            ids = [self.eos_id if bos is None else int(bos)]
        return ids

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation through the chat template, up to the beginning of the assistant's turn.

        Raises:
            ModelError: the tokenizer has no chat template, or it refuses these messages.
        """
        if not self.is_chat:
            raise ModelError(f"{self.name!r} has no chat template; give the conversation a template of its own")
        try:
            shown = self.hub.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # templates raise what they like, e.g. at roles that do not alternate
            raise ModelError(f"the chat template of {self.name!r} refuses these messages: {error}") from error
        return list(self.hub.encode(shown, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return str(self.hub.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_batch(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[str]:
        """The texts of many rows of ids, as :meth:`decode` gives them one by one; see :func:`decode_all`.

        Args:
            rows: int64 ``[n, T]``.
            lengths: int64 ``[n]``, number of ids that count at the beginning of each row.
        """
        lists = _cut(rows, lengths)
        if (fast := getattr(self.hub, "backend_tokenizer", None)) is not None:  # in one call, 2.5 times as fast
            return list(fast.decode_batch(lists, skip_special_tokens=True))
        return [self.decode(ids) for ids in lists]


def decode_all(tokenizer: Tokenizer, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[str]:
    """The texts of many rows of ids: by the tokenizer's own ``decode_batch`` where it has one, else one by one.

    Args:
        tokenizer: the tokenizer; ``decode_batch`` takes the same two arrays.
        rows: int64 ``[n, T]``.
        lengths: int64 ``[n]``, number of ids that count at the beginning of each row.
    """
    batched = getattr(tokenizer, "decode_batch", None)
    if batched is not None:
        return list(batched(rows, lengths))
    return [tokenizer.decode(ids) for ids in _cut(rows, lengths)]


def _cut(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[list[int]]:
    return [row[:length] for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]


def load_tokenizer(
    name_or_path: str = "embedded", *, revision: str | None = None, trust_remote_code: bool = False
) -> HubTokenizer:
    """The tokenizer of a model, by the same name as the model.

    The model's configuration is read too, for its number of logits: an environment then has the model's actions.

    Args:
        name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the Hugging Face hub.
        revision: commit, tag or branch on the hub.
        trust_remote_code: let the hub's repository run its own Python code here. Off unless you trust it.

    Raises:
        ModelError: nothing by that name can be loaded, or the tokenizer has no EOS token.
    """
    source = find(name_or_path, revision=revision)
    options = load_options(source, revision, trust_remote_code)
    with one_thread_loads():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
            vocab_size = _number_of_logits(source, options)
        except Exception as error:  # transformers raises a dozen kinds
            raise source.cannot_load("tokenizer", error) from error
    return HubTokenizer(tokenizer, name_or_path, vocab_size)


def _number_of_logits(source: ModelSource, options: dict[str, Any]) -> int | None:
    """The number of logits in the model's configuration; None for a folder that holds only a tokenizer."""
    from transformers import AutoConfig

    if source.gguf_file:
        return None  # a GGUF file holds one token list for both, and takes seconds to parse again
    if source.is_folder and not (Path(source.location) / "config.json").is_file():
        return None
    config = AutoConfig.from_pretrained(source.location, **options).get_text_config()
    size = getattr(config, "vocab_size", None)
    return None if size is None else int(size)
