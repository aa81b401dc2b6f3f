"""Kernels in C++, compiled on the machine that runs them. Every one has a reference in Python, and none is needed."""
