"""People: invitations, sessions and pseudonyms. No password, address or real name is stored.

Tokens are random, and only their hashes are stored: a reader of the database can neither use an invitation nor take over
a session.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import schema
from rlhf_gym.feedback.store import FeedbackStore
from rlhf_gym.study.audit import record
from rlhf_gym.study.leases import WEB
from rlhf_gym.text import visible

Role = Literal["rater", "admin"]
SESSION_DAYS = 30
_REMOVED = ("flagged", "edited", "comment")
_MOODS = "bold brave bright calm clever fair gentle happy keen kind lucky merry neat noble patient polite quiet swift warm wise"
_ANIMALS = (
    "badger falcon fox hare heron ibis jackal koala lemur lynx marten newt otter owl quail raven robin seal stork wren"
)


@dataclass(frozen=True)
class Person:
    """Somebody who takes part.

    Attributes:
        name: made up; signs the judgements, e.g. ``web/calm-otter-41``.
        role: ``rater`` or ``admin``.
        label: the administrator's note on the invitation.
        paused: True while this person is handed no questions.
        forgotten: True if nothing ties the name to a person any more.
        created_at: time at which the invitation was accepted.
    """

    name: str
    role: Role
    label: str
    paused: bool
    forgotten: bool
    created_at: datetime


@dataclass(frozen=True)
class Invitation:
    """A link that lets people in. Its token is stored as a hash only.

    Attributes:
        id: names it when it is revoked.
        role, label: role of the people who accept it, and the administrator's note.
        uses: number of people it lets in.
        used: number of people it has let in.
        revoked: True if it lets nobody in any more.
        created_at, expires_at: UTC.
    """

    id: str
    role: Role
    label: str
    uses: int
    used: int
    revoked: bool
    created_at: datetime
    expires_at: datetime

    @property
    def open(self) -> bool:
        """True while it lets somebody in."""
        return not self.revoked and self.used < self.uses and self.expires_at > datetime.now(UTC)


class People:
    """The people and invitations of a store's study. Safe to use from several threads.

    Args:
        store: open for writing.
    """

    def __init__(self, store: FeedbackStore) -> None:
        self._database = store.database

    def study(self) -> str:
        """The store's own id: 12 hexadecimal digits, drawn at first use, not secret."""
        known = select(schema.store_info.c.value).where(schema.store_info.c.key == "study")
        with self._database.reading() as connection:
            found = connection.scalar(known)
        if found is None:
            with self._database.writing() as connection:
                found = connection.scalar(known)  # another process may have drawn it meanwhile
                if found is None:
                    found = secrets.token_hex(6)
                    connection.execute(insert(schema.store_info), {"key": "study", "value": found})
        return str(found)

    def invite(
        self, role: str = "rater", label: str = "", uses: int = 1, days: float = 30, *, actor: str = "command line"
    ) -> str:
        """A new invitation.

        Args:
            role: ``"rater"`` or ``"admin"``.
            label: a note for the administrator, e.g. whom it is for.
            uses: number of people it lets in.
            days: until it expires.
            actor: the administrator who invites, for the audit trail.

        Returns:
            The token, which cannot be read again: the store has its hash only.

        Raises:
            ConfigError: a role that does not exist, no uses, or no time.
        """
        if role not in get_args(Role) or uses < 1 or not 0 < days <= 3660:
            raise ConfigError(
                f"an invitation is for a rater or an admin, once or more, for up to 3660 days; got {role!r}, {uses}, {days}"
            )
        token, number, now = secrets.token_urlsafe(24), secrets.token_hex(8), datetime.now(UTC)
        row = {
            "id": number,
            "hash": _hash(token),
            "role": role,
            "label": visible(label[:200]),
            "uses": uses,
            "used": 0,
            "revoked": False,
            "created_at": now,
            "expires_at": now + timedelta(days=days),
        }
        with self._database.writing() as connection:
            connection.execute(insert(schema.invitations), row)
            record(connection, actor, "invite", number, {"role": role, "uses": uses})
        return token

    def accept(self, token: str) -> tuple[Person, str]:
        """Let the bearer of an invitation in, under a new name.

        Returns:
            The person, and the session's token for a cookie.

        Raises:
            FeedbackError: the invitation is unknown, used up, revoked or expired.
        """
        now, session = datetime.now(UTC), secrets.token_urlsafe(32)
        table = schema.invitations.c
        with self._database.writing() as connection:
            row = (
                connection.execute(select(schema.invitations).where(table.hash == _hash(token)))
                .mappings()
                .one_or_none()
            )
            if row is None or not _invitation(row).open:
                raise FeedbackError(
                    "this invitation is not valid (any more): it may have been used, revoked or expired; ask for a new one"
                )
            connection.execute(update(schema.invitations).where(table.id == row["id"]).values(used=table.used + 1))
            name = _new_name(connection)
            person = {
                "name": name, "role": row["role"], "label": row["label"], "paused": False, "forgotten": False,
                "created_at": now,
            }  # fmt: skip
            connection.execute(insert(schema.people), {**person, "invitation": row["id"]})
            connection.execute(
                insert(schema.sessions),
                {"hash": _hash(session), "person": name, "expires_at": now + timedelta(days=SESSION_DAYS)},
            )
            record(connection, name, "join", row["id"], {"role": row["role"]})
        return Person(**person), session

    def person_of(self, session: str) -> Person | None:
        """The person of a session; None if the session does not exist or has ended."""
        joined = schema.people.join(schema.sessions, schema.sessions.c.person == schema.people.c.name)
        valid = (schema.sessions.c.hash == _hash(session)) & (schema.sessions.c.expires_at > datetime.now(UTC))
        with self._database.reading() as connection:
            row = connection.execute(select(schema.people).select_from(joined).where(valid)).mappings().one_or_none()
        return None if row is None or row["forgotten"] else _person(row)

    def sign_out(self, session: str) -> None:
        """End a session."""
        with self._database.writing() as connection:
            connection.execute(delete(schema.sessions).where(schema.sessions.c.hash == _hash(session)))

    def revoke(self, invitation_id: str, *, actor: str = "command line") -> None:
        """Revoke an invitation: it lets nobody in any more; those who are in stay.

        Args:
            invitation_id: the invitation's id.
            actor: the person who does it, for the audit trail.

        Raises:
            FeedbackError: there is no such invitation.
        """
        with self._database.writing() as connection:
            named = schema.invitations.c.id == _stored(invitation_id)
            if not connection.execute(update(schema.invitations).where(named).values(revoked=True)).rowcount:
                raise FeedbackError(f"there is no invitation {invitation_id[:40]!r}")
            record(connection, actor, "revoke", invitation_id)

    def pause(self, rater: str, *, actor: str = "command line") -> None:
        """Hand a rater no questions until :meth:`resume`. What the rater holds may still be answered.

        Args:
            rater: the person's name.
            actor: the person who does it, for the audit trail.
        """
        self._change(rater, actor, "pause", paused=True)

    def resume(self, rater: str, *, actor: str = "command line") -> None:
        """Hand a rater questions again.

        Args:
            rater: the person's name.
            actor: the person who does it, for the audit trail.
        """
        self._change(rater, actor, "resume", paused=False)

    def forget(self, rater: str, *, actor: str = "command line") -> None:
        """Remove what ties a rater's answers to a person.

        That is: their sessions, the note on an invitation that was theirs alone, and all free text that they wrote. The
        answers themselves stay under the made-up name, since models were trained on them. This is the only change ever made
        to stored judgements. It leaves choices, rankings and ratings as they were; of a corrected response, only the fact that
        it was corrected stays.

        Args:
            rater: the person's name.
            actor: the person who does it, for the audit trail.

        Raises:
            FeedbackError: there is no such rater.
        """
        with self._database.writing() as connection:
            _find(connection, rater)
            came_by = select(schema.people.c.invitation).where(schema.people.c.name == rater).scalar_subquery()
            alone = (schema.invitations.c.id == came_by) & (schema.invitations.c.uses == 1)
            connection.execute(update(schema.invitations).where(alone).values(label=""))
            gone = {"label": "", "forgotten": True, "paused": True}
            connection.execute(update(schema.people).where(schema.people.c.name == rater).values(**gone))
            connection.execute(delete(schema.sessions).where(schema.sessions.c.person == rater))
            _remove_texts(connection, rater)
            record(connection, actor, "forget", rater)
        self._database.purge()

    def people(self) -> list[Person]:
        """Everybody who accepted an invitation, in that order."""
        with self._database.reading() as connection:
            statement = select(schema.people).order_by(schema.people.c.created_at, schema.people.c.name)
            return [_person(row) for row in connection.execute(statement).mappings()]

    def invitation_of(self, token: str) -> Invitation | None:
        """The invitation that a link's token belongs to; None if there is none."""
        with self._database.reading() as connection:
            named = select(schema.invitations).where(schema.invitations.c.hash == _hash(token))
            row = connection.execute(named).mappings().one_or_none()
        return None if row is None else _invitation(row)

    def invitations(self) -> list[Invitation]:
        """All invitations, newest first."""
        with self._database.reading() as connection:
            statement = select(schema.invitations).order_by(schema.invitations.c.created_at.desc())
            return [_invitation(row) for row in connection.execute(statement).mappings()]

    def _change(self, rater: str, actor: str, action: str, *, paused: bool) -> None:
        with self._database.writing() as connection:
            _find(connection, rater)
            connection.execute(update(schema.people).where(schema.people.c.name == rater).values(paused=paused))
            record(connection, actor, action, rater)


