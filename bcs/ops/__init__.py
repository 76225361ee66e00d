"""The operations of operators, without a command line."""
