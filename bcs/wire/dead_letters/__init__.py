"""Encodes and decodes dead letters."""
