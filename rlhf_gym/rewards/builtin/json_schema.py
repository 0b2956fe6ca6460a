"""JSON that fits a schema as a reward, by the package ``jsonschema``. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.builtin.needs import library


class JsonSchema:
    """1 if a response is JSON that fits a schema, ``parses`` if it is JSON that does not, else 0; by ``jsonschema``.

    Args:
        schema: a JSON schema; None takes the data set's column ``column``.
        parses: score of JSON that does not fit the schema, in [0, 1].
        column: the column with each sample's schema, used where ``schema`` is None.

    Raises:
        ConfigError: ``schema`` is not a JSON schema, ``parses`` is outside [0, 1], or the package is not installed.
    """

    name = "json_schema"

    def __init__(
        self, schema: Mapping[str, Any] | bool | None = None, parses: float = 0.0, column: str = "schema"
    ) -> None:
        self._library = library("jsonschema", "jsonschema", self.name)
        if not 0 <= parses <= 1:
            raise ConfigError(f"json_schema's parses must lie in [0, 1], got {parses}")
        self.parses, self.column = parses, column
        self._validator = None if schema is None else self._check(schema)

    def _check(self, schema: Any) -> Any:
        kind = self._library.validators.validator_for(schema)
        try:
            kind.check_schema(schema)
        except self._library.SchemaError as error:
            raise ConfigError(f"json_schema needs a JSON schema: {error.message}") from error
        return kind(schema)

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: there is no schema: none was given, and the data have no such column.
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
