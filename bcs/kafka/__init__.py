"""All code that depends on aiokafka's internals."""
