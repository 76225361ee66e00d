"""Run by Alembic itself, on the connection and in the transaction that `bcs.storage.postgres.schema` hands over."""

from alembic import context

from bcs.storage.postgres.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
