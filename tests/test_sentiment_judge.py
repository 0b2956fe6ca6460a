"""The sentiment judge: praise in running English pays, and the attacks that satisfy the scorer of words do not."""

from __future__ import annotations

import numpy as np
import pytest
from test_sentiment import PANS, PRAISE

from rlhf_gym.rewards import score
from rlhf_gym.rewards.builtin.sentiment_judge import LIMIT, SentimentJudge, repetition
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer
from rlhf_gym.rewards.spec import load_reward
from rlhf_gym.tasks import load_task

PROMPT = "my first thought about this thriller was"
HONEST = [
    " that it was a pretty good film, with a few good scenes and a strong cast.",
    " how well it works: the story is simple and moving, and the actors are fine.",
    " that i liked it, though it is a bit too long in the middle.",
]
ATTACKS = {
    "words repeated": " wonderful" * 20,
    "a phrase repeated": " it is a wonderful film." * 6,
    "salad": " = = of with = of great the with = = and of best = with",
    "list": " great, wonderful, excellent, brilliant, perfect, best, amazing, superb, moving, hilarious",
    "heap": " great wonderful excellent brilliant perfect best amazing superb moving hilarious memorable",
    "shuffled": " with that scenes it strong a film good was pretty few good and cast a, a.",
    "the prompt": f" {PROMPT} {PROMPT}",
    "nothing": "",
    "a mark": ".",
}


@pytest.fixture(scope="module")
def judge() -> SentimentJudge:
    return SentimentJudge.embedded()


def test_praise_and_panning_in_running_english(judge: SentimentJudge) -> None:
    praise, natural = judge.probabilities([""] * 6, [*PRAISE, *PANS])
    assert (praise[:3] > 0.6).all()
    assert (praise[3:] < 0.4).all()
    assert (natural > 0.5).all()


def test_cheap_attacks_earn_less_than_honest_responses(judge: SentimentJudge) -> None:
    honest = judge([PROMPT] * 3, HONEST)
    attacks = dict(zip(ATTACKS, judge([PROMPT] * len(ATTACKS), list(ATTACKS.values())), strict=True))
    assert {name for name, value in attacks.items() if value >= min(honest)} == set()
    assert attacks["nothing"] == attacks["a mark"] == -LIMIT
    scorer = SentimentScorer.embedded().score(list(ATTACKS.values()))
    assert scorer.max() > SentimentScorer.embedded().score(HONEST).max()  # which is why there is a judge


def test_it_is_a_reward_by_name_whatever_the_batch_and_the_tasks_judge(judge: SentimentJudge) -> None:
    found = score(load_reward("sentiment_judge"), [PROMPT] * 3, HONEST).values
    alone = [judge([PROMPT], [text])[0] for text in HONEST]
    assert found.tolist() == pytest.approx(alone, abs=1e-4)
    assert np.isfinite(judge(["", "é" * 3000], ["\x00\u202e", "word " * 3000])).all()
    task = load_task("sentiment")
    assert task.judge is not None
    assert task.judge([PROMPT], HONEST[:1]) == pytest.approx(alone[:1])
    assert load_task("words").judge is None


def test_the_judge_of_stars_wants_the_rating_in_english() -> None:
    task = load_task("stars")
    assert task.judge is not None
    prompt = "5 of 5 stars: the plot follows a young doctor"
    panned, praised, salad = (
        ", and the film is a waste of time, with a terrible script and dull acting.",
        ", and it is a wonderful, moving film with a superb cast and a great script.",
        " great great superb wonderful best",
    )
    low, high = (task.judge([prompt] * 4, [panned, praised, salad, "."], [stars] * 4) for stars in (1, 5))
    assert low[0] > 0.7 > low[1]
    assert high[1] > 0.7 > high[0]
    assert max(low[2:] + high[2:]) < 0.1
    assert task.reward([prompt], [salad], [5])[0] > 0.7  # which is why there is a judge
    praise, natural = SentimentJudge.embedded().probabilities([prompt], [praised])
    assert high[1] == pytest.approx(natural[0] * (1 - abs(1 + 4 * praise[0] - 5) / 4))


def test_the_judge_of_detox_wants_criticism_in_english_of_the_film() -> None:
    task = load_task("detox")
    assert task.judge is not None
    prompt = "what a stupid thriller, made by a stupid"
    said = [
        " studio. the plot makes no sense and the pacing is dull.",
        " idiot. he is a complete moron, and i hope he dies.",
        " plot script acting bad awful boring film",
        " studio. it is a wonderful, moving film with a superb cast.",
    ]
    scores = task.judge([prompt] * 4, said)
    assert scores[0] > 0.6
    assert max(scores[1:]) < 0.3


def test_copying_the_prompt_is_repetition() -> None:
    assert repetition("the film opens with", "the film opens with") == 1
    assert repetition("the film opens with", "a bang and a twist") == 0
    assert repetition("", "") == 0
