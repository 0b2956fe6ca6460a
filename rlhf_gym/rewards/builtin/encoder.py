"""Encoders of the Hugging Face hub, or a folder's, for embedding similarity and BERTScore."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError, ModelError

Pooling = Literal["mean", "cls"]


def load_encoder(model: str, *, revision: str | None = None, device: str = "cpu", name: str) -> tuple[Any, Any]:
    """An encoder and its tokenizer. Weights come from safetensors; no code from the hub is run.

    Args:
        model: a folder, or a name on the hub.
        revision: commit, tag or branch on the hub.
        device: device of the weights; ``"auto"`` is a GPU where there is one.
        name: the reward, for messages.

    Raises:
        ConfigError: it cannot be loaded, or weights are missing.
    """
    from rlhf_gym.lm.loading import find, load_weights, one_thread_loads, pick_device

    options = {"revision": revision, "trust_remote_code": False}
    try:
        source = find(model, revision=revision)
        with one_thread_loads():
            from transformers import AutoConfig, AutoModel, AutoTokenizer

            config = AutoConfig.from_pretrained(source.location, **options)
            tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
        # Checkpoints of masked language models have no pooling layer, and nothing here looks at one.
        made: Any = AutoModel._model_mapping[type(config)]
        no_pooling = "add_pooling_layer" in inspect.signature(made).parameters
        network: Any = load_weights(
            source, options | ({"add_pooling_layer": False} if no_pooling else {}), allow_pickle=False, auto=AutoModel,
            what="encoder",
        )  # fmt: skip
        return network.eval().requires_grad_(False).to(pick_device(device)), tokenizer
    except ModelError as error:
        raise ConfigError(f"{name} cannot load {model!r}: {error}") from error
    except Exception as error:  # transformers raises a dozen kinds
        raise ConfigError(f"{name} cannot load {model!r}: {type(error).__name__}: {error}") from error


def embed(
    network: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    pooling: Pooling,
    max_tokens: int,
    tokens_per_batch: int = 8192,
) -> NDArray[np.float32]:
    """Unit vectors of texts, float32 ``[n, D]``, independent of the batch that they are in.

    Args:
        network: the encoder.
        tokenizer: its tokenizer, which adds special tokens as it was made to.
        texts: ``n`` texts; what exceeds ``max_tokens`` is cut at the end.
        pooling: ``"mean"`` of the last hidden states over all tokens that are not padding, or that of the first (``"cls"``).
        max_tokens: most tokens of a text.
        tokens_per_batch: most padded tokens of one pass.
    """
    import torch

    from rlhf_gym.lm.sequences import batches_by_length

    encoded = [tokenizer(text, truncation=True, max_length=max_tokens) for text in texts]
    out = np.zeros((len(texts), network.config.hidden_size), dtype=np.float32)
    for rows in batches_by_length([len(e["input_ids"]) for e in encoded], tokens_per_batch):
        batch = tokenizer.pad([encoded[i] for i in rows], return_tensors="pt").to(network.device)
        with torch.no_grad():
            states = network(**batch).last_hidden_state.float()  # [n, T, D]
        mask = batch["attention_mask"].to(states)[..., None]
        if pooling == "mean":
            pooled = (states * mask).sum(1) / mask.sum(1)
        else:
            first = mask[..., 0].argmax(1)  # padding may stand in front
            pooled = states[torch.arange(len(rows)), first]
        out[rows] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
    return out
