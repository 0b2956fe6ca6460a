"""What engines have in common that take weights from a folder: written once for each version, loaded only where they differ."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from pathlib import Path

from rlhf_gym.lm.engines.engine import Engine, weights_marker
from rlhf_gym.lm.language_model import LanguageModel


class FolderEngine(Engine):
    """Base of engines that are given weights as files.

    Args:
        name: the name that it is chosen by.
        folder: where weights are written; None takes a new folder for temporary files.
    """

    def __init__(self, name: str, folder: str | Path | None = None) -> None:
        super().__init__(name)
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="rlhf-gym-engine-")
        self._folder = Path(folder or self._temporary.name).absolute()  # type: ignore[union-attr]
        self._loaded: tuple[int, int] | None = None
        self._model: LanguageModel | None = None

    def load_weights(self, model: LanguageModel, version: int) -> None:
        """Have the engine load the weights, unless it has these already; see :meth:`Engine.load_weights`.

        Args:
            model: the model that learns.
            version: number of its weights.

        Raises:
            EngineError: the weights did not arrive.
        """
        wanted, is_new = (version, weights_marker(model)), model is not self._model
        if wanted == self._loaded and not is_new:
            return
        self._loaded, self._model = None, model
        self.put(model, f"{version}-{wanted[1]}", is_new=is_new)
        self._loaded, self.version = wanted, version

    @abstractmethod
    def put(self, model: LanguageModel, label: str, *, is_new: bool) -> None:
        """Write the weights, and have the engine load them.

        Args:
            model: the model that learns.
            label: a name that no other weights of this model have.
            is_new: True where the weights before were another model's.

        Raises:
            EngineError: the weights did not arrive.
        """

    def close(self) -> None:
        """Remove temporary weights."""
        self._loaded = None
        if self._temporary is not None:
            self._temporary.cleanup()
