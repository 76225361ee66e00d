"""What BCS costs: requests and events a second, CPU for each, side by side with a floor. ``python -m benchmarks``."""
