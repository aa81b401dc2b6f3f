"""Ways in for checkpoints that are no folder in diffusers layout: single files, GGUF, the Hub's cache, pickles."""
