"""csrc/cuda on the simulator: its kernels and launch code, from and to torch tensors."""
