"""Converts: what makes another network of a network, for good."""
