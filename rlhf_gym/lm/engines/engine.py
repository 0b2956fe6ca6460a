"""The interface of an engine: token ids in; token ids, log-probabilities and ends out; weights in, versioned.

An engine draws tokens; where a response ends stays this package's own definition: :class:`ResponseReader` reads what was drawn
by the same limits and stop sequences that the built-in decoder has, so that a setting means the same everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlhf_gym.errors import EngineError
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.sampling import Limits, Sampling


@dataclass(frozen=True)
class ResponseSettings:
    """The settings that responses are drawn with.

    Attributes:
        limits: forbidden tokens, ends and lengths.
        sampling: temperature, top-k, top-p.
        stop: texts that end a response where they appear.
    """

    limits: Limits
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()


class Engine(ABC):
    """Generates responses with weights that it is given.

    Attributes:
        name: the name that it is chosen by.
        version: the version of the weights that it holds; None before the first.
        gives_values: True where responses come with the value head's outputs.
    """

    def __init__(self, name: str) -> None:
        self.name, self.gives_values = name, False
        self.version: int | None = None

    def refuse(self, model: LanguageModel, settings: ResponseSettings) -> None:  # noqa: B027 - most can do everything
        """Refuse what this engine cannot do, before anything starts.

        Args:
            model: the model that learns.
            settings: what responses are to be drawn with.

        Raises:
            ConfigError: names the engine and the setting.
        """

    def connect(self) -> None:  # noqa: B027 - an engine in this process is there
        """Reach what the engine needs, before anything starts.

        Raises:
            EngineError: it is not there.
        """

    @abstractmethod
    def load_weights(self, model: LanguageModel, version: int) -> None:
        """Take over the model's weights as they are now.

        Args:
            model: the model that learns.
            version: number of these weights; every response from now on carries it.

        Raises:
            EngineError: the weights did not arrive.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: ResponseSettings,
        *,
        seed: int,
        episodes: Sequence[int],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Generate one response to each prompt, all of them with the weights of :attr:`version`.

        Args:
            prompts: ids of each prompt, at least one each.
            settings: what the responses are drawn with.
            seed: seed of the noise.
            episodes: number of each response, for the noise.
            on_progress: called with the number of responses finished so far; what it raises ends the work.

        Returns:
            A response a prompt, in their order.

        Raises:
            EngineError: the engine failed, and cannot be brought back.
        """

    def metrics(self) -> dict[str, float]:
        """Counts since the last call, by the names that metrics are logged under."""
        return {}

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what the engine holds."""


class ResponseReader:
    """Reads responses from the tokens that an engine drew, by this package's limits and stop sequences.

    Args:
        engine: the engine's name, for messages.
        model: the model that learns; its tokenizer reads the texts.
        settings: what the tokens were to be drawn with.
    """

    def __init__(self, engine: str, model: LanguageModel, settings: ResponseSettings) -> None:
        self.engine, self.limits, self.vocab_size = engine, settings.limits, model.vocab_size
        self.text = ResponseText(model.tokenizer, settings.stop)
        self._suppressed, self._ends = set(self.limits.suppress_tokens), set(self.limits.eos_ids)

    def read(
        self, prompt: Sequence[int], ids: Sequence[int], log_probs: Sequence[float], version: int | None
    ) -> Generation | None:
        """The response that these tokens begin with; None where they stop before it has ended.

        Args:
            prompt: ids of the prompt.
            ids: ids that were drawn.
            log_probs: of each.
            version: of the weights that they were drawn with.

        Raises:
            EngineError: a token that the settings forbid, or log-probabilities that are none.
        """
        if len(log_probs) != len(ids) or not all(np.isfinite(log_probs)):
            raise EngineError(
                f"engine {self.engine}: {len(ids)} tokens came with {sum(map(np.isfinite, log_probs))} finite log-probs; "
                "every drawn token needs one"
            )
        ended = False
        for place, token in enumerate(ids[: self.limits.max_new_tokens]):
            self._check(token, place)
            ended = token in self._ends or self.text.stopped(ids[: place + 1], prompt)
            if ended:
                ids = ids[: place + 1]
                break
        ids = list(ids[: self.limits.max_new_tokens])
        if not ended and len(ids) < self.limits.max_new_tokens:
            return None
        text = self.text.read(ids, prompt)[0]
        return Generation(ids, list(log_probs[: len(ids)]), [], ended, text, version)

    def read_whole(
        self, prompt: Sequence[int], ids: Sequence[int], log_probs: Sequence[float], version: int | None
    ) -> Generation:
        """The response that these tokens begin with, which must have ended among them; see :meth:`read`.

        Args:
            prompt: ids of the prompt.
            ids: ids that were drawn.
            log_probs: of each.
            version: of the weights that they were drawn with.

        Raises:
            EngineError: they stop before the response has ended, or as :meth:`read`.
        """
        if (response := self.read(prompt, ids, log_probs, version)) is None:
            raise EngineError(f"engine {self.engine} ended a response after {len(ids)} tokens without an end")
        return response

    def _check(self, token: int, place: int) -> None:
        early = token in self._ends and place < self.limits.min_new_tokens
        if 0 <= token < self.vocab_size and token not in self._suppressed and not early:
            return
        rule = f"min_new_tokens={self.limits.min_new_tokens}" if early else "suppress_tokens"
        if not 0 <= token < self.vocab_size:
            rule = f"the model's {self.vocab_size} logits"
        raise EngineError(
            f"engine {self.engine} drew token {token} at place {place} of a response, against {rule}: it ignores what it was "
            "told, or serves another model"
        )


def request_seed(seed: int, episode: int) -> int:
    """The seed of one response, 0 to 2^63 - 1, for engines that draw their own noise.

    Args:
        seed: seed of the run's noise, any integer.
        episode: number of the response, 0 or more.
    """
    key = np.array([seed % (1 << 64), episode], dtype=np.uint64)
    return int(np.random.Generator(np.random.Philox(key=key)).integers(1 << 63, dtype=np.uint64))


def weights_marker(model: LanguageModel) -> int:
    """A number that changes whenever a weight is written to in place (torch counts the writes to each tensor)."""
    return sum(parameter._version for parameter in model.model.parameters())
