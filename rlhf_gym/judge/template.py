"""The questions to a judge: a rubric, and a template that keeps the material apart from the instructions."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.judge.client import Messages

SPLIT = "\n=====\n"


def text_from(given: str | os.PathLike[str] | None, built_in: str) -> str:
    """A text as it stands, or out of a file where ``given`` is the path of a ``.md``, ``.txt`` or ``.j2`` file.

    Args:
        given: the text, or the file; None takes the package's own.
        built_in: the package's file.

    Raises:
        ConfigError: no such file, or no text in it.
    """
    if given is None:
        return resources.files("rlhf_gym.judge").joinpath(f"templates/{built_in}").read_text(encoding="utf-8")
    if isinstance(given, str) and not given.endswith((".md", ".txt", ".j2")):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the judge's text {os.fspath(given)!r} cannot be read: {error}") from error


class Template:
    """A Jinja template: the system message, then a line ``=====``, then the user message.

    The material stands between marks that contain its own hash, so that the author of a response cannot know the
    closing mark.

    Args:
        text: the template. It may use ``rubric``, ``mark``, ``prompt``, the material's own names, and the columns
            of the data set.

    Raises:
        ConfigError: it is not a template.
    """

    def __init__(self, text: str) -> None:
        from jinja2 import StrictUndefined, TemplateSyntaxError
        from jinja2.sandbox import SandboxedEnvironment

        self._environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
        self.text = text
        try:
            self._template = self._environment.from_string(text)
        except TemplateSyntaxError as error:
            raise ConfigError(f"the judge's template, line {error.lineno}: {error.message}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Compiled templates cannot be copied; their text can."""
        return Template, (self.text,)

    @cached_property
    def names(self) -> set[str]:
        """Names of the variables that the template uses."""
        from jinja2.meta import find_undeclared_variables

        return find_undeclared_variables(self._environment.parse(self.text))

    def need(self, *names: str) -> None:
        """Refuse a template that does not use the variables it must show.

        Raises:
            ConfigError: names what is missing.
        """
        if missing := [name for name in names if name not in self.names]:
            raise ConfigError(
                f"the judge's template does not show {', '.join(missing)}; write {{{{ {missing[0]} }}}} in it"
            )

    def fill(self, material: dict[str, str], **values: Any) -> Messages:
        """Render the conversation that puts the material to the judge.

        Args:
            material: texts by name that the judge must not take for instructions: prompt, responses.
            values: further values that the template uses, by name.

        Raises:
            ConfigError: the template uses a name that is not there.
        """
        from jinja2 import TemplateError

        hidden = hashlib.sha256("\0".join(material.values()).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        try:
            text = self._template.render(**{**values, **material, "mark": f"material-{hidden}"})
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigError(f"the judge's template cannot be filled in: {error}") from error
        text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
        system, split, user = text.partition(SPLIT)
        if not split:
            return [{"role": "user", "content": text}]
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]
