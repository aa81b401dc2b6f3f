"""The HTTP API: a client of the jobs' store that never runs a model. `application.build_app` is the door.

The folder belongs to the extra `serve`; whoever is outside imports it where it is used.
"""
