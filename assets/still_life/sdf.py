"""Signed distances of the eight shapes, radius 1, object axes (z up), points [3,R] -> [R].

All are exact or lower bounds, so sphere tracing never steps through a surface. The sizes
agree with `FORMS` in scene.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sdf = Callable[[Tensor], Tensor]


def _norm2(a: Tensor, b: Tensor) -> Tensor:
    return torch.sqrt(a * a + b * b)


def _corner(a: Tensor, b: Tensor) -> Tensor:
    """Distance to the quadrant a <= 0, b <= 0 (exact outside and inside)."""
    return _norm2(a.clamp_min(0), b.clamp_min(0)) + torch.maximum(a, b).clamp_max(0)


def sphere(p: Tensor) -> Tensor:
    return torch.sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]) - 1.0


def cube(p: Tensor) -> Tensor:
    """Half edge 0.78, edges rounded by 0.09."""
    q = p.abs() - 0.69
    outside = q.clamp_min(0).square().sum(0).sqrt()
    return outside + q.amax(0).clamp_max(0) - 0.09


def cylinder(p: Tensor) -> Tensor:
    """Radius 0.75, half height 0.85, rim rounded by 0.06."""
    return _corner(_norm2(p[0], p[1]) - 0.69, p[2].abs() - 0.79) - 0.06


def cone(p: Tensor) -> Tensor:
    """Base radius 0.92, half height 0.9, tip up; (0.8905, 0.4551) is the slope's normal."""
    return torch.maximum(_norm2(p[0], p[1]) * 0.8905 + (p[2] - 0.9) * 0.4551, -0.9 - p[2])


def torus(p: Tensor) -> Tensor:
    """Stands upright, hole along y; ring radius 0.72, tube 0.26."""
    return _norm2(_norm2(p[0], p[2]) - 0.72, p[1]) - 0.26


def capsule(p: Tensor) -> Tensor:
    """Upright, radius 0.5, half height 1."""
    z = p[2] - p[2].clamp(-0.5, 0.5)
    return torch.sqrt(p[0] * p[0] + p[1] * p[1] + z * z) - 0.5


def pyramid(p: Tensor) -> Tensor:
    """Square base, half edge 0.82, half height 0.85; (0.9007, 0.4345) is the slope's normal."""
    side = torch.maximum(p[0].abs(), p[1].abs()) * 0.9007 + (p[2] - 0.85) * 0.4345
    return torch.maximum(side, -0.85 - p[2])


def mug(p: Tensor) -> Tensor:
    """Open cup, radius 0.66, half height 0.74, wall 0.1, with a handle on the +x side."""
    rho = _norm2(p[0], p[1])
    outer = _corner(rho - 0.63, p[2].abs() - 0.71) - 0.03
    inner = torch.maximum(rho - 0.55, -0.62 - p[2])
    handle = _norm2(_norm2(p[0] - 0.64, p[2]) - 0.36, p[1]) - 0.1
    return torch.maximum(torch.minimum(outer, handle), -inner)


SDFS: tuple[Sdf, ...] = (sphere, cube, cylinder, cone, torus, capsule, pyramid, mug)
"""In the order of `SHAPES`."""


def gradient(sdf: Sdf, p: Tensor, h: float = 1e-3) -> Tensor:
    """Unit gradient [3,R] by the four-point tetrahedron difference."""
    signs = p.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]]).t().unsqueeze(2)
    values = sdf((p.unsqueeze(1) + h * signs).reshape(3, -1)).reshape(1, 4, -1)
    g = (signs * values).sum(1)
    return g / g.square().sum(0).sqrt().clamp_min(1e-12)
