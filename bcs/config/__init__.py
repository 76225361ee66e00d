"""The settings, and the pipeline file."""
