"""The operators' tasks, without a command line."""
