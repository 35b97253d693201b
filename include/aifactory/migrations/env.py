"""Alembic's entry: runs the migrations on the connection that `aifactory.ledger.migrate` hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, version_table="ledger_version"
)
with context.begin_transaction():
    context.run_migrations()
