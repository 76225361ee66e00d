"""What operators do beside the service, without a command line."""
