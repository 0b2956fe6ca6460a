"""The application's schema: the fields of every form, and every status that a route may answer with.

The schema is served nowhere: it would only tell strangers where to try. Tests hold the routes against it, for which
``create_app(...).app.openapi()`` gives it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

Replies = dict[int | str, dict[str, Any]]

_WORDS = {"schema": {"type": "string"}}
_PAGE_OR_WORDS = {"text/html": _WORDS, "text/plain": _WORDS}  # for a browser, for the page's script
_TEXT: dict[str, Any] = {"type": "string"}

EVERYWHERE: Replies = {
    408: {"description": "The request did not come to an end", "content": _PAGE_OR_WORDS},
    413: {"description": "The request is too large", "content": _PAGE_OR_WORDS},
    421: {"description": "The page is not served under that name", "content": {"text/plain": _WORDS}},
    429: {"description": "Too many requests; Retry-After says when", "content": {"text/plain": _WORDS}},
    503: {"description": "The store cannot be reached now; nothing is lost", "content": _PAGE_OR_WORDS},
}
"""The replies that any route may give."""

SIGNED_IN: Replies = {
    401: {
        "description": "Nobody is signed in",
        "content": {"text/html": _WORDS, "application/json": {"schema": {"type": "object", "required": ["error"]}}},
    }
}
"""Statuses of routes for people who have joined."""

ADMIN: Replies = {**SIGNED_IN, 403: {"description": "Not for raters, or not from this page", "content": _PAGE_OR_WORDS}}
"""Statuses of the administrator's routes."""

POSTED: Replies = {
    400: {"description": "The form cannot be read", "content": _PAGE_OR_WORDS},
    403: {"description": "Not from this page, or from an old one", "content": _PAGE_OR_WORDS},
    415: {"description": "It is no form", "content": _PAGE_OR_WORDS},
}
"""Statuses of routes that take a form."""

CONFLICT: Replies = {
    409: {
        "description": "The form names what does not exist, or an answer that does not fit",
        "content": _PAGE_OR_WORDS,
    }
}
"""Statuses of forms that name something: an invitation, a question, a person."""

MISSING: Replies = {404: {"description": "There is no such thing", "content": _PAGE_OR_WORDS}}
"""Statuses of routes with a name in their path."""

ELSEWHERE: Replies = {303: {"description": "See the page at that location", "headers": {"location": {"schema": _TEXT}}}}
"""Statuses of routes that lead on to a page."""

_PROGRESS = {
    "counts": _TEXT,
    "answered": {"type": "integer", "minimum": 0},
    "total": {"type": "integer", "minimum": 0},
}
_FEEDBACK = {
    "type": ["object", "null"],
    "required": ["correct", "explanation"],
    "properties": {"correct": {"type": "boolean"}, "explanation": _TEXT},
}
_TEXTS = {"type": "array", "items": _TEXT}
_AHEAD = {"cards": _TEXTS, "paused": {"type": "boolean"}, **_PROGRESS}


def _object(required: list[str], properties: dict[str, Any]) -> dict[str, Any]:
    return {"schema": {"type": "object", "required": required, "properties": properties}}


ANSWERED: Replies = {
    200: {
        "description": "It is stored: the next cards, and the reply to a practice answer",
        "content": {
            "application/json": _object(
                ["feedback", "replaced", *_AHEAD],
                {"feedback": _FEEDBACK, "replaced": {"type": ["string", "null"]}, **_AHEAD},
            ),
            "text/html": _WORDS,
        },
    }
}
FOLLOWING: Replies = {
    200: {
        "description": "The next cards, and all that the rater holds",
        "content": {"application/json": _object(["held", *_AHEAD], {"held": _TEXTS, **_AHEAD})},
    }
}
UNDONE: Replies = {
    200: {
        "description": "The question that is open again, or none",
        "content": {
            "application/json": _object(
                ["reopened"], {"reopened": {"type": ["string", "null"]}, "card": _TEXT, **_PROGRESS}
            )
        },
    }
}
EXPORTED: Replies = {200: {"description": "JSON Lines", "content": {"application/x-ndjson": _WORDS}}}
STATIC_FILE: Replies = {
    200: {"description": "The file", "content": {"text/css": _WORDS, "text/javascript": _WORDS}},
}


def form(**fields: dict[str, Any]) -> dict[str, Any]:
    """A form in the schema, for a route's ``openapi_extra``.

    Args:
        fields: each field's JSON schema; the session's ``csrf`` is added. A form may hold others too, all are texts.
    """
    schema = {
        "type": "object",
        "properties": {"csrf": _TEXT, **fields},
        "additionalProperties": _TEXT,
    }
    return {"requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}}


def query(*names: str) -> dict[str, Any]:
    """Texts in a query string, for a route's ``openapi_extra``."""
    return {"parameters": [{"name": name, "in": "query", "required": False, "schema": _TEXT} for name in names]}


def choice(*values: str) -> dict[str, Any]:
    """A field that takes one of these."""
    return {"type": "string", "enum": list(values)}


TEXT = _TEXT
"""A field that takes any text."""


class PageApp(FastAPI):
    """FastAPI without the status 422 in its schema: a parameter that cannot be parsed gives the page's own 404."""

    def openapi(self) -> dict[str, Any]:
        """The schema, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            schema.get("components", {}).pop("schemas", None)
        return self.openapi_schema or {}
