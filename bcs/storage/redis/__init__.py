"""The state of batches and the queues, stored in Redis."""
