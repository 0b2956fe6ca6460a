"""Metrics from well-kept libraries as rewards: ROUGE, BLEU, chrF, VADER, JSON schema. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Literal

from rlhf_gym.errors import ConfigError, RewardError


def _library(module: str, package: str, reward: str) -> Any:
    """Import a library, or say how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"reward {reward!r} needs {package}: pip install 'rlhf-gym[metrics]'") from error


class _AgainstReference:
    """A metric of a response against the data set's reference; of several references the best counts.

    Args:
        column: the data set's column with the reference: a text or a list of texts.
    """

    name: str

    def __init__(self, column: str = "reference") -> None:
        self.column = column

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: the data have no such column, or no text in it.
        """
        return [self.compare(r, some) for r, some in zip(responses, self.references(columns), strict=True)]

    def references(self, columns: Mapping[str, list[Any]]) -> list[list[str]]:
        """The references of each sample.

        Raises:
            RewardError: the data have no such column, or no text in it.
        """
        if self.column not in columns:
            raise RewardError(
                f"reward {self.name!r} needs the column {self.column!r}; the data have "
                f"{', '.join(map(repr, columns)) or 'no columns'}"
            )
        return [self._texts(reference, i) for i, reference in enumerate(columns[self.column])]

    def _texts(self, reference: Any, index: int) -> list[str]:
        texts = [reference] if isinstance(reference, str) else reference
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise RewardError(
                f"reward {self.name!r} got {reference!r:.80} as the reference of sample {index}, expected a text or a list "
                "of texts"
            )
        return list(texts)

    def compare(self, response: str, references: list[str]) -> float:
        """The metric of one response."""
        raise NotImplementedError


class Rouge(_AgainstReference):
    """ROUGE F1 in [0, 1] (Lin 2004), by the package ``rouge-score``.

    Args:
        kind: ``"rouge1"``, ``"rouge2"``, ..., ``"rougeL"`` or ``"rougeLsum"``.
        stem: compare stems instead of words (English).
        column: the reference's column.

    Raises:
        ConfigError: ``kind`` is none of these, or the package is not installed.
    """

    name = "rouge"

    def __init__(self, kind: str = "rougeL", stem: bool = False, column: str = "reference") -> None:
        super().__init__(column)
        digits = kind.removeprefix("rouge")
        if not kind.startswith("rouge") or not (
            digits in ("L", "Lsum") or (digits.isdecimal() and 1 <= int(digits) <= 9)
        ):
            raise ConfigError(f"rouge's kind must be rouge1 to rouge9, rougeL or rougeLsum, got {kind!r}")
        library = _library("rouge_score.rouge_scorer", "rouge-score", self.name)
        self.kind, self._scorer = kind, library.RougeScorer([kind], use_stemmer=stem)

    def compare(self, response: str, references: list[str]) -> float:
        """F1 against the best reference.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._scorer.score_multi(references, response)[self.kind].fmeasure)


class Bleu(_AgainstReference):
    """Sentence BLEU in [0, 1] (Papineni et al. 2002), exponentially smoothed, by the package ``sacrebleu``."""

    name = "bleu"

    def __init__(self, column: str = "reference") -> None:
        super().__init__(column)
        # effective_order: a response of fewer than four words is judged by the n-grams that it has.
        self._metric = _library("sacrebleu.metrics", "sacrebleu", self.name).BLEU(effective_order=True)

    def compare(self, response: str, references: list[str]) -> float:
        """BLEU against all references.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._metric.sentence_score(response, references).score) / 100


class ChrF(_AgainstReference):
    """chrF in [0, 1] (Popovic 2015), by the package ``sacrebleu``.

    Args:
        word_order: 0 is chrF, 2 is chrF++.
        column: the reference's column.
    """

    name = "chrf"

    def __init__(self, word_order: int = 0, column: str = "reference") -> None:
        super().__init__(column)
        self._metric = _library("sacrebleu.metrics", "sacrebleu", self.name).CHRF(word_order=word_order)

    def compare(self, response: str, references: list[str]) -> float:
        """ChrF against the best reference.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._metric.sentence_score(response, references).score) / 100


class Vader:
    """Sentiment in [-1, 1] by a lexicon and rules (Hutto and Gilbert 2014), by the package ``vaderSentiment``.

    Args:
        part: ``"compound"`` (-1 to 1), or the share of text that is ``"pos"``, ``"neu"`` or ``"neg"``.

    Raises:
        ConfigError: ``part`` is none of these, or the package is not installed.
    """

    name = "vader"

    def __init__(self, part: Literal["compound", "pos", "neu", "neg"] = "compound") -> None:
        if part not in ("compound", "pos", "neu", "neg"):
            raise ConfigError(f"vader's part must be compound, pos, neu or neg, got {part!r}")
        self.part = part
        library = _library("vaderSentiment.vaderSentiment", "vaderSentiment", self.name)
        self._analyser = library.SentimentIntensityAnalyzer()

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [float(self._analyser.polarity_scores(r)[self.part]) for r in responses]


class JsonSchema:
    """1 if a response is JSON that fits a schema, ``parses`` if it is JSON that does not, else 0; by ``jsonschema``.

    Args:
        schema: a JSON schema; None takes the data set's column ``column``.
        parses: score of JSON that does not fit the schema, in [0, 1].
        column: see ``schema``.

    Raises:
        ConfigError: the schema is none.
    """

    name = "json_schema"

    def __init__(
        self, schema: Mapping[str, Any] | bool | None = None, parses: float = 0.0, column: str = "schema"
    ) -> None:
        self._library = _library("jsonschema", "jsonschema", self.name)
        if not 0 <= parses <= 1:
            raise ConfigError(f"json_schema's parses must lie in [0, 1], got {parses}")
        self.parses, self.column = parses, column
        self._validator = None if schema is None else self._check(schema)

    def _check(self, schema: Any) -> Any:
        kind = self._library.validators.validator_for(schema)
        try:
            kind.check_schema(schema)
        except self._library.SchemaError as error:
            raise ConfigError(f"json_schema was given no JSON schema: {error.message}") from error
        return kind(schema)

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: there is no schema, neither given nor in the data.
        """
        if self._validator is None and self.column not in columns:
            raise RewardError(f"reward 'json_schema' needs a schema: give it one, or the data a column {self.column!r}")
        scores = []
        for i, response in enumerate(responses):
            validator = self._validator or self._check(columns[self.column][i])
            try:
                value = json.loads(response)
            except (ValueError, RecursionError):
                scores.append(0.0)
            else:
                scores.append(1.0 if validator.is_valid(value) else self.parses)
        return scores
