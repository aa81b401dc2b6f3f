"""Many requests at once: read from a file, checked before anything runs, ordered so that nothing is computed twice.

`sheet` reads the file, `rows` makes requests of it, `planning` orders them, an engine (`local_engine`, `ray_engine`)
has them made by a `worker` or several, `running` writes results and the manifest, from which `report` tells the story.
"""
