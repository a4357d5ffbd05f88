"""PTX, the intermediate code of NVIDIA's compiler, and its way to a shared library of C++."""
