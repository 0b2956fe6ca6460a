"""Stage 3: fits a reward model to all judgements so far, and again during training while people go on answering.

people   |■■■■|■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■|
machine       |fit|train|fit|train|fit|train|
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.preferences import preferences_of
from rlhf_gym.lm.decoding import generate
from rlhf_gym.loop.candidates import round_prompts
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.run_directory import write_json, write_text
from rlhf_gym.reward_model import FitConfig, RewardModel
from rlhf_gym.reward_model import fit as fit_reward_model
from rlhf_gym.study.checks import expected

NORMALISED_ON = 256
"""At most so many responses: the standard deviation of scores is then known to 5%."""


FITS_FILE = "reward_models.jsonl"
_KEPT = ("accuracy", "standard_error", "n_train", "n_validation")


def fit(context: RunContext, number: int, *, iteration: int = 0) -> None:
    """Write ``round-N/reward_model/`` and ``round-N/reward_model.json``, and a line of ``round-N/reward_models.jsonl``.

    The trunk begins as the reference in every round, and judgements of all rounds count: a reward model is never fitted on
    top of an older one's mistakes. It is normalised on responses of the reference, so that ``kl_coef`` means the same in
    every round (Ziegler et al. 2019); on new ones, since the scores of those it was fitted to are spread too widely.

    Args:
        context: the run's means.
        number: the round.
        iteration: number of iterations that the agent has done in this round.

    Raises:
        FeedbackError: no judgement says that one response is better than another.
    """
    with FeedbackStore(context.run.store_file, read_only=True) as store:
        judgements = store.count().current  # first: of what comes meanwhile nothing is missed
        # What people said of queries whose answer is known tells of people; the taste to be learned is not in it.
        answers = [answer for answer in store.answers() if expected(answer[0].columns) is None]
    preferences = preferences_of(answers)
    if all(p.tie for p in preferences):
        raise FeedbackError(
            f"no judgement prefers one response to another ({len(preferences)} ties): there is nothing to fit a reward model "
            "to. Ask about more prompts (sampling.prompts), or ask a rater who skips and ties less"
        )
    config = FitConfig(**context.config.reward_model.settings, seed=context.seed(number, "fit"))
    model = RewardModel(context.reference.frozen_copy(), seed=config.seed)
    title = f"round {number} reward model"
    with context.progress.stage(title, 0) as bar:
        result = fit_reward_model(
            model,
            preferences,
            config,
            on_progress=lambda done, total, loss: bar.update(done, f"loss {loss:.3f}", total),
        )
        model.normalise(*_reference_samples(context, number))
    folder = context.run.round(number)
    model.save(folder / "reward_model")
    metrics = result.as_dict()
    write_json(folder / "reward_model.json", metrics)
    line = {"iteration": iteration, "judgements": judgements, **{name: metrics[name] for name in _KEPT}}
    earlier = [fit for fit in fits(folder) if fit["iteration"] < iteration]
    write_text(folder / FITS_FILE, "".join(f"{json.dumps(row)}\n" for row in [*earlier, line]))
    context.progress.say(
        f"{title}: accuracy {result.accuracy:.1%} ± {result.standard_error:.1%} on {result.n_validation} held-out comparisons, "
        f"calibration error {result.ece:.3f}, fitted on {result.n_train}"
    )


def fits(folder: Path) -> list[dict[str, Any]]:
    """The reward models that a round has had so far: ``iteration``, ``judgements``, and how good each is."""
    file = folder / FITS_FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _reference_samples(context: RunContext, number: int) -> tuple[list[str], list[str]]:
    """Prompts, and responses of the reference to them that no rater has seen."""
    prompts = [p.text for p in round_prompts(context, number) * context.config.sampling.candidates][:NORMALISED_ON]
    responses = generate(
        context.reference, [context.reference.tokenizer.encode_prompt(p) for p in prompts], context.limits,
        sampling=context.sampling, stop=context.task.stop, seed=context.seed(number, "fit"),
        batch_size=context.config.sampling.batch_size,
    )  # fmt: skip
    return prompts, [response.text for response in responses]
