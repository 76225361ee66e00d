"""State, outbox and archive behind Protocols, in Redis, PostgreSQL, or memory for development."""
