"""A second opinion on sentiment, independent of the scorer: networks and characters, and text that is none earns nothing.

The embedded scorer counts words, so a heap of praising words satisfies it. This judge multiplies two probabilities: that the
response praises, by three small convolutional networks over sub-words and a logistic regression on character n-grams; and that
prompt and response together are running English, by the same networks, the embedded language model's surprise and repetition.
Trained by ``benchmarks/embedded_model/train_judge.py`` on human film reviews and on cheap attacks.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rlhf_gym.embedded import EMBEDDED_JUDGE
from rlhf_gym.errors import ModelError

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel

Array = NDArray[np.float32]
WIDTHS = (1, 2, 3, 4)
"""Sub-words that a filter of a network sees at once."""
NGRAMS = (3, 4, 5)
BUCKETS = 1 << 16
LIMIT = 6.0
NATURAL_FEATURES = ("networks", "surprise", "spread", "repetition", "size")
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


class Network:
    """A convolutional network over sub-words (Kim 2014) with two log-odds: of praise, and of running English.

    Filters of several widths, their largest and their mean answers over the text, a linear layer.

    Args:
        weights: ``embedding`` ``[V, D]``; for each width ``w`` of :data:`WIDTHS` ``filter_w`` ``[w * D, F]`` and ``bias_w``
            ``[F]``; ``head`` ``[2 * F * widths, 2]`` and ``head_bias`` ``[2]``.
    """

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights = {name: values.astype(np.float32) for name, values in weights.items()}

    def read(self, ids: Sequence[int]) -> Array:
        """The log-odds of praise and of running English, float32 ``[2]``."""
        given = self._weights
        width = given["embedding"].shape[1]
        padding = np.zeros((max(0, max(WIDTHS) - len(ids)), width), np.float32)
        states = np.concatenate([given["embedding"][list(ids)], padding])
        pooled = []
        for w in WIDTHS:
            windows = np.lib.stride_tricks.sliding_window_view(states, w, axis=0).swapaxes(1, 2).reshape(-1, w * width)
            answers = np.maximum(windows @ given[f"filter_{w}"] + given[f"bias_{w}"], 0.0)
            pooled += [answers.max(0), answers.mean(0)]
        found: Array = np.concatenate(pooled) @ given["head"] + given["head_bias"]
        return found


class SentimentJudge:
    """Log-odds that a response praises a film *and* is running English, -6 to 6: word salad, lists and repetition score low.

    ``log(p / (1 - p))`` with ``p = P(praise) * P(running English)``. The response alone is read for praise; prompt and response
    together for English, so that copying the prompt is repetition. A response without a letter scores -6.

    Args:
        networks: each reads sub-words.
        characters: float ``[65536]``, log-odds of hashed character n-grams, divided by the square root of their number.
        praise: weights of the networks' mean and of the characters, and a bias.
        natural: weights of :data:`NATURAL_FEATURES`, and a bias.
        model: the language model whose surprise is measured and whose tokenizer the networks read by; loaded with the first
            call.
    """

    name = "sentiment_judge"

    def __init__(
        self,
        networks: Sequence[Network],
        characters: NDArray[Any],
        praise: Sequence[float],
        natural: Sequence[float],
        model: LanguageModel | str = "embedded",
    ) -> None:
        self._networks, self._characters, self._model = tuple(networks), characters.astype(np.float64), model
        self._praise, self._natural = np.array(praise), np.array(natural)

    @classmethod
    def load(cls, folder: Path) -> SentimentJudge:
        """Read ``weights.safetensors`` and ``judge.json`` from a folder.

        Raises:
            ModelError: the folder does not hold them.
        """
        try:
            weights = load_file(folder / "weights.safetensors")
            found = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(f"cannot read the sentiment judge in {folder}: {error}") from error
        networks = [
            Network({name.partition(".")[2]: values for name, values in weights.items() if name.startswith(f"{i}.")})
            for i in range(found["networks"])
        ]
        return cls(networks, weights["characters"], found["praise"], found["natural"])

    @staticmethod
    @lru_cache(maxsize=1)
    def embedded() -> SentimentJudge:
        """Log-odds that a response praises a film and is running English, -6 to 6: word salad and lists score low.

        The judge that the package ships, independent of the reward ``sentiment``: another class of model, other features. It
        reads the response alone for praise, and prompt and response together for English. The weights are read once a process.
        """
        return SentimentJudge.load(EMBEDDED_JUDGE)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Score a batch."""
        praise, natural = self.probabilities(prompts, responses)
        p = praise * natural
        return [float(s) for s in np.clip(np.log(p) - np.log1p(-p), -LIMIT, LIMIT)]

    def probabilities(
        self, prompts: Sequence[str], responses: Sequence[str]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The probabilities that responses praise, and that prompt and response are running English, each float64 ``[n]``.

        A response without a letter or a digit is no English.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
        """
        tokenizer = self.language_model().tokenizer
        networks, characters = self.praise_features(responses, tokenizer)
        praise = networks * self._praise[0] + characters * self._praise[1] + self._praise[2]
        natural = self.natural_features(prompts, responses) @ self._natural[:-1] + self._natural[-1]
        natural[[_WORD.search(response.lower()) is None for response in responses]] = -np.inf
        return _sigmoid(praise), _sigmoid(natural)

    def praise_features(self, texts: Sequence[str], tokenizer: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log-odds of praise by the networks (mean) and by the characters, each float64 ``[n]``.

        Args:
            texts: ``n`` texts.
            tokenizer: the networks' tokenizer.
        """
        read = [self._read(_ids(tokenizer, text))[0] for text in texts]
        characters = [float(self._characters[found].sum()) / max(1, len(found)) ** 0.5 for found in map(buckets, texts)]
        return np.array(read, dtype=np.float64), np.array(characters, dtype=np.float64)

    def natural_features(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """The features of running English, float64 ``[n, 5]``: see :data:`NATURAL_FEATURES`.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
        """
        tokenizer = self.language_model().tokenizer
        surprise = self._surprise(prompts, responses)
        rows = []
        for prompt, response, (mean, spread) in zip(prompts, responses, surprise, strict=True):
            natural = self._read(_ids(tokenizer, _joined(prompt, response)))[1]
            rows.append([natural, mean, spread, repetition(prompt, response), np.log1p(len(response.split()))])
        return np.array(rows, dtype=np.float64).reshape(-1, len(NATURAL_FEATURES))

    def language_model(self) -> LanguageModel:
        """The language model, loaded once."""
        from rlhf_gym.lm.language_model import LanguageModel

        if isinstance(self._model, str):
            self._model = LanguageModel.load(self._model, device="cpu")
        return self._model

    def _read(self, ids: Sequence[int]) -> Array:
        found: Array = np.mean([network.read(ids) for network in self._networks], axis=0)
        return found

    def _surprise(self, prompts: Sequence[str], responses: Sequence[str]) -> list[tuple[float, float]]:
        """Mean and standard deviation of each response's nats a token, given the prompt; (0, 0) for an empty response."""
        from rlhf_gym.lm.log_probs import response_log_probs
        from rlhf_gym.lm.sampling import Limits, Sampling

        model = self.language_model()
        most = model.context_length
        context = [[model.tokenizer.eos_id, *model.tokenizer.encode(p.lower())][-(most // 2) :] for p in prompts]
        written = [
            model.tokenizer.encode(_glued(p, r))[: most - len(ids)]
            for p, r, ids in zip(prompts, responses, context, strict=True)
        ]
        some = [i for i, ids in enumerate(written) if ids]
        found = [(0.0, 0.0)] * len(responses)
        if some:
            limits = Limits(model.tokenizer.eos_id, max_new_tokens=most)
            logs = response_log_probs(model, [context[i] for i in some], [written[i] for i in some], Sampling(), limits)
            for i, values in zip(some, logs, strict=True):
                found[i] = (-float(values.double().mean()), float(values.double().std(correction=0)))
        return found


def buckets(text: str) -> NDArray[np.int64]:
    """The hashed character n-grams of a text, each once, in order: int64 ``[m]``, below :data:`BUCKETS`."""
    plain = f" {' '.join(text.lower().split())} ".encode()
    found = {zlib.crc32(plain[i : i + n]) % BUCKETS for n in NGRAMS for i in range(len(plain) - n + 1)}
    return np.array(sorted(found), dtype=np.int64)


def repetition(prompt: str, response: str) -> float:
    """The share of a response's word pairs that were there before, in the prompt or in the response: 0 to 1.

    Args:
        prompt: the prompt's text.
        response: the response's text.

    >>> repetition("a good film", "a good film, a good cast")
    0.6
    """
    seen = set(pairwise(_WORD.findall(prompt.lower())))
    pairs = list(pairwise(_WORD.findall(response.lower())))
    new = 0
    for pair in pairs:
        new += pair not in seen
        seen.add(pair)
    return 1 - new / len(pairs) if pairs else 0.0


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text.lower()))


def _glued(prompt: str, response: str) -> str:
    """A response as it goes on after its prompt: with one space between two words."""
    begin = response[:1]
    return f" {response.lower()}" if prompt and begin.isalnum() and not prompt[-1].isspace() else response.lower()


def _joined(prompt: str, response: str) -> str:
    return prompt + _glued(prompt, response)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    # Bounded, so that no probability is 0 or 1 and their log-odds are finite.
    found: NDArray[np.float64] = 1 / (1 + np.exp(-np.clip(x, -20.0, 20.0)))
    return found
