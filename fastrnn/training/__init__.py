"""Training of sequence models: the code of ``python -m fastrnn train`` and ``tune``."""
