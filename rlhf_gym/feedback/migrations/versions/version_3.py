"""Version 3: withdrawals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from rlhf_gym.feedback.schema import guard

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """From version 2."""
    op.create_table(
        "withdrawals",
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("reason", sa.JSON, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_withdrawals"),
        sa.UniqueConstraint("kind", "id", name="uq_withdrawals_kind_id"),
        sqlite_autoincrement=True,
    )
    guard(op.get_bind(), "withdrawals")
