"""The permanent record in PostgreSQL: what Redis may forget, and what explains the past."""
