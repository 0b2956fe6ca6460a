"""The errors that a user may cause, and that the command line prints as one message without a traceback.

Every message says what was given, what was expected and what to do.
"""

from __future__ import annotations


class RlhfGymError(Exception):
    """Base of every error that the user, not the code, can mend."""


class ConfigError(RlhfGymError):
    """A configuration key or value that does not exist, has the wrong type or contradicts another."""


class ModelError(RlhfGymError):
    """A language model, tokenizer or checkpoint that cannot be loaded or cannot do what is asked of it."""


class TaskError(RlhfGymError):
    """A task that cannot be built: no prompts, a missing column, a prompt that leaves no room for a response."""


class RewardError(RlhfGymError):
    """A reward that raised, returned the wrong number of scores, or a score that is not a finite number."""


class FeedbackError(RlhfGymError):
    """A feedback store that cannot be read or written, or a judgement that does not fit its query."""


class TrainingError(RlhfGymError):
    """Training that cannot go on: a loss or a parameter is not finite, or settings contradict one another."""


class EngineError(RlhfGymError):
    """An engine that cannot be reached, refuses, dies, or does not generate what it was told to."""


class TextsTooLong(UserWarning):
    """Some given texts exceed a model's context or a length limit, and were skipped or cut; the message counts them."""


class NotFiniteError(TrainingError):
    """Training that has diverged: a loss, a gradient or a table of a rollout is NaN or infinite."""


class TrainingStopped(UserWarning):
    """Training ended before its time, in good order; the message says why."""


class RankError(TrainingError):
    """One of several processes that learn together has ended, or does not answer."""


class WorkerError(TrainingError):
    """A worker that generates for an agent has failed, or none is left."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; empty where it has none."""
    return next(iter(str(error).splitlines()), "")
