"""The administrator's routes: people and links, progress, quality, the browser of answers, the export."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback.exchange.files import export_feedback
from rlhf_gym.feedback.exchange.formats import WRITTEN
from rlhf_gym.study.audit import record
from rlhf_gym.study.people import Person
from rlhf_gym.web.browse import FILTERS, browse
from rlhf_gym.web.overview import overview
from rlhf_gym.web.replies import ADMIN, CONFLICT, ELSEWHERE, EXPORTED, MISSING, POSTED, TEXT, choice, form, query
from rlhf_gym.web.requests import checked, form_of, signed_in
from rlhf_gym.web.security import csrf_token
from rlhf_gym.web.study import Study

Action = Callable[[Person, str, dict[str, str], Request], str | None]
"""The action of a button, given the person, the session, the form and the request; a page to show instead of the usual one."""


def admin_routes(study: Study) -> APIRouter:
    """The routes for a study."""
    router = APIRouter()

    @router.get("/admin", response_class=HTMLResponse, responses=ADMIN)
    def admin(request: Request) -> str:
        person, session = _admin(study, request)
        return _page(study, person, session)

    @router.get("/admin/answers", response_class=HTMLResponse, responses=ADMIN, openapi_extra=query(*FILTERS))
    def answers(request: Request) -> str:
        person, session = _admin(study, request)
        found = browse(study.store, request.query_params)
        return study.page("answers.html.j2", person=person, csrf=csrf_token(session), found=found)

    @router.get("/admin/export/{name}", response_class=Response, responses={**EXPORTED, **ADMIN, **MISSING})
    def export(request: Request, name: str) -> Response:
        person, _ = _admin(study, request)
        if name not in WRITTEN:
            raise HTTPException(404, f"there is no format of that name; expected one of {', '.join(WRITTEN)}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "export.jsonl"
            written = export_feedback(study.store.answers(), path, name)
            body = path.read_bytes()
        with study.store.database.writing() as connection:
            record(connection, person.name, "export", name, {"records": written.written})
        headers = {"content-disposition": f'attachment; filename="feedback-{name}.jsonl"'}
        return Response(body, media_type="application/x-ndjson", headers=headers)

    def post(path: str, act: Action, shows: bool = False, **fields_of: dict[str, Any]) -> None:
        """A route for a button: does what it says, then shows the page again (or, if it `shows` one, what `act` returns)."""

        async def pressed(request: Request) -> Response:
            fields = await form_of(request)

            def work() -> Response:
                person, session = _admin(study, request)
                checked(session, fields)
                page = act(person, session, fields, request)
                return HTMLResponse(page) if page else RedirectResponse("/admin", 303)

            return await study.working(work)

        router.add_api_route(
            path, pressed, methods=["POST"], openapi_extra=form(**fields_of), name=path.rpartition("/")[2],
            response_class=HTMLResponse if shows else RedirectResponse, status_code=200 if shows else 303,
            responses={**({} if shows else {**ELSEWHERE, **CONFLICT}), **ADMIN, **POSTED},
        )  # fmt: skip

    def invite(person: Person, session: str, fields: dict[str, str], request: Request) -> str:
        try:
            uses, days = int(fields.get("uses", "1")), float(fields.get("days", "30"))
            token = study.people.invite(
                fields.get("role", "rater"), fields.get("label", ""), min(uses, 10_000), days, actor=person.name
            )
        except (ValueError, ConfigError) as error:
            raise HTTPException(400, f"that invitation cannot be: {error}") from error
        # The public address, or the one that this page was opened under, which the guard has checked.
        base = (study.settings.url or str(request.base_url)).rstrip("/")
        return _page(study, person, session, link=f"{base}/join/{token}")

    def subject(action: Callable[..., None]) -> Action:
        return lambda person, _session, fields, _request: action(fields.get("subject", ""), actor=person.name)

    post("/admin/invite", invite, True, role=choice("rater", "admin"), label=TEXT, uses=TEXT, days=TEXT)
    for action in (study.people.revoke, study.people.pause, study.people.resume, study.people.forget):
        post(f"/admin/{action.__name__}", subject(action), subject=TEXT)
    return router


def _admin(study: Study, request: Request) -> tuple[Person, str]:
    """The signed-in administrator.

    Raises:
        HTTPException: somebody else asks.
    """
    person, session = signed_in(study, request)
    if person.role != "admin":
        raise HTTPException(403, "this page is for the administrator; ask for an administrator's link")
    return person, session


def _page(study: Study, person: Person, session: str, *, link: str = "") -> str:
    values: dict[str, Any] = overview(study)
    return study.page("admin.html.j2", person=person, csrf=csrf_token(session), link=link, formats=WRITTEN, **values)
