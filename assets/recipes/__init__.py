"""The recipes that train the built-in models on Still Life."""
