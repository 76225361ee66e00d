"""State and queues in Redis."""
