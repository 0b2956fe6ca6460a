"""Simulated users: they speak when the policy has answered.

A user is any callable ``user(messages, rng) -> str | None``: the conversation so far (it ends with the assistant's message) and
a random generator; None ends the conversation. One that rates answers returns a :class:`UserReply`, and has a method
``rate(messages, rng) -> float`` for the last answer, to which nothing is replied.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.tasks.chat import TEMPLATES, Message, Messages, render_messages

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel


class User(Protocol):
    """The other speaker in a conversation with the policy."""

    def __call__(self, messages: Messages, rng: np.random.Generator) -> str | UserReply | None:
        """The user's next message; None when there is nothing more to say."""
        ...


@dataclass(frozen=True)
class UserReply:
    """What a user says who also rates the answer.

    Attributes:
        text: the next message; None ends the conversation.
        rating: of the assistant's last message, on the user's own scale; None: not rated.
    """

    text: str | None
    rating: float | None = None


def user_rating(prompts: list[str], responses: list[str], user_rating: list[float | None]) -> list[float]:
    """A reward: the rating that the user gave the answer, as it is.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        user_rating: the column with the ratings.

    Raises:
        RewardError: the user rates nothing.
    """
    if None in user_rating:
        raise RewardError(
            "the reward 'user_rating' needs a user who rates every answer (user='web'), and this one gave none"
        )
    return [float(rating) for rating in user_rating if rating is not None]


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


_LOADING = threading.Lock()  # several conversations at once load a model once


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

        with _LOADING:
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
