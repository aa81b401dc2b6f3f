"""Number formats for weights and activations, and products in them."""
