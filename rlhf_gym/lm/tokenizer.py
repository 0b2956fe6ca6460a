"""Text to token ids and back: the few methods of a tokenizer that the rest of the package needs.

Environments need token ids but no network, so nothing here loads a model.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.chat_template import messages_before, render_chat, with_template
from rlhf_gym.lm.loading import ModelSource, find, load_options, one_thread_loads
from rlhf_gym.lm.model_ends import ModelEnds, ends_of_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

AnyTokenizer: TypeAlias = "Tokenizer | PreTrainedTokenizerBase"
"""What is taken wherever a tokenizer is: see :func:`wrap_tokenizer`."""


@runtime_checkable
class Tokenizer(Protocol):
    """The methods and attributes of a tokenizer that an environment needs.

    Wherever one is taken, a transformers tokenizer will do: it becomes a :class:`HubTokenizer`. One of your own may have more
    of that class's attributes and methods: ``eos_ids``, ``unused_ids``, ``special_tokens``, ``decode_batch``, ...

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
        tokenizer: a transformers tokenizer, fast or slow.
        name: the name it was loaded from; None takes what transformers knows of it.
        vocab_size: the model's number of logits; it may be larger than the tokenizer's own size (padded embeddings) or,
            rarely, smaller. None: the tokenizer's own.
        ends: the ids that the model's own files say end a response; the tokenizer's EOS is one in any case.
        chat_template: ``"auto"``: prompts go through the tokenizer's chat template where it has one. ``"on"``: it must have
            one. ``"off"``: prompts are plain text (base models may ship a template). Else a file with a template in Jinja.

    Attributes:
        hub: the transformers tokenizer; a copy where its chat template is replaced or left off.
        is_chat: True where prompts go through a chat template.
        eos_ids: all ids that end a response, ``eos_id`` first.
        unused_ids: ids below ``vocab_size`` that no token has (padded embeddings): never drawn.

    Raises:
        ModelError: there is no EOS token, EOS is no logit of the model, no id is left for padding, or the chat template that
            is asked for is missing.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str | None = None,
        vocab_size: int | None = None,
        *,
        ends: ModelEnds | None = None,
        chat_template: str = "auto",
    ) -> None:
        self.name = name or getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        self.hub = with_template(tokenizer, chat_template, self.name)
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"the tokenizer of {self.name!r} has no EOS token, so no response could end. Set one, e.g. "
                f"tokenizer.eos_token = '</s>', and save the tokenizer again."
            )
        self.eos_id = int(tokenizer.eos_token_id)
        self.eos_ids: tuple[int, ...] = (self.eos_id,)
        self.fit(vocab_size or len(tokenizer), ends or ModelEnds())
        # Only a template of its own makes a chat model; transformers has no default templates any more.
        self.is_chat = bool(getattr(self.hub, "chat_template", None))

    def set_template(self, template: Any) -> None:
        """Take another chat template: Jinja, or several by their names; None leaves it off. ``hub`` is copied for it."""
        if template != getattr(self.hub, "chat_template", None):
            self.hub = copy.deepcopy(self.hub)
            self.hub.chat_template = template
        self.is_chat = bool(template)

    def fit(self, vocab_size: int, ends: ModelEnds) -> None:
        """Take over what a model says: its number of logits, and the ids that end its responses.

        Args:
            vocab_size: number of logits.
            ends: the model's ends; those that this tokenizer knows already stay.

        Raises:
            ModelError: EOS is no logit of the model, or no id is left for padding.
        """
        if self.eos_id >= vocab_size:
            raise ModelError(
                f"the EOS token of {self.name!r} has id {self.eos_id}, but the model has {vocab_size} logits: "
                f"tokenizer and model do not belong together"
            )
        self.vocab_size = vocab_size
        special = {token for token, added in self.hub.added_tokens_decoder.items() if added.special}
        more = [*ends.chosen, *(end for end in ends.by_default if end in special or end in self.hub.all_special_ids)]
        self.eos_ids = tuple(end for end in dict.fromkeys([*self.eos_ids, *more]) if 0 <= end < vocab_size)
        taken = set(self.hub.get_vocab().values())
        self.unused_ids = tuple(index for index in range(vocab_size) if index not in taken)
        self.pad_id = self._find_pad()

    def _find_pad(self) -> int:
        """The first id that can serve as padding: it is never drawn in a response, so it must have no other use."""
        for token in self._pad_candidates():
            if token is not None and token not in self.eos_ids and 0 <= token < self.vocab_size:
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
        yield from self.unused_ids
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

    def encode_response(self, text: str) -> list[int]:
        """The ids of a response: those that :class:`~rlhf_gym.lm.response_text.ResponseText` reads as this text again.

        Tokenizers of SentencePiece's family put a space before every text that they encode, and drop it in decoding. After a
        prompt there is no such space: the response is encoded behind a character, whose ids are taken off.
        """
        if self.is_chat or self.joins_plainly or not text:
            return self.encode(text)
        for before in ("\n", "a", "."):
            head, ids = self.encode(before), self.encode(before + text)
            if ids[: len(head)] == head and self.decode(ids) == self.decode(head) + text:
                return ids[len(head) :]
        return self.encode(text)

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

    def encode_messages(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a conversation through the chat template, up to the beginning of the assistant's turn.

        Args:
            messages: the conversation.
            add_generation_prompt: False ends behind the last message, white space left out.

        Raises:
            ModelError: the tokenizer has no chat template, or it refuses these messages.
        """
        if not self.is_chat:
            raise ModelError(f"{self.name!r} has no chat template; give the conversation a template of its own")
        try:
            shown = render_chat(self.hub, messages, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # templates raise what they like, e.g. at roles that do not alternate
            raise ModelError(f"the chat template of {self.name!r} refuses these messages: {error}") from error
        shown = shown if add_generation_prompt else shown.rstrip()
        return list(self.hub.encode(shown, add_special_tokens=False))  # the template writes BOS itself

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return str(self.hub.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_special(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens written out."""
        options = {} if getattr(self.hub, "is_fast", True) else {"spaces_between_special_tokens": False}
        return str(self.hub.decode([int(i) for i in ids], clean_up_tokenization_spaces=False, **options))

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The texts that :meth:`decode` leaves out."""
        added = {token.content for token in self.hub.added_tokens_decoder.values() if token.special}
        return frozenset(added | set(self.hub.all_special_tokens))

    @cached_property
    def joins_plainly(self) -> bool:
        """True where a text's ids decode to the texts of its parts, one after the other; see :func:`joins_plainly`."""
        size = len(self.hub)
        marked = [i for piece, i in self.hub.get_vocab().items() if piece.startswith("\u2581")]
        return _joins(self, [*range(0, size, max(1, size // _PROBES)), *sorted(marked)[:_PROBES]])

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


def decode_all(tokenizer: AnyTokenizer, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[str]:
    """The texts of many rows of ids: by the tokenizer's own ``decode_batch`` where it has one, else one by one.

    Args:
        tokenizer: the tokenizer; ``decode_batch`` takes the same two arrays.
        rows: int64 ``[n, T]``.
        lengths: int64 ``[n]``, number of ids that count at the beginning of each row.
    """
    tokenizer = wrap_tokenizer(tokenizer)
    batched = getattr(tokenizer, "decode_batch", None)
    if batched is not None:
        return list(batched(rows, lengths))
    return [tokenizer.decode(ids) for ids in _cut(rows, lengths)]


def end_ids(tokenizer: AnyTokenizer) -> tuple[int, ...]:
    """All ids that end a response, ``eos_id`` first."""
    tokenizer = wrap_tokenizer(tokenizer)
    return tuple(dict.fromkeys((tokenizer.eos_id, *getattr(tokenizer, "eos_ids", ()))))


def never_drawn(tokenizer: AnyTokenizer) -> tuple[int, ...]:
    """Ids that are never drawn in a response: padding, and those that no token has."""
    tokenizer = wrap_tokenizer(tokenizer)
    return tuple(dict.fromkeys((tokenizer.pad_id, *getattr(tokenizer, "unused_ids", ()))))


def encode_conversation(
    tokenizer: AnyTokenizer, text: str, messages: Any = None, response: str | None = None
) -> list[int]:
    """The ids that a model starts a response from: a conversation's through the chat template, where there is one.

    Args:
        tokenizer: the tokenizer, ours or a transformers one.
        text: the prompt as one text, which a model without a chat template goes on with.
        messages: the prompt as chat messages (the column ``messages``), or None.
        response: the response that follows; see :func:`~rlhf_gym.lm.chat_template.messages_before`.

    Raises:
        ModelError: the chat template refuses the messages, they hold something other than text, or they end with a turn of
            the assistant that is not the response.
    """
    tokenizer = wrap_tokenizer(tokenizer)
    asked = messages_before(messages, response, text=text) if getattr(tokenizer, "is_chat", False) else None
    if asked is None:
        return tokenizer.encode_prompt(text)
    return list(tokenizer.encode_messages(asked))  # type: ignore[attr-defined]


def encode_response(tokenizer: AnyTokenizer, text: str) -> list[int]:
    """The ids of a response's text: by the tokenizer's own ``encode_response`` where it has one.

    Args:
        tokenizer: the tokenizer, ours or a transformers one.
        text: the response.
    """
    tokenizer = wrap_tokenizer(tokenizer)
    own = getattr(tokenizer, "encode_response", None)
    return tokenizer.encode(text) if own is None else list(own(text))


def joins_plainly(tokenizer: AnyTokenizer) -> bool:
    """True where decoding the ids of two texts together gives the one text and then the other.

    Byte-level tokenizers do. SentencePiece's family drops the first space of a text, and WordPiece puts spaces between words.
    """
    tokenizer = wrap_tokenizer(tokenizer)
    own = getattr(tokenizer, "joins_plainly", None)
    size = tokenizer.vocab_size
    return _joins(tokenizer, range(0, size, max(1, size // _PROBES))) if own is None else bool(own)


_PROBES = 64


def _joins(tokenizer: Tokenizer, ids: Sequence[int]) -> bool:
    """:func:`joins_plainly`, as far as these ids show."""
    unused = set(never_drawn(tokenizer))
    some = [i for i in ids if i not in unused]
    texts = {i: tokenizer.decode([i]) for i in some}
    # Parts of characters are read only together, by every tokenizer.
    whole = [i for i in some if texts[i] and "\N{REPLACEMENT CHARACTER}" not in texts[i]]
    return all(tokenizer.decode([i, j]) == texts[i] + texts[j] for i, j in pairwise(whole))


def wrap_tokenizer(tokenizer: AnyTokenizer, name: str | None = None, *, chat_template: str = "auto") -> Tokenizer:
    """A tokenizer as it is; a transformers tokenizer as a :class:`HubTokenizer`.

    Args:
        tokenizer: either. The number of logits and the ends of responses are read from the model's configuration, where that
            is on this machine under the tokenizer's ``name_or_path``.
        name: a name for messages; None takes the tokenizer's own.
        chat_template: for a transformers tokenizer; see :class:`HubTokenizer`.

    Raises:
        ModelError: it is neither, or it has no EOS token.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    if not hasattr(tokenizer, "eos_token_id") or not hasattr(tokenizer, "encode"):
        raise ModelError(
            f"expected a tokenizer (a transformers tokenizer, or an object with name, vocab_size, eos_id, pad_id, encode, "
            f"encode_prompt and decode), got {type(tokenizer).__name__}"
        )
    size, ends = None, ModelEnds()
    if location := getattr(tokenizer, "name_or_path", ""):
        try:
            size, ends = _model_facts(ModelSource(location, location), {"local_files_only": True})
        except Exception:  # a tokenizer alone, or a model that is not on this machine
            log.debug("no configuration of a model under %r", location)
    # Tokens may have been added after the model's configuration was written.
    return HubTokenizer(tokenizer, name, max(size or 0, len(tokenizer)), ends=ends, chat_template=chat_template)


def fit_tokenizer(tokenizer: Tokenizer, vocab_size: int, ends: ModelEnds) -> Tokenizer:
    """A tokenizer that knows what its model says: the number of logits, and the ids that end responses.

    Args:
        tokenizer: the tokenizer. It stays as it is, since environments and other models may hold it.
        vocab_size: number of logits.
        ends: the model's ends. Of those that the model's class has by default, a tokenizer that is not Hugging Face's has none.

    Returns:
        The tokenizer itself where it knows all that, else a shallow copy of it.
    """
    own: Any = copy.copy(tokenizer)
    _fit(own, vocab_size, ends)
    known = ("vocab_size", "pad_id", "unused_ids", "eos_ids")
    return tokenizer if all(getattr(own, a, ()) == getattr(tokenizer, a, ()) for a in known) else own


def _fit(own: Any, vocab_size: int, ends: ModelEnds) -> None:
    """:func:`fit_tokenizer`, in place."""
    if isinstance(own, HubTokenizer):
        own.fit(vocab_size, ends)
        return
    unused = [index for index in getattr(own, "unused_ids", ()) if index < vocab_size]
    more = [end for end in ends.chosen if 0 <= end < vocab_size and end != own.pad_id]
    if vocab_size > own.vocab_size or unused:
        own.unused_ids = (*unused, *range(own.vocab_size, vocab_size))
    if more:
        own.eos_ids = tuple(dict.fromkeys((*end_ids(own), *more)))
    own.vocab_size = vocab_size


def _cut(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[list[int]]:
    return [row[:length] for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]


def load_tokenizer(
    name_or_path: str = "embedded",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str = "auto",
) -> HubTokenizer:
    """The tokenizer of a model, by the same name as the model.

    The model's configuration is read too, for its number of logits and for the ids that end its responses: an environment then
    has the model's actions, and ends where the model does.

    Args:
        name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the Hugging Face hub.
        revision: commit, tag or branch on the hub.
        trust_remote_code: let the hub's repository run its own Python code here. Off unless you trust it.
        chat_template: ``"auto"``, ``"on"``, ``"off"`` or a file; see :class:`HubTokenizer`.

    Raises:
        ModelError: nothing by that name can be loaded, the tokenizer has no EOS token, or not the chat template asked for.
    """
    source = find(name_or_path, revision=revision)
    options = load_options(source, revision, trust_remote_code)
    with one_thread_loads():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
            vocab_size, ends = _model_facts(source, options)
        except Exception as error:  # transformers raises a dozen kinds
            raise source.cannot_load("tokenizer", error) from error
    return HubTokenizer(tokenizer, name_or_path, vocab_size, ends=ends, chat_template=chat_template)


def _model_facts(source: ModelSource, options: dict[str, Any]) -> tuple[int | None, ModelEnds]:
    """The number of logits and the ends of a model's files; None and none for a folder that holds only a tokenizer.

    Args:
        source: the model's place.
        options: of every ``from_pretrained``.
    """
    from transformers import AutoConfig, GenerationConfig

    if source.gguf_file:
        return None, ModelEnds()  # a GGUF file holds one token list for both, and takes seconds to parse again
    if source.is_folder and not (Path(source.location) / "config.json").is_file():
        return None, ModelEnds()
    config = AutoConfig.from_pretrained(source.location, **options)
    options = {name: value for name, value in options.items() if name != "trust_remote_code"}
    try:
        generation = GenerationConfig.from_pretrained(source.location, **options)
    except OSError:  # not every model has that file
        generation = None
    size = getattr(config.get_text_config(), "vocab_size", None)
    return None if size is None else int(size), ends_of_model(config, generation)
