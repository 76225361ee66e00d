"""Rebuilds the archive from the messages that Kafka still has."""
