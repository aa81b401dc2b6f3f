"""Ways to learn faster, options of the recipes, one file each."""
