"""Everything that knows the inside of aiokafka's consumer."""
