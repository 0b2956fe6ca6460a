"""A judge's address as it is written on the command line: ``judge:URL``, or ``judge:MODEL@URL``."""

from __future__ import annotations

from rlhf_gym.errors import ConfigError

PREFIX = "judge:"


def parse(spec: str) -> tuple[str, str | None]:
    """The service's address, and the model's name where one is given.

    Raises:
        ConfigError: no address in it.

    >>> parse("judge:http://localhost:8000/v1"), parse("judge:gpt-4.1-mini@https://api.openai.com/v1")
    (('http://localhost:8000/v1', None), ('https://api.openai.com/v1', 'gpt-4.1-mini'))
    """
    rest = spec.removeprefix(PREFIX)
    begin = min((at for scheme in ("http://", "https://") if (at := rest.find(scheme)) >= 0), default=-1)
    model = rest[:begin].removesuffix("@")
    if begin < 0 or (model and not rest[:begin].endswith("@")):
        raise ConfigError(
            f"a judge is written judge:URL or judge:MODEL@URL, e.g. judge:http://localhost:8000/v1; got {spec!r}"
        )
    return rest[begin:], model or None
