"""Language identification of a response as a reward, by the package ``py3langid``. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.needs import library

AMONG = (
    "ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it", "ja",
    "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur",
    "vi", "zh",
)  # fmt: skip
"""Widely written languages. Among all that the model knows, short texts are often taken for a rare one."""


class LanguageId:
    """Probability that a response is in a language, 0 to 1 (Lui and Baldwin 2012; the model is inside the package).

    A naive Bayes classifier over n-grams of bytes: fast, deterministic, sure of sentences and unsure of single words. A
    response without a letter scores 0.

    Args:
        language: its ISO 639 code, such as ``"en"``.
        among: the languages that it might be in instead.

    Raises:
        ConfigError: py3langid is not installed, or knows no such language.
    """

    name = "language"

    def __init__(self, language: str = "en", among: Sequence[str] = AMONG) -> None:
        langid = library("py3langid.langid", "py3langid", self.name)
        self._model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        known = list(self._model.labels)
        wrong = [code for code in (language, *among) if code not in known]
        if wrong or not among or isinstance(among, str):
            raise ConfigError(
                f"language knows {', '.join(sorted(known))}; got {wrong[0] if wrong else among!r}, and `among` must be a list"
            )
        self.language = language
        self._model.set_languages(sorted({language, *among}))

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [float(dict(self._model.rank(r))[self.language]) if any(map(str.isalpha, r)) else 0.0 for r in responses]
