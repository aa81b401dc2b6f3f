"""Wraps: a prediction around a prediction, within one step."""
