"""Samplers: one pure step each, from time t to the cleaner time u."""
