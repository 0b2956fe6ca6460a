"""Reads requests: the person, the session and the form, for every route."""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request
from starlette.exceptions import HTTPException

from rlhf_gym.study.people import Person
from rlhf_gym.web.security import csrf_matches
from rlhf_gym.web.study import Study


class SignInError(Exception):
    """Nobody is signed in."""


def known(study: Study, request: Request) -> Person | None:
    """The person who is signed in; None if nobody is.

    Args:
        study: the study.
        request: the request.
    """
    session = request.cookies.get(study.cookie, "")
    return study.people.person_of(session) if session else None


def signed_in(study: Study, request: Request) -> tuple[Person, str]:
    """The person who is signed in, and the session.

    Args:
        study: the study.
        request: the request.

    Raises:
        SignInError: nobody that the study knows.
    """
    person = known(study, request)
    if person is None:
        raise SignInError
    return person, request.cookies[study.cookie]


async def form_of(request: Request) -> dict[str, str]:
    """A posted form's fields; of fields given twice the last.

    Raises:
        HTTPException: the body is not a form.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "expected a form (application/x-www-form-urlencoded)")
    try:
        text = (await request.body()).decode("utf-8")
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=500, errors="strict"))
    except ValueError as error:
        raise HTTPException(400, f"the form cannot be read: {error}") from error


def checked(session: str, fields: dict[str, str]) -> None:
    """Refuse a form that does not carry its session's token.

    Args:
        session: the session's token.
        fields: the form's fields.

    Raises:
        HTTPException: the token is missing or another session's.
    """
    if not csrf_matches(session, fields.get("csrf", "")):
        raise HTTPException(403, "this form is out of date; load the page again, nothing is lost")


def wants_json(request: Request) -> bool:
    """True if the page's script asks, and not a browser."""
    return "application/json" in request.headers.get("accept", "")
