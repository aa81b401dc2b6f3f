"""Tensor operations that know nothing of diffusion; each fast form stands beside a plain torch reference."""
