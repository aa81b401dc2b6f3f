"""Score distillation: gradients for anything that renders to a latent."""
