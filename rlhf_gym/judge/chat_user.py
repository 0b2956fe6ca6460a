"""A language model behind a chat-completions service, as the user in a conversation."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.judge.client import ChatClient
from rlhf_gym.tasks.chat import Messages

PERSONA = (
    "You are a person who talks to an assistant. Write your next message, short and in plain words, and nothing else. Write "
    "[end] when you have what you wanted."
)
END = "[end]"
"""What the model writes where the user has nothing more to say."""


class ChatUser:
    """A chat model that plays the user: it sees the conversation with the roles exchanged.

    Each request carries a seed of the environment's; services that take seeds then say the same again. Replies are not cached.

    Args:
        url: the service, as for a judge; ``URL#MODEL`` names the model where it serves several.
        persona: the system message; the conversation ends where the model writes ``[end]``.
        max_new_tokens: longest message.
        temperature: of the sampling.
        timeout: seconds to wait for one reply.
        retries: times that a failed request is sent again.

    Raises:
        ConfigError: not an address, a number out of its range, or the ``openai`` package is missing.
    """

    slow = True  # other slots are decoded while it is waited for

    def __init__(
        self,
        url: str,
        *,
        persona: str = PERSONA,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        timeout: float = 120.0,
        retries: int = 6,
    ) -> None:
        if not isinstance(url, str):
            raise ConfigError(f"a chat user needs the address of its service, got {url!r}")
        if max_new_tokens < 1:
            raise ConfigError(f"a chat user's max_new_tokens must be at least 1, got {max_new_tokens}")
        address, _, model = url.partition("#")
        self.persona = persona
        parameters: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
        self.client = ChatClient(address, model or None, timeout=timeout, retries=retries, parameters=parameters)

    def __call__(self, messages: Messages, rng: np.random.Generator) -> str | None:
        """The model's message in the user's place; None where it is empty or says that it is done.

        Args:
            messages: the conversation; it ends with the assistant's message.
            rng: gives the request's seed.

        Raises:
            JudgeError: the service cannot be reached, or refuses.
        """
        other = {"user": "assistant", "assistant": "user"}
        swapped = [{"role": other.get(m["role"], "user"), "content": m["content"]} for m in messages]
        if messages[0]["role"] == "system":  # the assistant's instructions are not the user's
            swapped = swapped[1:]
        begin = {"role": "user", "content": "Please begin."}  # many services want the user first
        question = [{"role": "system", "content": self.persona}, begin, *swapped]
        text = self.client.chat(question, seed=int(rng.integers(2**31))).text
        said = text.partition(END)[0].strip()
        return said or None
