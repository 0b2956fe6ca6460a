"""The rater's interface: two calls that a function, a language model and a person can all answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rlhf_gym.errors import FeedbackError, RlhfGymError
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.objects import place_in_code


@dataclass(frozen=True)
class Ticket:
    """The claim on one answer.

    Attributes:
        query_id: the query that was submitted.
        rater: name of the rater that is to answer it; a member, ``rater/member``, may answer, too.
        number: tells tickets apart where several of those are to answer the same query; from 0.
    """

    query_id: str
    rater: str
    number: int = 0


class RaterError(FeedbackError):
    """A rater that could not go on.

    Attributes:
        judgements: those made before the error, which were not returned; store them.

    Args:
        message: says what happened and what to do.
        judgements: as in the attribute; ``()`` if there are none.
    """

    def __init__(self, message: str, judgements: Sequence[Judgement] = ()) -> None:
        super().__init__(message)
        self.judgements = list(judgements)


class RaterStoppedError(RaterError):
    """The rater chose to stop for now; the rest can be answered later."""


@runtime_checkable
class Rater(Protocol):
    """Answers queries: a person or a program.

    Attributes:
        name: signs the judgements. A rater who is many (a pool, a web page) signs them ``name/member``.
    """

    @property
    def name(self) -> str:
        """Signs the judgements."""
        ...

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Take queries. Submitting a query again is harmless.

        Returns:
            One ticket for each answer to come: at least one a query, in the order of the queries.
        """
        ...

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """Wait for answers.

        Args:
            tickets: from :meth:`submit`, in any number of calls.
            timeout: None waits until every ticket is answered. Otherwise wait about so many seconds, in which a rater
                that answers at all answers at least one batch, and return what is there; call again with the tickets
                that are still open.

        Returns:
            The answers, a correction after what it corrects. A judgement may be returned more than once: stores know
            it by its id.

        Raises:
            RaterError: the rater cannot go on; ``judgements`` holds what would have been returned.
        """
        ...


@contextmanager
def explained(rater: Rater) -> Iterator[None]:
    """Turn what a user's own rater raises into a :class:`RaterError`.

    This package's errors pass as they are, and so does whatever its own raters raise: that is a bug, which needs its traceback.

    Raises:
        RaterError: the rater raised something else; the message names the rater, the error and the line of the user's code.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # the rater is the user's: it may raise anything
        if isinstance(error, RlhfGymError) or type(rater).__module__.startswith("rlhf_gym."):
            raise
        raise RaterError(
            f"rater {rater.name!r} raised {type(error).__name__}: {error}{place_in_code(error)}"
        ) from error
