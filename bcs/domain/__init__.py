"""What BCS knows about batches, phases and pipelines: pure, synchronous, no I/O."""
