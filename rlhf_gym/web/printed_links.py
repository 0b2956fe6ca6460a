"""The links that a page prints at its start: the same ones at every start, as long as they let somebody in.

The store has a link's hash only, so what was printed is kept in a file that its owner alone may read: beside the store's file,
or, of a store in a server's database, in the user's folder for programs' state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.study.people import People, Role

_log = logging.getLogger(__name__)


def printed_token(store: FeedbackStore, people: People, role: Role, *, uses: int) -> str:
    """The token of the link that was printed for a role; a new invitation where there is none, or it lets nobody in any more.

    Args:
        store: the page's.
        people: the store's invitations.
        role: the role of those whom the link lets in.
        uses: number of people whom a new link lets in.
    """
    place = links_file(store, people)
    kept: dict[str, str] = {}
    with _said(place):
        kept = _read(place)
    invitation = people.invitation_of(kept[role]) if role in kept else None
    if invitation is None or not invitation.open or invitation.role != role:
        kept[role] = people.invite(role=role, label="printed at the start", uses=uses)
        with _said(place):
            _write(place, kept)
    return kept[role]


def links_file(store: FeedbackStore, people: People) -> Path:
    """The file that keeps a store's printed links.

    Args:
        store: the store.
        people: the store's people.
    """
    try:
        return store.path.with_name(f"{store.path.name}-links.json")
    except FeedbackError:  # it is in a server's database
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(state) / "rlhf-gym" / f"{people.study()}-links.json"


@contextlib.contextmanager
def _said(place: Path) -> Iterator[None]:
    """A page is served all the same where its links cannot be kept, e.g. because the file is another user's."""
    try:
        yield
    except OSError as error:
        _log.warning("%s cannot be used (%s): the next start will print other links", place, error.strerror)


def _read(place: Path) -> dict[str, str]:
    """The kept tokens by role; none where there is no such file, or it holds something else."""
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        kept = None
    return {name: token for name, token in kept.items() if isinstance(token, str)} if isinstance(kept, dict) else {}


def _write(place: Path, kept: dict[str, str]) -> None:
    """Replace the file at once; nobody else may read it at any moment."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_name(f"{place.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        draft.unlink()
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(kept, file)
    os.replace(draft, place)
