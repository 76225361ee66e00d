"""The state store and the outbox, each behind one Protocol: Redis, or memory for development."""
