"""Opens the record that the settings name, without loading its client before there is one."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bcs.config.settings import Settings
from bcs.errors import ConfigurationError

if TYPE_CHECKING:
    from bcs.storage.postgres.archive import PostgresArchive


class NoDatabaseNamed(ConfigurationError):
    """The settings name no database."""

    def __init__(self) -> None:
        super().__init__("BCS_DATABASE_URL is not set: no archive is configured")


class PostgresClientMissing(ConfigurationError):
    """The packages are not installed that it takes to ask PostgreSQL.

    :ivar remedy: the command that installs them.
    """

    remedy = "pip install 'batch-conductor-service[postgres]'"

    def __init__(self) -> None:
        super().__init__(f"BCS_DATABASE_URL needs the extra `postgres`: {self.remedy}")


def named_database(settings: Settings) -> str:
    """The URL of the database that the settings name.

    :raises NoDatabaseNamed: they name none.
    :raises PostgresClientMissing: this installation can't ask it.
    """
    if settings.database_url is None:
        raise NoDatabaseNamed
    if not all(find_spec(package) for package in ("asyncpg", "alembic", "sqlalchemy")):
        raise PostgresClientMissing
    return settings.database_url


def open_record(settings: Settings) -> PostgresArchive:
    """The record that the settings name. Whoever opens it closes it; nothing is connected before it is probed.

    :raises NoDatabaseNamed: they name none.
    :raises PostgresClientMissing: this installation can't ask it.
    """
    url = named_database(settings)
    from bcs.storage.postgres.archive import PostgresArchive
    from bcs.storage.postgres.gateway import ArchiveGateway

    return PostgresArchive(
        ArchiveGateway(
            url,
            max_connections=settings.database_max_connections,
            deadline_seconds=settings.database_deadline_seconds,
        ),
        page_bytes=settings.history_page_bytes,
    )
