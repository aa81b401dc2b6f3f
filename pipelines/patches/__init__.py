"""Patches: changes inside a network for the length of one run, undone without a trace."""
