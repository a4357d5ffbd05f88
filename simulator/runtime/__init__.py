"""What stands in for NVIDIA's libraries, and the building of host code against it."""
