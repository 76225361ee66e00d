"""Run by Alembic itself, on the connection that `bcs.record.schema` hands over."""

from alembic import context

from bcs.record.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], version_table=VERSION_TABLE, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
