"""What is said of each attribute, for a reward model with a head for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.attributes import ATTRIBUTE, weighted
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.reward_model.batches import Item
from rlhf_gym.reward_model.fit_config import RATING_LOSSES, FitConfig
from rlhf_gym.reward_model.ratings import ratings_of

Answer = tuple[Query, Judgement]


def items_to_fit(answers: Iterable[Answer], config: FitConfig) -> list[Item]:
    """What a fit with these settings takes beside preferences: ratings; with ``attribute_heads`` the items of each attribute.

    Args:
        answers: judgements with their queries.
        config: settings of the fit.

    Raises:
        FeedbackError: nothing is said of an attribute, or only ties.
    """
    answers = list(answers)
    if not config.attribute_heads:
        return list(ratings_of(weighted(answers, config.attribute_weights)))
    found = list[Item]()
    for name in config.attribute_weights:
        own = of_attribute(answers, name)
        items: list[Item] = [*ratings_of(own)] if config.loss in RATING_LOSSES else [*preferences_of(own)]
        if not items or all(isinstance(item, Preference) and item.tie for item in items):
            said = "comparisons, all of them ties" if items else f"judgements that the loss {config.loss} learns from"
            raise FeedbackError(
                f"of the attribute {name!r} (reward_model.attribute_weights) there are {len(items)} {said}: its head would "
                f"learn nothing. The data have {', '.join(_attributes(answers)) or 'no attributes'}"
            )
        found += [replace(item, attribute=name) for item in items]
    return found


def preferences_to_judge(answers: Iterable[Answer], weights: Mapping[str, float]) -> list[Answer]:
    """The answers that a weighted sum of attributes is judged by.

    These are the comparisons of responses as wholes, and ratings of all attributes as their weighted sum. Where there are
    neither, comparisons in single attributes of positive weight.

    Args:
        answers: judgements with their queries.
        weights: of the attributes; empty takes all answers as they are.

    Raises:
        FeedbackError: no rating has one of the attributes.
    """
    answers = list(answers)
    if not weights:
        return answers
    single = [answer for answer in answers if ATTRIBUTE in answer[1].details]
    whole = [answer for answer in answers if ATTRIBUTE not in answer[1].details]
    if whole:
        return weighted(whole, weights)
    return [(query, said) for query, said in single if weights.get(said.details[ATTRIBUTE], 0) > 0]


def of_attribute(answers: Iterable[Answer], name: str) -> list[Answer]:
    """The answers that say something of an attribute, without what they say of others.

    Args:
        answers: judgements with their queries.
        name: the attribute.
    """
    found = list[Answer]()
    for query, judgement in answers:
        ratings = judgement.ratings or {}
        if name in ratings:
            found.append((query, replace(judgement, ratings={name: ratings[name]})))
        elif judgement.details.get(ATTRIBUTE) == name:
            found.append((query, judgement))
    return found


def _attributes(answers: Iterable[Answer]) -> dict[str, None]:
    names = dict[str, None]()
    for _, judgement in answers:
        names |= dict.fromkeys(judgement.ratings or ())
        if ATTRIBUTE in judgement.details:
            names[str(judgement.details[ATTRIBUTE])] = None
    return names
