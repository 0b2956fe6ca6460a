"""The built-in engine: cached decoding with the very weights that learn, and values from the same pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.engines.engine import Engine, ResponseSettings
from rlhf_gym.lm.language_model import LanguageModel

BUILTIN = "builtin"


class BuiltinEngine(Engine):
    """:func:`~rlhf_gym.lm.decoding.generate` as an engine.

    Args:
        value_head: maps hidden states ``[n, D]`` to values ``[n]``; None gives no values.
    """

    def __init__(self, value_head: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(BUILTIN)
        self.value_head, self.gives_values = value_head, value_head is not None
        self._model: LanguageModel | None = None

    def load_weights(self, model: LanguageModel, version: int) -> None:
        """Take the model itself: its weights are always the latest.

        Args:
            model: the model that learns.
            version: number of its weights.
        """
        self._model, self.version = model, version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: ResponseSettings,
        *,
        seed: int,
        episodes: Sequence[int],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Generate one response to each prompt, all at once; see :meth:`Engine.generate`.

        Args:
            prompts: ids of each prompt.
            settings: what the responses are drawn with.
            seed: seed of the noise.
            episodes: number of each response, for the noise.
            on_progress: called with the number of responses finished so far.
        """
        assert self._model is not None
        generations = generate(
            self._model, prompts, settings.limits, sampling=settings.sampling, seed=seed, episodes=episodes,
            stop=settings.stop, value_head=self.value_head, batch_size=max(1, len(prompts)), on_progress=on_progress,
        )  # fmt: skip
        return [replace(generation, version=self.version) for generation in generations]