def _hash(token: str) -> str:
    """Tokens are random and long: a plain hash cannot be searched through, and needs no salt."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _person(row: RowMapping) -> Person:
    return Person(**{name: row[name] for name in Person.__dataclass_fields__})


def _invitation(row: RowMapping) -> Invitation:
    return Invitation(**{name: row[name] for name in Invitation.__dataclass_fields__})


def _stored(name: str) -> str:
    """A name to look for; empty for what no name holds: PostgreSQL takes no NUL, not even in a question."""
    return name if name.isprintable() else ""


def _find(connection: Connection, rater: str) -> None:
    named = schema.people.c.name == _stored(rater)
    if connection.scalar(select(func.count()).select_from(schema.people).where(named)) != 1:
        raise FeedbackError(f"there is no rater {rater[:80]!r}; names look like {WEB}/calm-otter-41")


def _new_name(connection: Connection) -> str:
    while True:
        name = f"{WEB}/{secrets.choice(_MOODS.split())}-{secrets.choice(_ANIMALS.split())}-{secrets.randbelow(90) + 10}"
        taken = select(func.count()).select_from(schema.people).where(schema.people.c.name == name)
        if not connection.scalar(taken):
            return name


def _remove_texts(connection: Connection, rater: str) -> None:
    """Blank a rater's reasons and other texts; the guard against changes is off within this transaction only."""
    table = schema.judgements
    own = connection.execute(select(table.c.id, table.c.details).where(table.c.rater == rater)).all()
    with schema.unguarded(connection, table.name):
        for number, details in own:
            kept = {name: (True if name in _REMOVED else value) for name, value in dict(details).items()}
            connection.execute(update(table).where(table.c.id == number).values(reason="", details=kept))
