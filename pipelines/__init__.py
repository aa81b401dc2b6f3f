"""The denoiser algebra, the model families and the image tasks."""
