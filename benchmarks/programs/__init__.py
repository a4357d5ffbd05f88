"""Public programs before and after fastrnn.accelerate: ``python -m benchmarks.programs``."""
