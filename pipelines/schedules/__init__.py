"""Schedules: the falling times that a sampler steps through."""
