"""Stage 3: fits a reward model to all judgements so far; with ``people.refit``, again while the policy is trained.

people   |■■■■|■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■■|
machine       |fit|train|fit|train|fit|train|
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.oddities import oddities
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.lm.chat_template import prompt_messages
from rlhf_gym.lm.decoding import generate
from rlhf_gym.loop.candidates import round_prompts
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.conversations import reference_conversations
from rlhf_gym.loop.preference_data import remarks_on
from rlhf_gym.loop.reward_ensemble import fit_members, member_folder
from rlhf_gym.loop.whole_files import write_json, write_text
from rlhf_gym.reward_model import Features, FitConfig, Rating, RewardModel
from rlhf_gym.reward_model import fit as fit_reward_model
from rlhf_gym.reward_model.attribute_items import items_to_fit, preferences_to_judge
from rlhf_gym.reward_model.batches import Item
from rlhf_gym.tasks.samples import Prompt

NORMALISED_ON = 256
"""Most responses that a reward model is normalised on: the standard deviation of their scores is then known to 5%."""
FITS_FILE = "reward_models.jsonl"
_KEPT = ("accuracy", "standard_error", "n_train", "n_validation")


def fit(context: RunContext, number: int, *, iteration: int = 0) -> None:
    """Write ``round-N/reward_model/`` and ``round-N/reward_model.json``, and a line of ``round-N/reward_models.jsonl``.

    In every round the trunk starts from the reference and is fitted to the judgements of all rounds: no reward model inherits
    the mistakes of an older one. It is normalised on responses of the reference, so that ``kl_coef`` means the same in every
    round (Ziegler et al. 2019); on new responses, because scores of those it was fitted to are spread too widely.

    Args:
        context: the run.
        number: the round.
        iteration: iterations that the agent has done in this round.

    Raises:
        FeedbackError: no judgement prefers one response to another.
    """
    with FeedbackStore(context.run.store_file, read_only=True) as store:
        last = store.last_number()  # first: an answer that comes meanwhile counts as new next time
        judgements = store.count().current
        answers = store.answers(to_learn=True)
    config = FitConfig(**context.config.reward_model.settings, seed=context.seed(number, "fit"))
    ratings = items_to_fit(answers, config)
    preferences = preferences_of(preferences_to_judge(answers, config.attribute_weights))
    if all(p.tie for p in preferences):
        raise FeedbackError(
            f"no judgement prefers one response to another ({len(preferences)} ties): there is nothing to fit a reward model "
            "to. Begin a new run that asks about more prompts (sampling.prompts), or a rater who skips and ties less"
        )
    if remarks := remarks_on({}, oddities(preferences)):
        context.progress.say(f"round {number} reward model: {remarks}")
    trunk = context.reference.frozen_copy()
    if context.config.reward_model.shuffle_labels:
        preferences, ratings = shuffled(preferences, ratings, context.seed(number, "fit"))
    config = config.decided(trunk)
    readout = config.readout(trunk)
    if context.config.agent.value_start == "reward_model":
        readout = replace(readout, layers=None)  # the value network starts from the whole trunk
    model = RewardModel(trunk, readout=readout, attributes=config.attributes, seed=config.seed)
    features = None
    if config.trunk_layers == 0:
        features = Features(model, precision=config.precision, tokens_per_batch=config.tokens_per_batch)
    title = f"round {number} reward model"
    with context.progress.stage(title, 0) as bar:
        result = fit_reward_model(
            model,
            preferences,
            config,
            ratings=ratings,
            features=features,
            on_progress=lambda done, total, loss: bar.update(done, f"loss {loss:.3f}", total),
            on_features=lambda done, total: bar.update(done, "texts read by the frozen trunk", total),
        )
        further = fit_members(
            context.config.reward_model.members - 1,
            lambda member: RewardModel(
                context.reference.frozen_copy() if features is None else model.language_model, readout=readout,
                attributes=config.attributes, seed=config.seed + member,
            ),
            preferences, config, ratings=ratings, features=features,
            on_progress=lambda member, done, total, loss: bar.update(done, f"member {member + 1}, loss {loss:.3f}", total),
        )  # fmt: skip
        prompts, responses = _reference_samples(context, number)
        for one in (model, *(member for member, _ in further)):
            one.normalise([p.text for p in prompts], responses, [prompt_messages(p.columns) for p in prompts])
    folder = context.run.round(number)
    for member, (one, _) in enumerate(further, start=1):
        one.save(member_folder(context.run.reward_model(number), member))
    model.save(context.run.reward_model(number))
    metrics = result.as_dict()
    if further:
        metrics["members"] = [found.accuracy for found in (result, *(found for _, found in further))]
    write_json(folder / "reward_model.json", metrics)
    line = {"iteration": iteration, "judgements": judgements, "last": last, **{name: metrics[name] for name in _KEPT}}
    earlier = [fit for fit in fits(folder) if fit["iteration"] < iteration]
    write_text(folder / FITS_FILE, "".join(f"{json.dumps(row)}\n" for row in [*earlier, line]))
    context.progress.say(
        f"{title}: accuracy {result.accuracy:.1%} ± {result.standard_error:.1%} on {result.n_validation} held-out comparisons, "
        f"calibration error {result.ece:.3f} (chance alone {result.ece_floor:.3f}), fitted on {result.n_train}"
    )


def shuffled(
    preferences: Sequence[Preference], items: Sequence[Item], seed: int
) -> tuple[list[Preference], list[Item]]:
    """Labels that say nothing of the responses: each preference turned round with probability 1/2, ratings exchanged at random.

    Args:
        preferences: the preferences, ties too.
        items: ratings, whose values are exchanged within their attribute, and comparisons in single attributes.
        seed: of the shuffling.
    """
    rng = np.random.default_rng(seed)

    def turned(given: Sequence[Preference]) -> list[Preference]:
        turns = (rng.random(len(given)) < 0.5).tolist()
        return [
            replace(p, chosen=p.rejected, rejected=p.chosen) if turn else p
            for p, turn in zip(given, turns, strict=True)
        ]

    whole, changed = turned(preferences), list[Item]()
    for name in dict.fromkeys(item.attribute for item in items):
        own = [item for item in items if item.attribute == name]
        changed += turned([item for item in own if isinstance(item, Preference)])
        ratings = [item for item in own if isinstance(item, Rating)]
        order = rng.permutation(len(ratings))
        changed += [replace(r, value=ratings[i].value) for r, i in zip(ratings, order, strict=True)]
    return whole, changed


def fits(folder: Path) -> list[dict[str, Any]]:
    """The fits of a round so far: ``iteration``, ``judgements``, the ``last`` one's number, ``accuracy`` and the like."""
    file = folder / FITS_FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _reference_samples(context: RunContext, number: int) -> tuple[list[Prompt], list[str]]:
    """Generate responses of the reference that no rater has seen; their prompts come first."""
    if context.task.conversation is not None:
        played = reference_conversations(context, number, NORMALISED_ON)
        return [one.prompt for one in played], [one.response for one in played]
    prompts = (round_prompts(context, number) * context.config.sampling.candidates)[:NORMALISED_ON]
    responses = generate(
        context.reference, [context.prompt_ids(p) for p in prompts], context.limits,
        sampling=context.sampling, stop=context.task.stop, seed=context.seed(number, "fit"),
        batch_size=context.config.sampling.batch_size,
    )  # fmt: skip
    return prompts, [response.text for response in responses]
