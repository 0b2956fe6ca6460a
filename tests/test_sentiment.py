"""The sentiment scorer: signs, neutrality, the form of a reward, resistance to repetition, held-out accuracy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym.errors import ModelError
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer, features

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT.parent / "shared" / "data" / "movie_reviews.zip"
PRAISE = [
    "a wonderful, moving film with brilliant performances; one of the best of the year.",
    "it is hilarious and touching, and every scene is a perfect delight.",
    "an excellent script and a memorable hero make this a great and powerful drama.",
]
PANS = [
    "a boring, stupid mess with a terrible script; one of the worst of the year.",
    "nothing works: the jokes are lame, the plot is ridiculous and the acting is awful.",
    "what a waste. it is dull, predictable and, unfortunately, painfully bad.",
]


@pytest.fixture(scope="module")
def scorer() -> SentimentScorer:
    return SentimentScorer.embedded()


def test_signs(scorer: SentimentScorer) -> None:
    assert (scorer.score(PRAISE) > 1).all()
    assert (scorer.score(PANS) < -1).all()


def test_negation_counts(scorer: SentimentScorer) -> None:
    good, bad = scorer.score(["the film is a great success", "the film is not a great success"])
    assert good > bad


def test_a_text_without_known_words_is_neutral(scorer: SentimentScorer) -> None:
    scores = scorer.score(["", "   ", ".,;", "zzqx wvvk"])
    assert scores.dtype == np.float64
    assert scores.tolist() == [0.0] * 4
    assert scorer.score([]).shape == (0,)


def test_repetition_earns_nothing(scorer: SentimentScorer) -> None:
    once, often = scorer.score(["brilliant", "brilliant " * 30])
    # The pair "brilliant brilliant" is one more feature, not thirty.
    assert often <= once + 0.5


def test_it_is_a_reward_of_the_response(scorer: SentimentScorer) -> None:
    prompts = ["this awful, stupid, boring film "] * 3
    rewards = scorer(prompts, PRAISE, reference=["ignored"] * 3)
    assert rewards == scorer.score(PRAISE).tolist()
    assert all(type(r) is float for r in rewards)
    together = SentimentScorer.embedded(include_prompt=True)(prompts, PRAISE)
    assert together == scorer.score([p + r for p, r in zip(prompts, PRAISE, strict=True)]).tolist()
    assert all(a < b for a, b in zip(together, rewards, strict=True))


@given(st.text())
def test_every_text_has_a_finite_score(text: str) -> None:
    score = SentimentScorer.embedded().score([text])
    assert np.isfinite(score).all()
    assert (score == SentimentScorer.embedded().score([text.upper()])).all() or text.upper().lower() != text.lower()


def test_score_by_hand() -> None:
    by_hand = SentimentScorer(np.array([1.0, -2.0, 4.0]), 0.25, ["good", "bad", "very good"])
    assert features("Very good, good!") == {"very", "good", "!", "very good", "good good", "good !"}
    assert by_hand.score(["very good"])[0] == pytest.approx((1 + 4) / 2**0.5 + 0.25)
    assert by_hand.score(["bad bad bad"])[0] == pytest.approx(-2 + 0.25)


def test_scores_are_the_same_in_every_process(scorer: SentimentScorer) -> None:
    """A set of strings is ordered by a hash that differs between processes; sums of floats depend on their order."""
    code = (
        "import sys; from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer as S; "
        "print(S.embedded().score([sys.argv[1]])[0])"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, " ".join(PRAISE)],
            capture_output=True, text=True, check=True, cwd=ROOT / "tests", env={"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert float(done.stdout) == scorer.score([" ".join(PRAISE)])[0]


def test_import_is_light() -> None:
    code = (
        "import sys; from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer; "
        "SentimentScorer.embedded().score(['good']); "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert done.stdout.strip() == "[]"


def test_missing_weights_are_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the sentiment scorer"):
        SentimentScorer.load(tmp_path)


@pytest.mark.skipif(not CORPUS.exists(), reason=f"no corpus at {CORPUS.name}'s usual place, ../shared/data")
def test_held_out_accuracy(scorer: SentimentScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "embedded_model"))
    from data import drop_copies, load_reviews, split_reviews

    train, _, test = split_reviews(load_reviews(CORPUS))
    test = drop_copies(test, train)
    scores = scorer.score([" ".join(r.text()) for r in test])
    assert np.mean((scores > 0) == np.array([r.positive for r in test])) >= 0.8
