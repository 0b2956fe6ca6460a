"""Conversations as one text: chat templates that know no tools' schemas.

A *message* is ``{"role": "user" | "assistant" | "system" | "tool", "content": text}``; a tool's message is a result. Templates
are Jinja, as Hugging Face's chat templates: they are given ``messages`` and ``add_generation_prompt``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlhf_gym.errors import ConfigError

Message = dict[str, str]
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class NamedTemplate:
    """A template that has a name.

    Attributes:
        source: Jinja.
        user_next: what follows the rendered text where the user, not the assistant, is to speak.
        user_stop: texts that end what the user says.
    """

    source: str
    user_next: str
    user_stop: tuple[str, ...]


TEMPLATES = {
    # The assistant goes on where the user stops: for models that continue text.
    "continuation": NamedTemplate(
        "{% for m in messages %}{% if m.role in ('user', 'tool') and not loop.first %}{{ '\\n' }}{% endif %}{{ m.content }}"
        "{% endfor %}",
        "\n",
        ("\n",),
    ),
    # Each message on a line of its own.
    "lines": NamedTemplate(
        "{% for m in messages %}{{ m.content }}{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}"
        "{% endfor %}",
        "\n",
        ("\n",),
    ),
    # Anthropic's transcripts (Bai et al. 2022).
    "transcript": NamedTemplate(
        "{% for m in messages %}"
        "{{ '\\n\\n' + {'user': 'Human', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool'}[m.role] + ': ' }}"
        "{{ m.content | trim }}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}",
        "\n\nHuman:",
        ("\n\nAssistant:", "\n\nHuman:"),
    ),
}


def render_messages(messages: Messages, template: str = "transcript", *, add_generation_prompt: bool = True) -> str:
    r"""A conversation as one text.

    Args:
        messages: the conversation so far.
        template: a name of :data:`TEMPLATES`, or Jinja.
        add_generation_prompt: end where the assistant is to speak.

    Raises:
        ConfigError: the template cannot be read, or refuses the messages.

    >>> talk = [{"role": "user", "content": "the music"}, {"role": "assistant", "content": " was loud."}]
    >>> render_messages(talk, "continuation")
    'the music was loud.'
    >>> render_messages([*talk, {"role": "user", "content": "why?"}])
    '\n\nHuman: the music\n\nAssistant: was loud.\n\nHuman: why?\n\nAssistant:'
    """
    named = TEMPLATES.get(template)
    source = named.source if named else template
    if not named and "{" not in template:
        raise ConfigError(f"there is no template {template!r}; expected one of {', '.join(TEMPLATES)}, or Jinja")
    try:
        text = _compiled(source).render(
            messages=[dict(m) for m in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token="",
            eos_token="",
        )
    except Exception as error:  # a template may raise anything
        raise ConfigError(f"the chat template cannot render these messages: {error}") from error
    return str(text)


NOTHING = "(nothing)"
"""An empty message, to be read."""


def shown_turns(messages: Messages) -> str:
    r"""Messages to be read, one a line: ``> `` stands before the user's, the role before those of others; empty ones say so.

    >>> shown_turns([{"role": "assistant", "content": "5"}, {"role": "user", "content": "lower"}])
    '5\n> lower'
    """
    marks = {"assistant": "", "user": "> "}
    return "\n".join(f"{marks.get(m['role'], m['role'] + ': ')}{m['content'].strip() or NOTHING}" for m in messages)


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise ValueError(message)

    # As transformers compiles chat templates.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)
