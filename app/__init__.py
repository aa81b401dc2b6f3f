"""Requests, jobs, command line: the edge where names are strings."""
