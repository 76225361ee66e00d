"""What is configured: settings, and the pipelines."""
