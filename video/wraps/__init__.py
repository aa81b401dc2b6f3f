"""Wraps that act along the time axis."""
