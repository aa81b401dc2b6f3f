"""Guidances that act along the time axis."""
