"""Opens the archive of the settings. The client of PostgreSQL is imported only where an archive is configured."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bcs.config.settings import Settings
from bcs.config.store_urls import StoreUrl
from bcs.errors import ConfigurationError

if TYPE_CHECKING:
    from bcs.storage.postgres.archive import PostgresArchive


class NoDatabaseNamed(ConfigurationError):
    """The settings have no database."""

    def __init__(self) -> None:
        super().__init__("BCS_DATABASE_URL is not set: there is no archive")


class PostgresClientMissing(ConfigurationError):
    """The packages for PostgreSQL are not installed.

    :ivar remedy: the command that installs them.
    """

    remedy = "pip install 'batch-conductor-service[postgres]'"

    def __init__(self) -> None:
        super().__init__(f"BCS_DATABASE_URL needs the extra `postgres`: {self.remedy}")


def named_database(settings: Settings) -> StoreUrl:
    """The URL of the archive's database.

    :raises NoDatabaseNamed: the settings have no database.
    :raises PostgresClientMissing: the packages for PostgreSQL are not installed.
    """
    if settings.database is None:
        raise NoDatabaseNamed
    if not all(find_spec(package) for package in ("asyncpg", "alembic", "sqlalchemy")):
        raise PostgresClientMissing
    return settings.database


def open_archive(settings: Settings) -> PostgresArchive:
    """Open the archive of the settings; it connects at the first probe. The caller has to close it.

    :raises NoDatabaseNamed: the settings have no database.
    :raises PostgresClientMissing: the packages for PostgreSQL are not installed.
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
