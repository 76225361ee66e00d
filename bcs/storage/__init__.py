"""State, outbox and archive, behind Protocols: Redis, PostgreSQL, or memory for development."""
