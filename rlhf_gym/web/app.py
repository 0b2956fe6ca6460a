"""The web application: routes and who may use them. `study` renders the pages, `answers` reads the forms."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException

from rlhf_gym.errors import FeedbackError
from rlhf_gym.web.admin import admin_routes
from rlhf_gym.web.markup import coded
from rlhf_gym.web.rating import rating_routes
from rlhf_gym.web.replies import (
    CONFLICT,
    ELSEWHERE,
    EVERYWHERE,
    MISSING,
    POSTED,
    SIGNED_IN,
    STATIC_FILE,
    TEXT,
    PageApp,
    choice,
    form,
)
from rlhf_gym.web.requests import SignInError, checked, form_of, known, signed_in, wants_json
from rlhf_gym.web.security import Guard
from rlhf_gym.web.study import STATIC, Study, static

MONTH = 30 * 24 * 3600
SAME_SITE: Literal["lax"] = "lax"
"""Not strict: a link that is clicked in a web mailer or a chat must know who is signed in. What changes something is a post:
from another site, browsers send no such cookie with it, the guard refuses it, and so does the form's token."""
ANOTHER = "another"
"""The field by which somebody who is signed in takes another name."""
ROLES = {"rater": "a rater", "admin": "an administrator"}
TROUBLE = (
    "The study's database cannot store answers at the moment; the server's log says why. Everything that was stored before is "
    "still there. What you just sent is not stored yet: wait a little, then go back and send it again. It will be stored once."
)
"""The message while the database is down, full or locked. Visitors do not see the database's place and its own message."""
NOWHERE = "There is no such page here."
_RETRY_AFTER = 2  # seconds
_LOG_EVERY = 10.0  # seconds between two lines: many raters try again and again
_log = logging.getLogger(__name__)


def create_app(study: Study, *, hosts: Collection[str] = ()) -> Guard:
    """The application for a study.

    Args:
        study: the store and how it is shown.
        hosts: names that the page is served under (see :class:`~rlhf_gym.web.security.Guard`).

    Returns:
        An ASGI application. Its ``app`` is the FastAPI application inside.
    """
    # No /docs: its page loads scripts from elsewhere. The schema stays in the program, for tests.
    app = PageApp(
        title="rlhf-gym rating page", docs_url=None, redoc_url=None, openapi_url=None, responses=EVERYWHERE
    )  # fmt: skip
    app.state.study = study
    _add_errors(app, study)
    _add_doors(app, study)
    app.include_router(rating_routes(study))
    app.include_router(admin_routes(study))
    return Guard(app, hosts=hosts, cookie=study.cookie)


def _add_errors(app: FastAPI, study: Study) -> None:
    @app.exception_handler(SignInError)
    def sign_in(request: Request, _error: Exception) -> Response:
        if wants_json(request):
            return JSONResponse({"error": "sign in"}, 401)
        words = "This is a rating page for invited people. Open the link that you were sent; it signs you in."
        page = study.message("You need an invitation", [words])
        return HTMLResponse(page, 401)

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        words = NOWHERE if error.detail == "Not Found" else str(error.detail)  # a path that no route has
        return _refusal(study, request, error.status_code, words, error.headers)

    @app.exception_handler(RequestValidationError)
    def nowhere(request: Request, _error: Exception) -> Response:
        return _refusal(study, request, 404, NOWHERE)  # FastAPI's own reply would show the program's parameters

    told = [-_LOG_EVERY]

    @app.exception_handler(FeedbackError)
    def wrong(request: Request, error: FeedbackError) -> Response:
        if error.__cause__ is None:
            return _refusal(study, request, 409, str(error))
        # The page's script keeps the answer and tries again; the error names files, hosts and users.
        if time.monotonic() - told[0] >= _LOG_EVERY:
            told[0] = time.monotonic()
            _log.error("%s", error)
        return _refusal(study, request, 503, TROUBLE, {"retry-after": str(_RETRY_AFTER)})

    @app.exception_handler(Exception)
    def broken(request: Request, _error: Exception) -> Response:
        # The server logs the error itself.
        return _refusal(
            study,
            request,
            500,
            "An error occurred in the server. The server's log says which; tell whoever runs the study.",
        )


