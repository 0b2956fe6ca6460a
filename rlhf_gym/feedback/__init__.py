"""Feedback: queries, judgements, the store that keeps them, and the preferences they amount to."""

from rlhf_gym.feedback.preferences import (
    Demonstration,
    Ordering,
    Preference,
    demonstration_from,
    ordering_from,
    preferences_from,
)
from rlhf_gym.feedback.queries import Judgement, Query, QueryType, check_judgement
from rlhf_gym.feedback.store import FeedbackStore, StoreCount

__all__ = [
    "Demonstration",
    "FeedbackStore",
    "Judgement",
    "Ordering",
    "Preference",
    "Query",
    "QueryType",
    "StoreCount",
    "check_judgement",
    "demonstration_from",
    "ordering_from",
    "preferences_from",
]
