"""The log, the metrics, the actors' waits, and the fail points of chaos tests."""
