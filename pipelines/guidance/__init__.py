"""Guidance: how several evaluations of the network become one prediction."""
