"""The permanent record, made anew from what Kafka still has."""
