"""The archive: writes what became known and what was answered to PostgreSQL."""
