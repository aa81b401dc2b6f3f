"""Sfumato: images, video and 3D with diffusion and flow models."""
