"""The embedded language model, sentiment scorer and judge: trained by `benchmarks/embedded_model`, described in CARD.md."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

EMBEDDED_LM = _HERE / "lm"
"""Folder for ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``."""

EMBEDDED_SENTIMENT = _HERE / "sentiment"
"""Folder of the sentiment scorer's weights; see :class:`rlhf_gym.rewards.builtin.sentiment_scorer.SentimentScorer`."""

EMBEDDED_JUDGE = _HERE / "judge"
"""Folder of the sentiment judge's weights; see :class:`rlhf_gym.rewards.builtin.sentiment_judge.SentimentJudge`."""
