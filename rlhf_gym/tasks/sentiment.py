"""The sentiment task: go on with the beginning of a film review so that it praises (Ziegler et al. 2019's first task).

The prompt prefixes come from a small grammar of our own: neutral, lower-case, thousands of them, with a fixed split into
prompts to train on and prompts held out.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.samples import Prompt, is_held_out

KINDS = (
    "comedy",
    "thriller",
    "drama",
    "western",
    "musical",
    "horror film",
    "romance",
    "war film",
    "mystery",
    "cartoon",
)
ROLES = ("teacher", "detective", "soldier", "doctor", "singer", "pilot", "lawyer", "thief", "student", "reporter")
STARTS = (
    "the film opens with",
    "the story begins with",
    "the plot follows",
    "this is a film about",
    "it all starts with",
)
PARTS = (
    "the script",
    "the acting",
    "the direction",
    "the ending",
    "the first half",
    "the music",
    "the dialogue",
    "the cast",
    "the camera work",
    "the second act",
)
VERBS = ("is", "seems", "turns out to be", "remains", "feels")
OPINIONS = (
    "i went to see this {} expecting",
    "watching this {}, i felt",
    "when this {} ended, i was",
    "my first thought about this {} was",
    "for a {}, this one is",
    "as a {}, it",
    "compared to any other {} this year, it",
    "i have to say that this {}",
    "the people next to me thought that this {}",
    "the trailer promised a {} that",
)


def prompt_prefixes() -> list[str]:
    """All prompt prefixes, in a fixed order; none says whether the film is good."""
    out = [f"{start} a young {role}" for start, role in product(STARTS, ROLES)]
    out += [f"{start} a {role} and a {other}" for start, role, other in product(STARTS, ROLES, ROLES) if role != other]
    out += [f"{part} of this {kind} {verb}" for part, kind, verb in product(PARTS, KINDS, VERBS)]
    out += [opinion.format(kind) for opinion, kind in product(OPINIONS, KINDS)]
    out += [f"in this {kind}, the {role} is played by" for kind, role in product(KINDS, ROLES)]
    out += [f"as the {role} in this {kind}, the lead actor" for kind, role in product(KINDS, ROLES)]
    return out


def sentiment_judge(prompts: list[str], responses: list[str]) -> list[float]:
    """Score by the embedded judge, which is read with the first call; at the top, so that tasks can be pickled.

    Args:
        prompts: the prompts.
        responses: the responses.
    """
    from rlhf_gym.rewards.builtin.sentiment_judge import SentimentJudge

    return SentimentJudge.embedded()(prompts, responses)


def sentiment_task(
    *,
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    num_prompts: int | None = None,
    reward: Callable[..., Any] | None = None,
    seed: int = 0,
) -> Task:
    """Go on with the beginning of a film review so that it praises.

    Args:
        max_new_tokens: the length limit.
        min_new_tokens: EOS is not allowed before this many tokens.
        num_prompts: number of prompt prefixes to train on; None takes all (some 1,100).
        reward: replaces the embedded sentiment scorer's log-odds.
        seed: seed of the order.

    Raises:
        TaskError: more prompts are requested than there are.
    """
    from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer

    texts = prompt_prefixes()
    order = np.random.default_rng(seed).permutation(len(texts))
    train = [Prompt(texts[i]) for i in order if not is_held_out(texts[i])]
    held_out = [Prompt(texts[i]) for i in order if is_held_out(texts[i])]
    if num_prompts is not None:
        if not 1 <= num_prompts <= len(train):
            raise TaskError(f"the sentiment task has {len(train)} prompts to train on; asked for {num_prompts}")
        train = train[:num_prompts]
    return Task(
        name="sentiment",
        prompts=train,
        held_out=held_out,
        reward=SentimentScorer.embedded() if reward is None else reward,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        judge=sentiment_judge if reward is None else None,
    )
