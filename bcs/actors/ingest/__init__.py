"""The intake: reads Kafka, hands events to the batches, and commits what has become durable."""
