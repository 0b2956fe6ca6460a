"""The ids that end a model's responses, as its configuration files say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelEnds:
    """The ids that end responses.

    Attributes:
        chosen: ids that somebody wrote in the model's files.
        by_default: ids that the configuration has from its class (2 for every Llama, ...). They are ends only where the
            tokenizer has a special token there: for a vocabulary of another kind it is a token like others.
    """

    chosen: tuple[int, ...] = ()
    by_default: tuple[int, ...] = ()


def ends_of_model(config: Any, generation: Any = None) -> ModelEnds:
    """The ends of a model: ``eos_token_id`` of its generation configuration, which may be a list, and of its configuration.

    Args:
        config: the model's configuration.
        generation: its generation configuration, or None.
    """
    text = config.get_text_config()
    found = [*_ids(getattr(generation, "eos_token_id", None)), *_ids(getattr(config, "eos_token_id", None))]
    found += _ids(getattr(text, "eos_token_id", None))
    try:
        default = set(_ids(type(text)().eos_token_id))
    except Exception:  # configurations that cannot be made without arguments, or have no such default
        default = set()
    every = dict.fromkeys(found)
    return ModelEnds(tuple(i for i in every if i not in default), tuple(i for i in every if i in default))


def save_ends(model: Any, ends: Sequence[int], folder: Path) -> None:
    """Write the generation configuration with these ends, where the model's own files do not name them all.

    Args:
        model: a transformers model that was saved to the folder; it stays as it is.
        ends: the ids that end its responses.
        folder: the model's.
    """
    own = getattr(model, "generation_config", None)
    known = ends_of_model(model.config, own)
    if own is None or set(ends) <= {*known.chosen, *known.by_default}:
        return
    changed = copy.deepcopy(own)
    changed.eos_token_id = list(dict.fromkeys([*_ids(own.eos_token_id), *ends]))
    changed.save_pretrained(folder)


def _ids(value: Any) -> list[int]:
    """One id, several or none, as a list."""
    if value is None:
        return []
    return [int(i) for i in value] if isinstance(value, list | tuple) else [int(value)]
