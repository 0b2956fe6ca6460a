"""Engines by name."""

from __future__ import annotations

from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.engines.builtin_engine import BUILTIN, BuiltinEngine
from rlhf_gym.lm.engines.engine import Engine
from rlhf_gym.objects import is_place, load_object
from rlhf_gym.text import nearest

NAMES = (BUILTIN, "transformers", "vllm", "vllm:http://host:port", "openai:http://host:port")
"""The engines there are; the last two are the same client of a completions server."""


def find_engine(name: str, *, folder: str | None = None, timeout: float = 600.0, patience: float = 120.0) -> Engine:
    """Make an engine. Nothing is loaded, and no server is asked.

    Args:
        name: one of :data:`NAMES`, or ``module:Class`` or ``path/file.py:Class`` of your own.
        folder: where weights for the engine are written, which a server must see under the same path; None takes a new one for
            temporary files.
        timeout: seconds to wait for one response of a server.
        patience: seconds to go on trying where a server does not answer.

    Raises:
        ConfigError: there is no such engine, or its library is not installed.
    """
    if name == BUILTIN:
        return BuiltinEngine()
    if name == "transformers":
        from rlhf_gym.lm.engines.transformers_engine import TransformersEngine

        return TransformersEngine()
    if name == "vllm":
        from rlhf_gym.lm.engines.vllm_engine import VLLMEngine

        return VLLMEngine(folder)
    kind, colon, url = name.partition(":")
    if kind in ("vllm", "openai") and colon:
        from rlhf_gym.lm.engines.completions_engine import CompletionsEngine

        return CompletionsEngine(name, url, folder=folder, timeout=timeout, patience=patience)
    if is_place(name):
        made = load_object(name, kind="engine")()
        if isinstance(made, Engine):
            return made
        raise ConfigError(f"engine {name!r} is {type(made).__name__}, no subclass of rlhf_gym.lm.engines.engine.Engine")
    raise ConfigError(
        f"there is no engine {name!r}{nearest(name, NAMES)} Expected one of {', '.join(NAMES)}, or module:Class"
    )
