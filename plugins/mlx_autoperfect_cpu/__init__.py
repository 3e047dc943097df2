"""The CPU backend: C++ kernels, compiled on first use, that run inside MLX's lazy graph."""
