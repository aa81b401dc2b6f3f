"""Cameras, representations, score distillation and the 3D tasks."""
