"""Batches, phases and pipelines: pure, synchronous, without I/O."""
