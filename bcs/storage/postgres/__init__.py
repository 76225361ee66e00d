"""The archive in PostgreSQL: all that Redis may lose, and the history of batches."""
