"""Style on request: go on with a film review so that it reads like a rating of a given number of stars."""

from __future__ import annotations

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.review_requests import request_task


def stars_judge(prompts: list[str], responses: list[str], stars: list[int]) -> list[float]:
    """Score by the embedded judge of sentiment: a rating as :class:`Rating`'s, of text that is running English, 0 to 1.

    ``q (1 - |1 + 4 p - stars| / 4)``, with ``p`` the probability of praise and ``q`` that of English. Another class of model
    than the reward's, and one that pays nothing for a heap of words or a lone full stop.

    Args:
        prompts: the prompts.
        responses: the responses.
        stars: the column with the wanted ratings, 1 to 5.
    """
    from rlhf_gym.rewards.builtin.sentiment_judge import SentimentJudge

    praise, natural = SentimentJudge.embedded().probabilities(prompts, responses)
    return [float(q * (1 - abs(1 + 4 * p - n) / 4)) for p, q, n in zip(praise, natural, stars, strict=True)]


def stars_task(
    *,
    stars: tuple[int, ...] | list[int] = (1, 2, 3, 4, 5),
    max_new_tokens: int = 32,
    num_prompts: int | None = None,
    seed: int = 0,
) -> Task:
    """Go on in the tone of the rating that the prompt names: ``1 of 5 stars: the plot follows a young doctor``.

    Args:
        stars: the ratings that the prompts name, each 1..5.
        max_new_tokens: the length limit.
        num_prompts: number of prompts to train on; None takes all.
        seed: of the order and the ratings.

    Raises:
        TaskError: no rating, or one outside 1..5.
    """
    if not stars or any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 5 for n in stars):
        raise TaskError(f"stars must be whole numbers in 1..5, got {stars!r}")

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, int]]:
        wanted = stars[int(rng.integers(len(stars)))]
        return f"{wanted} of 5 stars: ", {"stars": wanted}

    rating = Rating()
    return request_task(
        "stars",
        draw,
        reward=rating,
        judge=stars_judge,
        metrics={"same_rating": rating.same},
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        seed=seed,
    )


class Rating:
    """The closeness of a response's tone to the wanted rating: ``1 - |rating - stars| / 4``, 0 to 1.

    The rating is ``1 + 4 * sigmoid(s)``, with ``s`` the embedded scorer's log-odds of praise: 3 for neutral text, 1.5 for plain
    panning, 4.5 for plain praise.

    Args:
        scorer: gives the log-odds; None takes the embedded scorer.
    """

    name = "rating"

    def __init__(self, scorer: SentimentScorer | None = None) -> None:
        self.scorer = scorer or SentimentScorer.embedded()

    def ratings(self, responses: list[str]) -> list[float]:
        """The rating that each response reads like, 1 to 5."""
        return [float(1 + 4 / (1 + np.exp(-s))) for s in self.scorer.score(responses)]

    def __call__(self, prompts: list[str], responses: list[str], stars: list[int]) -> list[float]:
        """Score a batch."""
        return [1 - abs(rating - n) / 4 for rating, n in zip(self.ratings(responses), stars, strict=True)]

    def same(self, prompts: list[str], responses: list[str], stars: list[int]) -> list[float]:
        """1 where the rating, rounded, is the wanted one, else 0.

        Args:
            prompts: the prompts' texts.
            responses: the responses' texts.
            stars: the column with the wanted ratings, 1 to 5.
        """
        return [float(round(rating) == n) for rating, n in zip(self.ratings(responses), stars, strict=True)]
