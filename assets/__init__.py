"""Weights, recipes and the Still Life world."""
