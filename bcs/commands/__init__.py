"""The commands of operators, a module each."""
