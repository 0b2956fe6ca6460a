"""The rater's routes: the page, an answer, the answer taken back, a text in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from markupsafe import Markup
from starlette.exceptions import HTTPException

from rlhf_gym.study.leases import Assignment
from rlhf_gym.study.people import Person
from rlhf_gym.web.answers import answer_of, in_words, seconds_of
from rlhf_gym.web.markup import coded
from rlhf_gym.web.replies import (
    ANSWERED,
    CONFLICT,
    ELSEWHERE,
    FOLLOWING,
    MISSING,
    POSTED,
    SIGNED_IN,
    TEXT,
    UNDONE,
    form,
)
from rlhf_gym.web.requests import checked, form_of, signed_in, wants_json
from rlhf_gym.web.study import Study

ANSWER = dict.fromkeys(("query_type", "answer", "reason", "edited", "reply", "seconds", "shown", "have"), TEXT)
"""The fields of an answer; a ranking has ``place-0``, ... as well, a rating ``rate-0-overall``, ..."""


def rating_routes(study: Study) -> APIRouter:
    """The routes for a study."""
    router = APIRouter()

    @router.get("/rate", response_class=HTMLResponse, responses=SIGNED_IN)
    async def rate(request: Request) -> str:
        def work() -> str:
            person, session = signed_in(study, request)
            return _break(study) if person.paused else study.rating_page(person, session)

        return await study.working(work)

    @router.get("/rate/{assignment}/text/{slot}", response_class=PlainTextResponse, responses={**SIGNED_IN, **MISSING})
    async def whole_text(request: Request, assignment: str, slot: int) -> str:
        def work() -> str:
            person, _ = signed_in(study, request)
            for found in study.queue.next(person.name, count=study.settings.held):
                if found.id == assignment and 0 <= slot < len(found.order_shown):
                    return coded(found.query.responses[found.order_shown[slot]])
            raise HTTPException(404, "this question is not open any more")

        return await study.working(work)

    @router.post(
        "/rate/{assignment}", response_class=Response, openapi_extra=form(**ANSWER),
        responses={**ANSWERED, **ELSEWHERE, **SIGNED_IN, **POSTED, **CONFLICT},
    )  # fmt: skip
    async def answer(request: Request, assignment: str) -> Response:
        fields = await form_of(request)

        def work() -> Response:
            person, session = _rater(study, request, fields)
            said = answer_of(fields, study.settings.attributes, study.settings.scale)
            ahead = study.settings.held if wants_json(request) and not person.paused else 0
            receipt, following = study.queue.exchange(
                assignment, person.name, said, seconds=seconds_of(fields), count=ahead
            )
            feedback = None
            if receipt.correct is not None:
                feedback = {"correct": receipt.correct, "explanation": coded(receipt.explanation)}
            earlier = receipt.replaced
            replaced = in_words(earlier, earlier.order_shown, fields.get("query_type", "")) if earlier else None
            if wants_json(request):
                cards = _cards(study, person, session, fields, following)
                return JSONResponse({"feedback": feedback, "replaced": replaced, **_ahead(study, person, cards)})
            if replaced:
                words = (
                    f"You had answered this question in another window ({replaced}). Your new answer replaces that one."
                )
                return HTMLResponse(study.message("Your answer is stored", [words], link=("/rate", "Go on")))
            return HTMLResponse(_told(study, feedback)) if feedback else RedirectResponse("/rate", 303)

        return await study.working(work)

    @router.post(
        "/next", response_class=Response, openapi_extra=form(have=TEXT),
        responses={**FOLLOWING, **SIGNED_IN, **POSTED},
    )  # fmt: skip
    async def following(request: Request) -> Response:
        fields = await form_of(request)

        def work() -> Response:
            person, session = _rater(study, request, fields)
            assignments = [] if person.paused else study.queue.next(person.name, count=study.settings.held)
            cards = _cards(study, person, session, fields, assignments)
            return JSONResponse({**_ahead(study, person, cards), "held": list(cards)})

        return await study.working(work)

    @router.post(
        "/undo", response_class=Response, openapi_extra=form(),
        responses={**UNDONE, **ELSEWHERE, **SIGNED_IN, **POSTED},
    )  # fmt: skip
    async def undo(request: Request) -> Response:
        fields = await form_of(request)

        def work() -> Response:
            person, session = _rater(study, request, fields)
            reopened = study.queue.undo(person.name)
            if not wants_json(request):
                return RedirectResponse("/rate", 303)
            if reopened is None:
                return JSONResponse({"reopened": None})
            card = study.cards(person.name, session, [reopened]).get(reopened.id)
            if card is None:
                return JSONResponse({"reopened": None})
            return JSONResponse({"reopened": reopened.id, "card": card, **study.progress(person)})

        return await study.working(work)

    return router


def _rater(study: Study, request: Request, fields: dict[str, str]) -> tuple[Person, str]:
    """The person who posted a form, if they may: signed in, with the session's token.

    Raters who are paused get no further question, but may finish the one that they hold.
    """
    person, session = signed_in(study, request)
    checked(session, fields)
    return person, session


def _cards(
    study: Study, person: Person, session: str, fields: dict[str, str], assignments: Sequence[Assignment]
) -> dict[str, Markup | None]:
    """The cards of questions in the rater's hands, by id; None for those that the page has."""
    return study.cards(person.name, session, assignments, have=frozenset(fields.get("have", "").split()))


def _ahead(study: Study, person: Person, cards: Mapping[str, Markup | None]) -> dict[str, Any]:
    """The cards that the page does not have yet, and the rater's progress."""
    new = [card for card in cards.values() if card is not None]
    return {"cards": new, "paused": person.paused, **study.progress(person)}


def _told(study: Study, feedback: dict[str, Any]) -> str:
    """The page after a practice answer, where no script runs."""
    words = "As expected." if feedback["correct"] else "Something else was expected."
    return study.message(words, [feedback["explanation"]], link=("/rate", "Go on"))


def _break(study: Study) -> str:
    words = "Your ratings are paused by whoever runs this study. All your answers are stored."
    return study.message("A break", [words], link=("/rate", "Look again"), refresh=60)
