"""Brings a feedback store of an older version up to this one: one file a step, in ``versions``.

A new file or database gets the newest tables at once and skips these steps. The version stands in the store itself
(``store_info``); Alembic supplies the order of the steps and the operations, within the transaction that opens the store.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection


def upgrade(connection: Connection, found: int, wanted: int) -> None:
    """Take all steps from one version to a later one.

    Args:
        connection: in a transaction that may rebuild tables.
        found: the version of the store.
        wanted: the version that it shall have; above ``found``.
    """
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    steps = ScriptDirectory(str(Path(__file__).parent)).iterate_revisions(str(wanted), str(found) if found else "base")
    with Operations.context(MigrationContext.configure(connection)):
        for step in reversed(list(steps)):
            step.module.upgrade()
