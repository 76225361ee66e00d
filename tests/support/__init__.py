"""What several tests need: waiting, faults."""
