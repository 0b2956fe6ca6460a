"""Classifiers and reward models of the Hugging Face hub, or a folder's, as rewards."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.chat_template import messages_before, render_chat

Read = Literal["auto", "chat", "continuation", "pair", "response"]
Output = Literal["logit", "probability"]


class Classifier:
    """One output of a sequence classifier: a reward model (one output), a sentiment, toxicity or topic classifier (several).

    Batched by length. A text longer than the model can see loses its beginning, never the end of the response; a warning says
    so once. Weights come from safetensors; no code from the hub is run.

    A folder may also hold an adapter of such a classifier, as TRL's reward trainer saves one with peft: it is merged into its
    base (extra ``lora``).

    Args:
        model: a folder, or a name on the Hugging Face hub.
        base: where ``model`` is an adapter, the model that it belongs to; None takes the one that it names.
        head: the output to read, by its label or its number; a model with one output needs none.
        output: ``"logit"``, as the model gives it, or ``"probability"``: by softmax over the outputs; by sigmoid where there
            is one output or the model is a multi-label one.
        read: input of the model. ``"chat"``: prompt and response through the tokenizer's chat template;
            ``"continuation"``: the response behind the prompt, in one text; ``"pair"``: two texts; ``"response"``: the response
            alone; ``"auto"``: chat where there is a template, else continuation.
        max_tokens: cut longer texts; None takes what the model can see.
        tokens_per_batch: most padded tokens of one forward pass; changes memory and speed, not the scores.
        revision: commit, tag or branch on the hub.
        device: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``.
        dtype: the weights' dtype.
        name: name to report under.

    Raises:
        ConfigError: a setting that does not exist, a ``head`` that is none of the model's outputs, ``"chat"`` without a
            template.
        ModelError: the model cannot be loaded, or is no trained classifier.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        base: str | Path | None = None,
        head: str | int | None = None,
        output: Output = "logit",
        read: Read = "auto",
        max_tokens: int | None = None,
        tokens_per_batch: int = 8192,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        name: str = "classifier",
    ) -> None:
        for what, value, allowed in (("output", output, Output), ("read", read, Read)):
            if value not in allowed.__args__:  # type: ignore[attr-defined]
                raise ConfigError(f"{name}: {what} must be one of {', '.join(allowed.__args__)}, got {value!r}")  # type: ignore[attr-defined]
        if (max_tokens is not None and max_tokens < 8) or tokens_per_batch < 1:
            raise ConfigError(
                f"{name}: max_tokens must be at least 8 and tokens_per_batch at least 1, got {max_tokens} and "
                f"{tokens_per_batch}"
            )
        self.model, self.head, self.output, self.read, self.name = str(model), head, output, read, name
        self.base = None if base is None else str(base)
        self.max_tokens, self.tokens_per_batch = max_tokens, tokens_per_batch
        self.revision, self.device, self.dtype = revision, device, dtype
        self._warned = False
        self._network, self._tokenizer = self._load()
        self._place = self._find_place(self._network.config)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], messages: Sequence[Any] | None = None
    ) -> list[float]:
        """Score a batch; ``messages`` are prompts that are conversations, which ``"chat"`` reads turn by turn."""
        import torch

        from rlhf_gym.lm.sequences import batches_by_length

        network, tokenizer = self._network, self._tokenizer
        told = [None] * len(prompts) if messages is None else messages
        encoded = [self._encode(tokenizer, *sample) for sample in zip(prompts, responses, told, strict=True)]
        out = np.zeros(len(encoded))
        for rows in batches_by_length([len(e["input_ids"]) for e in encoded], self.tokens_per_batch):
            batch = tokenizer.pad([encoded[i] for i in rows], return_tensors="pt").to(network.device)
            with torch.no_grad():
                logits = network(**batch).logits.float()  # [n, outputs]
            out[rows] = self._score(network.config, logits)[:, self._place].double().cpu().numpy()
        scores: list[float] = out.tolist()
        return scores

    def _score(self, config: Any, logits: Any) -> Any:
        if self.output == "logit":
            return logits
        several = logits.shape[-1] > 1 and config.problem_type != "multi_label_classification"
        return logits.softmax(-1) if several else logits.sigmoid()

    def _encode(self, tokenizer: Any, prompt: str, response: str, messages: Any = None) -> dict[str, list[int]]:
        """Ids, mask and further inputs of the model; too long texts are cut at the front."""
        read = self.read
        if read == "auto":
            read = "chat" if tokenizer.chat_template else "continuation"
        texts, options = [prompt + response], {}
        if read == "chat":
            asked = messages_before(messages, response, text=prompt) or [{"role": "user", "content": prompt}]
            said = [*asked, {"role": "assistant", "content": response}]
            texts, options = [render_chat(tokenizer, said, add_generation_prompt=False)], {"add_special_tokens": False}
        elif read == "pair":
            texts = [prompt, response]
        elif read == "response":
            texts = [response]
        limit = tokenizer.model_max_length
        encoded: dict[str, list[int]] = dict(tokenizer(*texts, **options, verbose=False))
        if len(encoded["input_ids"]) > limit:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"reward {self.name!r}: a sample of {len(encoded['input_ids'])} tokens exceeds the {limit} that the model "
                    "is shown; its beginning is cut (this is said once)",
                    stacklevel=2,
                )
            first = encoded["input_ids"][0]
            # Of two texts the longer loses first; the tokenizer keeps what must stand at the beginning ([CLS]), where it has
            # put it there itself. A template's own beginning is kept here.
            encoded = dict(tokenizer(*texts, **options, truncation=True, max_length=limit))
            if read == "chat" and first == tokenizer.bos_token_id:
                encoded["input_ids"][0] = first
        if not encoded["input_ids"]:  # an empty text, with a tokenizer that adds nothing
            encoded = {"input_ids": [tokenizer.pad_token_id], "attention_mask": [1]}
        return encoded

    def _load(self) -> tuple[Any, Any]:
        from rlhf_gym.lm.loading import find, load_weights, one_thread_loads, pick_device, shown_length
        from rlhf_gym.rewards.builtin.classifier_adapter import adapter_settings, load_adapted_classifier

        source = find(self.model, revision=self.revision)
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": False}
        adapter = adapter_settings(source, self.revision)
        with one_thread_loads():
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    source.location, truncation_side="left", padding_side="right", **options
                )
            except Exception as error:  # transformers raises a dozen kinds
                raise source.cannot_load("tokenizer", error) from error
        options["dtype"] = self.dtype
        network: Any
        if adapter is not None:
            network = load_adapted_classifier(source, adapter, self.base, options)
        elif self.base is not None:
            raise ConfigError(f"reward {self.name!r}: {self.model!r} is no adapter: leave base={self.base!r} out")
        else:
            network = load_weights(
                source, options, allow_pickle=False, auto=AutoModelForSequenceClassification, what="sequence classifier"
            )
        network = network.eval().requires_grad_(False).to(pick_device(self.device))
        self._give_padding(network, tokenizer)
        seen = shown_length(network.config, tokenizer)
        tokenizer.model_max_length = min(seen, self.max_tokens or seen)
        if self.read == "chat" and not tokenizer.chat_template:
            raise ConfigError(f"reward {self.name!r}: {self.model!r} has no chat template; use another `read`")
        return network, tokenizer

    def _give_padding(self, network: Any, tokenizer: Any) -> None:
        """Causal classifiers look for the last id that is not padding: it must be an id that no text has."""
        from rlhf_gym.lm.tokenizer import HubTokenizer

        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            pad = HubTokenizer(tokenizer, self.model, network.get_input_embeddings().weight.shape[0]).pad_id
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        network.config.pad_token_id = tokenizer.pad_token_id

    def _find_place(self, config: Any) -> int:
        """The number of the output that is read."""
        labels = [str(config.id2label[i]) for i in range(config.num_labels)]
        if self.head is None and len(labels) == 1:
            return 0
        if isinstance(self.head, int) and not isinstance(self.head, bool) and 0 <= self.head < len(labels):
            return self.head
        if isinstance(self.head, str) and self.head in labels:
            return labels.index(self.head)
        raise ConfigError(
            f"reward {self.name!r}: {self.model!r} has the outputs {', '.join(labels)}; expected head to be one of them or a "
            f"number in 0..{len(labels) - 1}, got {self.head!r}"
        )


