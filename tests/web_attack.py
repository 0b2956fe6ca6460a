"""Shared by tests of the rating page's security: every route, every table, a database that is down."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from web_study import routes

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.schema import metadata
from rlhf_gym.web.security import RateLimit, csrf_token
from rlhf_gym.web.study import Study

JSON = {"accept": "application/json"}
FILTERS = ("rater", "round", "kind", "text", "page")


def patient(somebody: Any) -> Any:
    somebody.app.limit = somebody.app.address_limit = somebody.app.join_limit = RateLimit(1e6, 10**6)
    return somebody


def every_route(somebody: Any) -> list[tuple[str, str]]:
    return sorted((method, route.path) for route in routes(somebody.app.app) for method in route.methods)


def filled(path: str) -> str:
    """A route's path with something in every place of it."""
    return re.sub(r"\{\w+\}", "x", path.replace("{slot}", "0"))


def csrf_of(found: Study, somebody: Any) -> str:
    return csrf_token(somebody.cookies[found.cookie])


def contents(found: Study) -> dict[str, list[Any]]:
    """Every table, to the last row."""
    with found.store.database.reading() as connection:
        return {
            table.name: [
                tuple(map(str, row)) for row in connection.execute(table.select().order_by(*table.primary_key))
            ]
            for table in metadata.sorted_tables
        }


@contextlib.contextmanager
def store_down(found: Study) -> Iterator[None]:
    """Every call of the database fails as it would on a full disk."""

    def fail() -> Any:
        raise FeedbackError(
            f"the feedback store {found.store.place} could not be written: the disk (or quota) is full"
        ) from (OSError("no space left"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(found.store.database, "writing", fail)
        patched.setattr(found.store.database, "reading", fail)
        yield
