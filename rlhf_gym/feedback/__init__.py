"""Feedback: queries, judgements, the store that keeps them, and the preferences that follow from them."""

from rlhf_gym.feedback.preferences import (
    Demonstration,
    Preference,
    demonstration_from,
    preferences_from,
    preferences_of,
)
from rlhf_gym.feedback.queries import Judgement, Query, QueryType, check_judgement
from rlhf_gym.feedback.store import FeedbackStore, StoreCount

__all__ = [
    "Demonstration",
    "FeedbackStore",
    "Judgement",
    "Preference",
    "Query",
    "QueryType",
    "StoreCount",
    "check_judgement",
    "demonstration_from",
    "preferences_from",
    "preferences_of",
]
