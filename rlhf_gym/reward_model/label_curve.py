"""How accuracy grows with labels, and how many more would raise it by a point: a learning curve and its extrapolation.

A linear head on a frozen trunk's features is fitted to growing parts of the labels and judged on prompts that were held out.
``accuracy(n) = c - b n^-a`` is fitted to that (Cortes et al. 1993; Hestness et al. 2017, for errors of trained models).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.reward_model.batches import first_turn
from rlhf_gym.reward_model.head_ensemble import fit_head

Array = NDArray[np.float64]

SPLITS = 12
HELD_OUT = 0.25
PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Parts of a split's prompts that heads are fitted to."""
FEWEST_PROMPTS = 40
EXPONENTS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Values of ``a`` that are tried; power laws of learning curves have exponents within these."""
FARTHEST = 10.0
"""An extrapolation beyond this many times the labels is not a number that data supports: it is said to be beyond."""
_RESAMPLES = 400


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with some labels.

    Attributes:
        n: labels (comparisons) fitted to, a mean over splits.
        accuracy: on prompts that were held out, a mean over splits.
        low: of its 95% interval.
        high: likewise.
    """

    n: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelCurve:
    """The learning curve, and what it says of more labels.

    Attributes:
        points: accuracy by number of labels, ascending.
        n_labels: all comparisons there are.
        n_prompts: prompts they are about.
        accuracy: the fitted accuracy with all of them.
        more: further comparisons that raise it by one point of accuracy (0.01); infinite where the fitted curve reaches that
            with :data:`FARTHEST` times the labels or never.
        more_low: of its 95% interval.
        more_high: likewise; infinite where the data does not bound it.
        beyond: share of resamples in which it is infinite.
        per_answer: comparisons that an answer gave.
    """

    points: list[CurvePoint]
    n_labels: int
    n_prompts: int
    accuracy: float
    more: float
    more_low: float
    more_high: float
    beyond: float
    per_answer: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in which infinite is None."""
        values = {**asdict(self), "verdict": self.verdict()}
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}

    def verdict(self) -> str:
        """What it says of more labels, in a sentence."""
        found, low, high = (self.in_answers(n) for n in (self.more, self.more_low, self.more_high))
        most = f"{FARTHEST:g} times as many labels as there are"
        if math.isinf(self.more_low):
            return f"one more point of accuracy takes more than {most}, if labels give it at all"
        if math.isinf(self.more):
            return (
                f"one more point of accuracy takes more than {most} by the fitted curve; the data also allows {low:,.0f} more "
                "answers"
            )
        bound = "no bound" if math.isinf(self.more_high) else f"{high:,.0f}"
        return (
            f"one more point of accuracy takes about {found:,.0f} more answers (95% interval {low:,.0f} to {bound}; beyond "
            f"{most}, or never, in {self.beyond:.0%} of resamples)"
        )

    def in_answers(self, comparisons: float) -> float:
        """A number of comparisons as a number of answers, at least 1."""
        return max(1.0, comparisons / self.per_answer)

    def as_text(self) -> str:
        """The curve as plain text."""
        lines = ["accuracy of a head on the frozen trunk, by labels (comparisons) fitted to:"]
        lines += [f"  {p.n:>8,.0f}   {p.accuracy:.1%}  [{p.low:.1%}, {p.high:.1%}]" for p in self.points]
        return "\n".join([*lines, self.verdict()])


def label_curve(
    preferences: Sequence[Preference],
    features: Callable[[Sequence[tuple[str, str]]], Tensor],
    *,
    n_answers: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> LabelCurve:
    """Measure accuracy by number of labels, and extrapolate it.

    Each of :data:`SPLITS` splits by prompt holds a quarter of the prompts out, and fits a head to growing parts of the others,
    each part within the next. Intervals are from resampling both splits and prompts, so that the choice of the parts and that
    of the prompts which judge count; the same resample serves all parts, so that their differences are known better than their
    heights. On simulated comparisons they are too wide rather than too narrow.

    Args:
        preferences: comparisons; ties teach, and do not judge.
        features: gives float ``[S, D]`` for ``S`` texts (prompt, response); of standard deviation about 1.
        n_answers: answers that the comparisons come from; None takes one each.
        seed: of splits and resamples.
        on_progress: called with the heads fitted and all.

    Raises:
        FeedbackError: too few prompts.
    """
    prompts = sorted({first_turn(p.prompt) for p in preferences})
    if len(prompts) < FEWEST_PROMPTS:
        raise FeedbackError(
            f"a learning curve over labels needs comparisons on at least {FEWEST_PROMPTS} prompts, got {len(prompts)}"
        )
    sides = ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    chosen, rejected = (features(side).double().cpu() for side in sides)
    difference, tie = chosen - rejected, torch.tensor([p.tie for p in preferences])
    place = {prompt: i for i, prompt in enumerate(prompts)}
    prompt_of = np.array([place[first_turn(p.prompt)] for p in preferences])
    rng = np.random.default_rng(seed)
    held = round(HELD_OUT * len(prompts))
    # right[s, k, i]: comparisons about prompt i that head k of split s gets right; counted[s, i]: those that it is asked.
    right = np.zeros((SPLITS, len(PARTS), len(prompts)))
    counted, sizes = np.zeros((SPLITS, len(prompts))), np.zeros((SPLITS, len(PARTS)))
    for split in range(SPLITS):
        order = rng.permutation(len(prompts))
        test = np.isin(prompt_of, order[:held]) & ~tie.numpy()
        counted[split] = np.bincount(prompt_of[test], minlength=len(prompts))
        for k, part in enumerate(PARTS):
            learned = np.isin(prompt_of, order[held : held + max(2, round(part * (len(prompts) - held)))])
            head = fit_head(difference[learned], tie[learned])
            gap = (difference[test] @ head).numpy()
            right[split, k] = np.bincount(prompt_of[test], (gap > 0) + 0.5 * (gap == 0), minlength=len(prompts))
            sizes[split, k] = learned.sum()
            if on_progress:
                on_progress(split * len(PARTS) + k + 1, SPLITS * len(PARTS))
    if counted.sum() == 0:
        raise FeedbackError("all comparisons are ties: nothing says how accurate a reward model is")

    n, now = sizes.mean(axis=0), float(len(preferences))
    accuracy = _accuracy(right, counted, np.ones(SPLITS), np.ones(len(prompts)))
    draws = np.zeros((_RESAMPLES, len(PARTS)))
    for row in range(_RESAMPLES):
        of_split = np.bincount(rng.integers(SPLITS, size=SPLITS), minlength=SPLITS)
        of_prompt = np.bincount(rng.integers(len(prompts), size=len(prompts)), minlength=len(prompts))
        draws[row] = _accuracy(right, counted, of_split, of_prompt)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    needed = np.sort([_more(n, draw, now)[1] for draw in draws])
    reached, more = _more(n, accuracy, now)
    return LabelCurve(
        points=[CurvePoint(*map(float, row)) for row in zip(n, accuracy, low, high, strict=True)],
        n_labels=len(preferences), n_prompts=len(prompts), accuracy=reached, more=more,
        more_low=float(needed[int(0.025 * _RESAMPLES)]), more_high=float(needed[int(0.975 * _RESAMPLES)]),
        beyond=float(np.isinf(needed).mean()), per_answer=len(preferences) / (n_answers or len(preferences)),
    )  # fmt: skip


def _accuracy(right: Array, counted: Array, of_split: NDArray[Any], of_prompt: NDArray[Any]) -> Array:
    """The accuracy of each part ``[K]``, with splits and prompts weighted."""
    weight = of_split[:, None] * of_prompt[None, :]
    return np.asarray((right * weight[:, None, :]).sum(axis=(0, 2)) / max(float((counted * weight).sum()), 1e-9))


def _more(n: Array, accuracy: Array, now: float) -> tuple[float, float]:
    """The fitted accuracy with ``now`` labels, and how many more raise it by a point.

    Args:
        n: ``[K]``, numbers of labels.
        accuracy: ``[K]``.
        now: number of labels there are.
    """
    best: tuple[float, float, float, float] | None = None
    for a in EXPONENTS:
        x = n**-a
        slope = float(((x - x.mean()) * (accuracy - accuracy.mean())).sum() / ((x - x.mean()) ** 2).sum())
        b = max(-slope, 0.0)
        c = min(float(accuracy.mean() + b * x.mean()), 1.0)
        error = float(((c - b * x - accuracy) ** 2).sum())
        if best is None or error < best[0] - 1e-12:
            best = (error, a, b, c)
    assert best is not None
    _, a, b, c = best
    reached = c - b * now**-a
    gap = c - reached - 0.01  # what is left to learn beyond one more point
    if b <= 0 or gap <= 0:
        return reached, math.inf
    needed = (b / gap) ** (1 / a)
    return reached, needed - now if needed <= FARTHEST * now else math.inf