def _refusal(
    study: Study, request: Request, status: int, words: str, headers: Mapping[str, str] | None = None
) -> Response:
    words, kept = coded(words), dict(headers or {})
    if wants_json(request):
        return PlainTextResponse(words, status, kept)
    page = study.message("That did not work", [words], link=("/", "Go on"))
    return HTMLResponse(page, status, kept)


def _add_doors(app: FastAPI, study: Study) -> None:
    """Add the routes to sign in by an invitation and to sign out, and the public ones."""

    # These two wait for no thread: they answer, too, while every thread waits for the database.
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok"

    @app.get("/static/{name}", response_class=Response, responses={**STATIC_FILE, **MISSING})
    async def file(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Response(static(name), media_type=STATIC[name], headers=headers)

    @app.get("/join/{token}", response_class=HTMLResponse)
    def invited(request: Request, token: str) -> str:
        person = known(study, request)
        if person is not None:
            # Whoever opens the link in their mail once more must not become a second rater, nor read that it is used.
            words = [f"You take part already, as {person.name}, and are still signed in."]
            invitation = study.people.invitation_of(token)
            another = None
            if invitation is not None and invitation.open:
                button = "Begin as somebody else"
                if invitation.role != person.role:
                    role = ROLES[invitation.role]
                    words.append(f"This link is for {role}. It signs you in anew, under another name.")
                    button = f"Begin as {role}"
                fields = [("token", token), (ANOTHER, "yes")]
                another = {"action": "/join", "fields": fields, "button": button, "css": "quiet"}
            return study.message(study.settings.title, words, link=("/", "Go on"), form=another)
        # Not yet used up: chat programs open links to preview them.
        return study.message(
            study.settings.title,
            [
                "You are invited to compare texts that language models wrote. Your answers train a model.",
                "You take part under a made-up name. Stored with each answer are that name, the time it took and the order "
                "in which the responses were shown; a cookie keeps you signed in, and nothing else is recorded.",
            ],
            form={"action": "/join", "fields": [("token", token)], "button": "Begin"}, guidelines=True,
        )  # fmt: skip

    @app.post(
        "/join", response_class=RedirectResponse, status_code=303, openapi_extra=form(token=TEXT, another=choice("", "yes")),
        responses={**ELSEWHERE, **POSTED, **CONFLICT},
    )  # fmt: skip
    async def join(request: Request) -> Response:
        fields = await form_of(request)
        reply = RedirectResponse("/", 303)

        def work() -> str | None:
            """The session of a new person; None for somebody who is signed in and asks for no other name."""
            person = known(study, request)
            if person is not None and fields.get(ANOTHER) != "yes":
                return None  # the link was open in two windows, and was used in the other one
            _, session = study.people.accept(fields.get("token", ""))
            if person is not None:  # nobody has that cookie any more
                study.queue.release(person.name)
                study.people.sign_out(request.cookies[study.cookie])
            return session

        session = await study.working(work)
        if session is not None:
            secure = request.url.scheme == "https"
            reply.set_cookie(study.cookie, session, max_age=MONTH, httponly=True, samesite=SAME_SITE, secure=secure)
        return reply

    @app.get("/", response_class=RedirectResponse, status_code=303, responses={**ELSEWHERE, **SIGNED_IN})
    def home(request: Request) -> Response:
        person, _ = signed_in(study, request)
        return RedirectResponse("/admin" if person.role == "admin" else "/rate", 303)

    @app.get("/guidelines", response_class=HTMLResponse, responses=SIGNED_IN)
    def guidelines(request: Request) -> str:
        signed_in(study, request)
        return study.message("Guidelines", [], guidelines=True, link=("/rate", "Go on rating"))

    @app.post("/leave", response_class=HTMLResponse, openapi_extra=form(), responses={**SIGNED_IN, **POSTED})
    async def leave(request: Request) -> Response:
        fields = await form_of(request)

        def work() -> None:
            person, session = signed_in(study, request)
            checked(session, fields)
            study.queue.release(person.name)
            study.people.sign_out(session)

        await study.working(work)
        words = "You are signed out, and all your answers are stored. To take part again you need a new link."
        reply = HTMLResponse(study.message("Thank you", [words]))
        secure = request.url.scheme == "https"
        reply.delete_cookie(study.cookie, httponly=True, samesite=SAME_SITE, secure=secure)
        return reply
