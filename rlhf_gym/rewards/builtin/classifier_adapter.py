"""Adapters of sequence classifiers, as TRL's reward trainer and peft save them, merged into their base.

Such a folder holds an adapter, the classifier's new output layer, and the name of the language model below them. Together they
are an ordinary classifier.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ModelError, first_line
from rlhf_gym.lm.loading import ModelSource, find, load_weights, one_thread_loads

_PREFIX = "base_model.model."  # before every weight's name in peft's files


def adapter_settings(source: ModelSource, revision: str | None) -> dict[str, Any] | None:
    """What a folder, or a repository of the hub, says of the adapter that it holds; None where it holds none.

    Args:
        source: the place.
        revision: commit, tag or branch on the hub.

    Raises:
        ModelError: there is an adapter's configuration that cannot be read.
    """
    with one_thread_loads():
        from transformers.utils.peft_utils import find_adapter_config_file

        try:
            file = find_adapter_config_file(source.location, revision=revision)
        except Exception:  # not to be reached: loading the weights will say so
            return None
    if file is None:
        return None
    try:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(
            f"{source.name!r} holds an adapter whose adapter_config.json cannot be read: {error}"
        ) from error


def load_adapted_classifier(source: ModelSource, settings: dict[str, Any], base: str | None, options: Any) -> Any:
    """A sequence classifier: an adapter, with the output layer that was trained along with it, merged into its base.

    Args:
        source: the adapter's place.
        settings: what it says of itself.
        base: the model below it; None takes the one that the adapter names.
        options: for ``from_pretrained``.

    Raises:
        ConfigError: peft is not installed.
        ModelError: the base or the adapter cannot be loaded, they do not fit, or the adapter is no classifier's.
    """
    from rlhf_gym.lm.lora import require_peft

    require_peft()
    place = base or settings.get("base_model_name_or_path")
    if not isinstance(place, str) or not place:
        raise ModelError(f"{source.name!r} holds an adapter that does not name its base; give it: base='...'")
    tensors = _tensors(source, options)
    try:
        below = find(place)
    except ModelError as error:
        raise ModelError(
            f"{source.name!r} holds an adapter of {place!r}, which is not there: {error} "
            "Where it lies elsewhere, give base='...'"
        ) from error
    heads = settings.get("modules_to_save") or ["classifier", "score"]
    rows = [
        tensor.shape[0]
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and name.removeprefix(_PREFIX).split(".")[0] in heads
    ]
    if not rows and settings.get("task_type") == "CAUSAL_LM":
        raise ModelError(
            f"{source.name!r} holds the adapter of a language model, without a classifier's output layer: it is no reward "
            "model; give an adapter that was trained as one (task type SEQ_CLS)"
        )
    with one_thread_loads():
        from peft import PeftModel, get_peft_model_state_dict
        from transformers import AutoModelForSequenceClassification

        network: Any = load_weights(
            below,
            {**options, "revision": None} | ({"num_labels": min(rows)} if rows else {}),
            allow_pickle=False,
            auto=AutoModelForSequenceClassification,
            what="sequence classifier",
            given={name.removeprefix(_PREFIX) for name in tensors},
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of weights that are missing: they are counted below
                adapted: Any = PeftModel.from_pretrained(network, source.location, revision=options.get("revision"))
            expected = get_peft_model_state_dict(adapted)
        except Exception as error:  # peft raises a dozen kinds
            raise source.cannot_load("adapter", error) from error
        shapes = [{name: tuple(tensor.shape) for name, tensor in part.items()} for part in (tensors, expected)]
        if shapes[0] != shapes[1]:
            wrong = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
            raise ModelError(
                f"the adapter in {source.name!r} does not fit {place!r}: {wrong} has the shape {shapes[0].get(wrong)}, "
                f"expected {shapes[1].get(wrong)}"
            )
        if not hasattr(adapted.base_model, "merge_and_unload"):
            raise ModelError(
                f"the adapter in {source.name!r} is of the type {settings.get('peft_type')}, which cannot be merged into its "
                "base; expected one such as LORA"
            )
        return adapted.merge_and_unload()


def _tensors(source: ModelSource, options: Any) -> dict[str, Any]:
    """The adapter's weights, from safetensors."""
    with one_thread_loads():
        from safetensors.torch import load_file
        from transformers.utils.hub import cached_file

        try:
            file = cached_file(source.location, "adapter_model.safetensors", revision=options.get("revision"))
            assert file is not None  # it would have raised
            return load_file(file)
        except Exception as error:  # transformers raises a dozen kinds
            raise ModelError(
                f"{source.name!r} holds an adapter without adapter_model.safetensors that can be read "
                f"({first_line(error) or type(error).__name__}); save it as safetensors"
            ) from error
