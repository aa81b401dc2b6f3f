"""Still Life: a procedural world of solid objects with captions and exact ground truth."""
