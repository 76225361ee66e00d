"""The messages that go over Kafka: consumed events, published messages, dead letters."""
