"""What goes over Kafka: events, messages that are published, dead letters. pydantic stays at this edge."""
