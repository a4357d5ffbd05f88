"""Training of sequence models: what is behind ``python -m fastrnn train`` and ``tune``."""
