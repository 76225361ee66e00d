"""The tree put together, and the process around it."""
