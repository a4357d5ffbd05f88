"""Correctness and speed of fastrnn beside torch.nn and other runtimes: ``python -m benchmarks``."""
