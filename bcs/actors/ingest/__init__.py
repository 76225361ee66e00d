"""The intake: reads Kafka, delivers events to the batches, and commits the offsets of durable messages."""
