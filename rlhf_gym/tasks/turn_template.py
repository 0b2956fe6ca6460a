"""A conversation as token ids, turn by turn: each further turn adds only the new part of the template.

What a model has generated stays as it is. Rendering and encoding the whole conversation again would move the borders of tokens,
and templates that rewrite earlier turns (those that take out a model's reasoning, say) would change what it had read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.chat_template import Messages, render_chat
from rlhf_gym.lm.tokenizer import AnyTokenizer, end_ids, wrap_tokenizer
from rlhf_gym.tasks.chat import render_messages

_ANSWER = "0ANSWER0"
"""Stands for the last answer where the template is asked what follows it."""


class TurnTemplate:
    """Encodes the beginning of a conversation, and what follows each answer.

    Args:
        tokenizer: the policy's, ours or a transformers one. Its own chat template is used where it has one and ``template``
            is None.
        template: a name of :data:`~rlhf_gym.tasks.chat.TEMPLATES` or Jinja; None: the tokenizer's chat template, or
            ``"continuation"`` where there is none.
        stop: texts that end an answer.
    """

    def __init__(self, tokenizer: AnyTokenizer, template: str | None = None, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer = wrap_tokenizer(tokenizer)
        self.template = template or "continuation"
        self.is_chat = template is None and bool(getattr(tokenizer, "is_chat", False))
        self._stop = tuple(stop)
        self._ends = frozenset(end_ids(tokenizer))

    def begin(self, messages: Messages) -> list[int]:
        """The ids that the first answer starts from.

        Args:
            messages: the conversation's first messages, of others.

        Raises:
            ModelError, ConfigError: the template refuses the messages.
        """
        if self.is_chat:
            ids: list[int] = self.tokenizer.encode_messages(messages)  # type: ignore[attr-defined]
            return ids
        shown = self._render(messages)
        # A chat model's `encode_prompt` would put the text into the model's own template once more.
        return (
            self.tokenizer.encode(shown)
            if getattr(self.tokenizer, "is_chat", False)
            else self.tokenizer.encode_prompt(shown)
        )

    def go_on(self, before: Messages, new: Messages, answer_ids: Sequence[int]) -> list[int]:
        """The ids between an answer and the next one.

        They begin with the end of the answer's turn, as far as it was not generated.

        Args:
            before: the messages that the answer followed.
            new: those that came after it.
            answer_ids: ids of the answer as generated, with the EOS or the stop sequence that ended it.

        Raises:
            ModelError, ConfigError: the template refuses the messages, or leaves the answer out.
        """
        after = self._after(before, new)
        if self._stop and after.startswith(self._stop):
            said = self._read(answer_ids)
            done = next((s for s in self._stop if after.startswith(s) and said.endswith(s)), "")
            after = after[len(done) :]
        ids = self._encode_behind(after)
        last = answer_ids[-1] if answer_ids else None
        if last in self._ends:
            end = next((i for i, token in enumerate(ids) if token in self._ends), None)
            if end is not None and ids[end] == last and not self._read(ids[:end]).strip():
                ids = ids[end + 1 :]
        return ids

    def _after(self, before: Messages, new: Messages) -> str:
        """What the template writes behind the answer, up to where the next one begins."""
        marker = _ANSWER
        while any(marker in str(m.get("content")) for m in (*before, *new)):
            marker += "0"
        shown = self._render([*before, {"role": "assistant", "content": marker}, *new])
        _, found, after = shown.rpartition(marker)
        if not found:
            raise ModelError(
                f"the chat template of {self.tokenizer.name!r} leaves out the assistant's last answer, so that "
                "conversations cannot go on turn by turn: give another template"
            )
        return after

    def _render(self, messages: Messages) -> str:
        if not self.is_chat:
            return render_messages(messages, self.template)
        tokenizer: Any = self.tokenizer
        try:
            return render_chat(tokenizer.hub, messages, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like, e.g. at roles that do not alternate
            raise ModelError(f"the chat template of {tokenizer.name!r} refuses these messages: {error}") from error

    def _encode_behind(self, text: str) -> list[int]:
        """The ids of a text that follows another one: without the space that SentencePiece puts before every text."""
        encode = self.tokenizer.encode
        if not text or not hasattr(self.tokenizer, "hub"):  # only Hugging Face's tokenizers put one
            return encode(text)
        for before in ("a", ".", "\n"):
            head, ids = encode(before), encode(before + text)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        return encode(text)

    def _read(self, ids: Sequence[int]) -> str:
        decode = getattr(self.tokenizer, "decode_special", self.tokenizer.decode)
        return str(decode(ids))
