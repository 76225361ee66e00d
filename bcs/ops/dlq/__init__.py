"""Reading, replaying and purging dead letters, for operators."""
