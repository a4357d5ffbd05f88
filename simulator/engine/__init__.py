"""The engine: C++ that runs translated kernels, and its Python module."""
