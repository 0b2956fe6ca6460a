"""Version 2: people at work (slots, assignments, people, invitations, sessions, audit), and three more forms of a query.

Stores in PostgreSQL begin with this version; so this step, too, is for SQLite alone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rlhf_gym.feedback.migrations.versions.version_1 import append_only, queries

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """From version 1."""
    # SQLite cannot alter a constraint: the table is copied. Its triggers go with the old one.
    with op.batch_alter_table("queries", copy_from=queries(sa.MetaData()), recreate="always") as batch:
        batch.drop_constraint("ck_queries_form", type_="check")
        batch.create_check_constraint(
            "ck_queries_form", sa.text("form IN ('pair', 'ranking', 'rating', 'best', 'thumbs', 'edit')")
        )
    append_only("queries")
    _handing_out()
    _taking_part()
    append_only("audit")


def _handing_out() -> None:
    op.create_table(
        "slots",
        sa.Column("query_id", sa.String, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("query_id", name="pk_slots"),
        sa.ForeignKeyConstraint(["query_id"], ["queries.id"], name="fk_slots_query_id_queries"),
    )
    op.create_index("ix_slots_open_round_index", "slots", ["open", "round", "index"])
    op.create_table(
        "assignments",
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("query_id", sa.String, nullable=False),
        sa.Column("rater", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("order_shown", sa.JSON, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("judgement_id", sa.String),
        sa.Column("answered", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_assignments"),
        sa.ForeignKeyConstraint(["query_id"], ["queries.id"], name="fk_assignments_query_id_queries"),
        sa.ForeignKeyConstraint(["judgement_id"], ["judgements.id"], name="fk_assignments_judgement_id_judgements"),
        sa.UniqueConstraint("id", name="uq_assignments_id"),
        sa.UniqueConstraint("query_id", "rater", "kind", name="uq_assignments_query_id_rater_kind"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_assignments_rater_state_sequence", "assignments", ["rater", "state", "sequence"])
    op.create_index("ix_assignments_state_expires_at", "assignments", ["state", "expires_at"])


def _taking_part() -> None:
    op.create_table(
        "invitations",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("used", sa.Integer, nullable=False),
        sa.Column("revoked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invitations"),
        sa.UniqueConstraint("hash", name="uq_invitations_hash"),
    )
    op.create_table(
        "people",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("invitation", sa.String, nullable=False),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("forgotten", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_people"),
        sa.ForeignKeyConstraint(["invitation"], ["invitations.id"], name="fk_people_invitation_invitations"),
    )
    op.create_table(
        "sessions",
        sa.Column("hash", sa.String, nullable=False),
        sa.Column("person", sa.String, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_sessions"),
        sa.ForeignKeyConstraint(["person"], ["people.name"], name="fk_sessions_person_people"),
    )
    op.create_index("ix_sessions_person", "sessions", ["person"])
    op.create_table(
        "audit",
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit"),
        sqlite_autoincrement=True,
    )