def toxicity(model: str = "unitary/toxic-bert", *, head: str | int = "toxic", **options: Any) -> Classifier:
    """Probability that the response is toxic, 0 to 1, by a classifier of the hub; :class:`Classifier` has the options.

    Args:
        model: a sequence classifier: its name on the Hugging Face hub, or a folder.
        head: the label that is scored, by name or index.
        options: passed on to :class:`Classifier`; they override the settings made here.
    """
    return Classifier(
        model, **{"head": head, "output": "probability", "read": "response", "name": "toxicity", **options}
    )


def sentiment_classifier(
    model: str = "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    *,
    head: str | int = "POSITIVE",
    **options: Any,
) -> Classifier:
    """Logit of praise in prompt and response by a classifier of the hub; :class:`Classifier` has the options.

    Args:
        model: a sequence classifier: its name on the Hugging Face hub, or a folder.
        head: the label that is scored, by name or index.
        options: passed on to :class:`Classifier`; they override the settings made here.
    """
    return Classifier(model, **{"head": head, "read": "continuation", "name": "sentiment_classifier", **options})


def reward_model(path: str | Path, **options: Any) -> Any:
    """A reward model: a folder that ``rlhf-gym run`` wrote, or any sequence classifier with one output (or ``head=``).

    Args:
        path: a folder, or a name on the hub.
        options: of :meth:`rlhf_gym.reward_model.RewardModel.load` or of :class:`Classifier`.

    Raises:
        ModelError, ConfigError: it cannot be loaded so.
    """
    if not (Path(path) / "reward_model.json").is_file():
        return Classifier(path, **{"name": "reward_model", **options})
    from rlhf_gym.reward_model import RewardModel

    try:
        return RewardModel.load(path, **options)
    except TypeError as error:
        raise ConfigError(f"reward_model: {error}; a reward model of rlhf-gym takes device and dtype") from error
    except ModelError as error:
        raise ConfigError(f"reward_model: {error}") from error
