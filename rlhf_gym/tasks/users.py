"""Simulated users: they speak when the policy has answered.

A user is any callable ``user(messages, rng) -> str | None``: the conversation so far (it ends with the assistant's message) and
a random generator; None ends the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.objects import load_object
from rlhf_gym.tasks.chat import TEMPLATES, Message, Messages, render_messages

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel


class User(Protocol):
    """The other speaker in a conversation with the policy."""

    def __call__(self, messages: Messages, rng: np.random.Generator) -> str | None:
        """The user's next message; None when there is nothing more to say."""
        ...


UserSpec = Callable[..., Any] | Sequence[str] | Mapping[str, Any] | str
"""A user; a list of lines; a mapping of the options of :class:`ScriptedUser` or :class:`ModelUser`; ``module:function``."""


class ScriptedUser:
    """Says prepared lines, one a turn.

    Args:
        lines: the lines to say.
        order: ``"given"``: line by line, and then nothing more; ``"random"``: any line that was not said yet.

    Raises:
        ConfigError: no line, a line that is not a text, or an unknown order.
    """

    def __init__(self, lines: Sequence[str], order: Literal["given", "random"] = "given") -> None:
        if isinstance(lines, str) or not lines or not all(isinstance(line, str) and line for line in lines):
            raise ConfigError(f"a scripted user needs a list of lines, got {lines!r:.80}")
        if order not in ("given", "random"):
            raise ConfigError(f"a scripted user's order must be 'given' or 'random', got {order!r}")
        self.lines, self.order = list(lines), order

    def __call__(self, messages: Messages, rng: np.random.Generator) -> str | None:
        """The next line."""
        said = [m["content"] for m in messages if m["role"] == "user"]
        if self.order == "given":
            turn = sum(m["role"] == "assistant" for m in messages) - 1
            return self.lines[turn] if turn < len(self.lines) else None
        left = [line for line in self.lines if line not in said]
        return left[int(rng.integers(len(left)))] if left else None


class ModelUser:
    """A language model that plays the user.

    A chat model sees the conversation with the roles exchanged; any other model goes on with the conversation as a text.

    Args:
        model: the model, or its name.
        persona: description of the user; a chat model's system message, any other model's first words.
        max_new_tokens: longest message.
        temperature: of the sampling.
        template: how a model without a chat template is shown the conversation; see :data:`~rlhf_gym.tasks.chat.TEMPLATES`.

    Raises:
        ConfigError: an unknown template, or ``max_new_tokens`` below 1.
    """

    def __init__(
        self,
        model: LanguageModel | str = "embedded",
        *,
        persona: str = "",
        max_new_tokens: int = 24,
        temperature: float = 1.0,
        template: str = "transcript",
    ) -> None:
        if template not in TEMPLATES:
            raise ConfigError(f"a model user's template must be one of {', '.join(TEMPLATES)}, got {template!r}")
        if max_new_tokens < 1:
            raise ConfigError(f"a model user's max_new_tokens must be at least 1, got {max_new_tokens}")
        self.model, self.persona, self.template = model, persona, template
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def __call__(self, messages: Messages, rng: np.random.Generator) -> str | None:
        """The model's message in the user's place; None where it is empty."""
        from rlhf_gym.lm.decoding import generate
        from rlhf_gym.lm.language_model import LanguageModel
        from rlhf_gym.lm.sampling import Limits, Sampling

        if isinstance(self.model, str):
            self.model = LanguageModel.load(self.model)
        ids, stop = self._prompt(messages)
        # A conversation that exceeds the context loses its beginning.
        ids = ids[-(self.model.context_length - self.max_new_tokens) :]
        limits = Limits.of(self.model.tokenizer, max_new_tokens=self.max_new_tokens)
        seed = int(rng.integers(2**31))
        written = generate(
            self.model, [ids], limits, sampling=Sampling(temperature=self.temperature), seed=seed, stop=stop
        )[0]
        return written.text.strip() or None

    def _prompt(self, messages: Messages) -> tuple[list[int], tuple[str, ...]]:
        assert not isinstance(self.model, str)
        tokenizer = self.model.tokenizer
        system: list[Message] = [{"role": "system", "content": self.persona}] if self.persona else []
        if getattr(tokenizer, "is_chat", False):
            other = {"user": "assistant", "assistant": "user"}
            swapped = [{"role": other.get(m["role"], m["role"]), "content": m["content"]} for m in messages]
            # A chat must begin with its user: here, the model that plays the user.
            begin: list[Message] = [{"role": "user", "content": "Please begin."}]
            ids: list[int] = tokenizer.encode_messages([*system, *begin, *swapped])  # type: ignore[attr-defined]
            return ids, ()
        named = TEMPLATES[self.template]
        text = self.persona + render_messages(messages, self.template, add_generation_prompt=False) + named.user_next
        return tokenizer.encode_prompt(text), named.user_stop


def as_user(spec: UserSpec) -> User:
    """A user from what an environment was given.

    Raises:
        ConfigError: nothing that could be one.
    """
    if isinstance(spec, str):
        found: User = load_object(spec, kind="user")
        return found
    if isinstance(spec, Mapping):
        kinds: dict[str, Callable[..., User]] = {"lines": ScriptedUser, "model": ModelUser}
        kind = next((k for k in kinds if k in spec), None)
        if kind is None:
            raise ConfigError(f"a user needs 'lines' or 'model', got {', '.join(map(repr, spec)) or 'nothing'}")
        try:
            return kinds[kind](**spec)
        except TypeError as error:
            raise ConfigError(f"a user was given options that it does not take: {error}") from error
    if callable(spec):
        return spec
    return ScriptedUser(spec)
