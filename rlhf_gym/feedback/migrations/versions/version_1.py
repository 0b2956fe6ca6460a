"""Version 1: queries and judgements, in SQLite."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision: str | None = None

FORMS = "form IN ('pair', 'ranking', 'rating')"
ONE_ANSWER = "(choice IS NOT NULL) + (ranking IS NOT NULL) + (ratings IS NOT NULL) + tie + skipped = 1"


def queries(metadata: sa.MetaData, forms: str = FORMS) -> sa.Table:
    """The table of queries as it was in version 1.

    Args:
        metadata: receives the table.
        forms: the SQL condition that limits the column ``form``.
    """
    return sa.Table(
        "queries",
        metadata,
        sa.Column("id", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("form", sa.String, nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("responses", sa.JSON, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("model_versions", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_queries"),
        sa.CheckConstraint(forms, name="ck_queries_form"),
        sa.Index("ix_queries_round_index", "round", "index"),
    )


def upgrade() -> None:
    """From nothing."""
    metadata = sa.MetaData()
    sa.Table(
        "store_info",
        metadata,
        sa.Column("key", sa.String, nullable=False),
        sa.Column("value", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_store_info"),
    )
    queries(metadata)
    sa.Table(
        "judgements",
        metadata,
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("query_id", sa.String, nullable=False),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("choice", sa.Integer),
        sa.Column("ranking", sa.JSON),
        sa.Column("ratings", sa.JSON),
        sa.Column("tie", sa.Boolean, nullable=False),
        sa.Column("skipped", sa.Boolean, nullable=False),
        sa.Column("strength", sa.Float),
        sa.Column("order_shown", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("supersedes", sa.String),
        sa.Column("reason", sa.JSON, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_judgements"),
        sa.CheckConstraint(ONE_ANSWER, name="ck_judgements_one_answer"),
        sa.ForeignKeyConstraint(["query_id"], ["queries.id"], name="fk_judgements_query_id_queries"),
        sa.ForeignKeyConstraint(["supersedes"], ["judgements.id"], name="fk_judgements_supersedes_judgements"),
        sa.UniqueConstraint("id", name="uq_judgements_id"),
        sa.UniqueConstraint("supersedes", name="uq_judgements_supersedes"),
        sa.Index("ix_judgements_query_id", "query_id"),
        sa.Index("ix_judgements_rater", "rater"),
        sqlite_autoincrement=True,
    )
    metadata.create_all(op.get_bind(), checkfirst=False)
    for table in ("queries", "judgements"):
        append_only(table)


def append_only(table: str) -> None:
    """Let the database refuse changes."""
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} BEGIN "
            f"SELECT RAISE(ABORT, '{table} are append-only'); END"
        )
