"""BERTScore as a reward: similarity of a response's words to a reference's, by a language model's hidden states."""

from __future__ import annotations

from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.against_reference import AgainstReference
from rlhf_gym.rewards.builtin.encoder import load_encoder
from rlhf_gym.rewards.builtin.needs import library


class BertScore(AgainstReference):
    """BERTScore F1, at most 1 (Zhang et al. 2020), by the package ``torchmetrics``; of several references the best counts.

    Not rescaled: values of unrelated English texts lie near 0.8, of good matches above 0.9. Responses are cut at 512 tokens;
    an empty one scores 0.

    Args:
        model: an encoder's name on the Hugging Face hub, or its folder; loaded with the first call.
        layer: the layer whose hidden states are compared; the authors recommend 17 for ``roberta-large``.
        revision: commit, tag or branch on the hub.
        column: the reference's column.

    Raises:
        ConfigError: torchmetrics is not installed, or the model has no such layer.
    """

    name = "bert_score"

    def __init__(
        self, model: str = "roberta-large", layer: int = 17, revision: str | None = None, column: str = "reference"
    ) -> None:
        super().__init__(column)
        self._score = library("torchmetrics.functional.text.bert", "torchmetrics", self.name).bert_score
        self.model, self.layer, self.revision = model, layer, revision
        self._loaded: tuple[Any, Any] | None = None

    def compare(self, response: str, references: list[str]) -> float:
        """F1 against the best reference.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        if not response.strip():
            return 0.0
        return max(self._f1(response, reference) if reference.strip() else 0.0 for reference in references)

    def _f1(self, response: str, reference: str) -> float:
        model, tokenizer = self._loaded or self._load()
        # One pair at a time: torchmetrics sorts a batch's texts by length and puts them back in another order than they were
        # (up to 1.9 at least: it indexes with the sorting permutation instead of its inverse).
        scored = self._score(
            [response],
            [reference],
            model=model,
            user_tokenizer=tokenizer,
            user_forward_fn=self._states,
            max_length=512,
            truncation=True,
            device=model.device,
        )
        return float(scored["f1"])

    def _states(self, model: Any, batch: dict[str, Any]) -> Any:
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
        return out.hidden_states[self.layer]

    def _load(self) -> tuple[Any, Any]:
        model, tokenizer = load_encoder(self.model, revision=self.revision, name=self.name)
        layers = model.config.num_hidden_layers
        if not 0 <= self.layer <= layers:
            raise ConfigError(f"bert_score's layer must lie in 0..{layers} for {self.model!r}, got {self.layer}")
        self._loaded = (model, tokenizer)
        return self._loaded
