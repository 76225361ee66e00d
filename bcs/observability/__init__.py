"""How the service tells what it does: log, metrics, waits; and the fail points of chaos tests."""
