"""What developers run, and what tests and benchmarks share."""
