"""Run by Alembic itself, on the connection and in the transaction that `bcs.record.schema` hands over."""

from alembic import context

from bcs.record.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
