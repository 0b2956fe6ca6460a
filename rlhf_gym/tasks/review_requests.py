"""Beginnings of film reviews with a request before them: the prompts of the tasks on the embedded model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards.builtin.perplexity import Perplexity
from rlhf_gym.rewards.builtin.text_statistics import Repetition
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.samples import Prompt, is_held_out
from rlhf_gym.tasks.sentiment import prompt_prefixes

Draw = Callable[[np.random.Generator], tuple[str, dict[str, Any]]]
"""Draws a request and its columns."""


def request_task(
    name: str,
    draw: Draw,
    *,
    reward: Callable[..., Any],
    metrics: Mapping[str, Callable[..., Any]],
    max_new_tokens: int,
    num_prompts: int | None,
    seed: int,
    texts: Sequence[str] | None = None,
    judge: Callable[..., Any] | None = None,
) -> Task:
    """A task whose prompts are ``request + text``.

    Which texts are held out depends on nothing but themselves, and their requests are the same for every seed: metrics
    on held-out prompts can be compared.

    Args:
        name: the task's name.
        draw: draws a request, for one text after another.
        reward: the task's reward.
        metrics: reported, never optimised; ``repetition`` and ``perplexity`` are added.
        max_new_tokens: the length limit.
        num_prompts: number of texts to train on; None takes all.
        seed: of the order and of the requests that are trained on.
        texts: prompt prefixes; None takes the sentiment task's.
        judge: a second reward, for evaluation; None for none.

    Raises:
        TaskError: more prompts are requested than there are.
    """
    texts = prompt_prefixes() if texts is None else texts
    train = [text for text in texts if not is_held_out(text)]
    if num_prompts is not None and not 1 <= num_prompts <= len(train):
        raise TaskError(f"the task {name!r} has {len(train)} prompts to train on; asked for {num_prompts}")
    rng = np.random.default_rng(seed)
    chosen = [train[i] for i in rng.permutation(len(train))][:num_prompts]
    fixed = np.random.default_rng(0)
    kept = [text for text in texts if is_held_out(text)]
    kept = [kept[i] for i in fixed.permutation(len(kept))]
    return Task(
        name=name,
        prompts=[_ask(text, draw, rng) for text in chosen],
        held_out=[_ask(text, draw, fixed) for text in kept],
        reward=reward,
        max_new_tokens=max_new_tokens,
        judge=judge,
        metrics={**metrics, "repetition": Repetition(n=2), "perplexity": Perplexity()},
    )


def _ask(text: str, draw: Draw, rng: np.random.Generator) -> Prompt:
    request, columns = draw(rng)
    return Prompt(request + text, columns)
