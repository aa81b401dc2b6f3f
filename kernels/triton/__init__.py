"""Kernels for CUDA in Triton, each with a plain torch twin. Nothing outside imports them before they can run."""
