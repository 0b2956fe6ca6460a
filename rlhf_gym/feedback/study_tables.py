"""The tables of people at work: who may take part, who holds which query, what was done by whom.

Beside the tables of queries and judgements, in the same database, so that an answer, the lease it settles and the count it
adds to are one transaction. In a store that no person has worked on they are empty.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, String, Table, UniqueConstraint

from rlhf_gym.feedback.schema import UtcTime, json_column, metadata

slots = Table(
    "slots",
    metadata,
    # One row a query that is offered to people: how many have answered it or hold it now.
    Column("query_id", String, ForeignKey("queries.id"), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("index", Integer, nullable=False),
    Column("taken", Integer, nullable=False),
    Column("open", Boolean, nullable=False),
    Index(None, "open", "round", "index"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    # Random: whoever can name it holds the lease; also what makes an answer that is sent twice one answer.
    Column("id", String, nullable=False, unique=True),
    Column("query_id", String, ForeignKey("queries.id"), nullable=False),
    Column("rater", String, nullable=False),
    Column("kind", String, nullable=False),
    # open: to be answered; done: answered; lapsed: the lease ran out (an answer is taken all the same).
    Column("state", String, nullable=False),
    Column("order_shown", json_column(), nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    # The judgement that stands for it now, if any: what a reopened assignment's next answer supersedes.
    Column("judgement_id", String, ForeignKey("judgements.id")),
    Column("answered", Integer, nullable=False, default=0),
    # Nobody is ever handed the same query twice for the same reason, whatever the program does.
    UniqueConstraint("query_id", "rater", "kind"),
    Index(None, "rater", "state", "sequence"),
    Index(None, "state", "expires_at"),
    sqlite_autoincrement=True,
)

people = Table(
    "people",
    metadata,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("label", String, nullable=False),
    Column("invitation", String, ForeignKey("invitations.id"), nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("forgotten", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", String, primary_key=True),
    Column("hash", String, nullable=False, unique=True),
    Column("role", String, nullable=False),
    Column("label", String, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("used", Integer, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", String, primary_key=True),
    Column("person", String, ForeignKey("people.name"), nullable=False, index=True),
    Column("expires_at", UtcTime, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("details", json_column(), nullable=False),
    sqlite_autoincrement=True,
)
