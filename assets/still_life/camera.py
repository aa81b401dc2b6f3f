"""Cameras of the Still Life world.

World axes: x right, y away, z up as seen in the front view; the ground is z = 0.
The front camera (azimuth 0) stands on the -y side and looks along +y. Azimuth grows
counter-clockwise seen from above: 90 stands on the +x side ("right"), 180 behind.
Every camera looks at `TARGET`, unless it pans. Camera axes are OpenCV's: x right, y down, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

TARGET = (0.0, 0.0, 0.62)

VIEWS: dict[str, float] = {
    "front": 0.0,
    "front right": 45.0,
    "right": 90.0,
    "back right": 135.0,
    "back": 180.0,
    "back left": 225.0,
    "left": 270.0,
    "front left": 315.0,
}
"""View name to azimuth in degrees."""

Vec = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera on a sphere around the scene centre."""

    azimuth_deg: float = 0.0
    elevation_deg: float = 21.0
    distance: float = 5.9
    """World units from `TARGET`."""
    fov_deg: float = 40.0
    """Full angle over the shorter image side, degrees, (0, 170)."""
    roll_deg: float = 0.0
    """Turn about the viewing direction; positive turns the picture counter-clockwise."""
    pan_deg: float = 0.0
    """Turn about the upright line through the camera; positive looks further left."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if not -1e6 <= getattr(self, f.name) <= 1e6:
                raise ValueError(
                    f"{f.name} must be a finite number, at most 1e6, got {getattr(self, f.name)}"
                )
        if not 0.0 < self.fov_deg < 170.0:
            raise ValueError(f"fov_deg must be in (0, 170), got {self.fov_deg}")
        if not -89.0 <= self.elevation_deg <= 89.0:
            raise ValueError(f"elevation_deg must be in [-89, 89], got {self.elevation_deg}")
        if self.distance <= 0.0:
            raise ValueError(f"distance must be > 0, got {self.distance}")

    @property
    def position(self) -> Vec:
        """Camera centre in world units."""
        az, el = math.radians(self.azimuth_deg), math.radians(self.elevation_deg)
        flat = self.distance * math.cos(el)
        x, y, z = TARGET
        return (x + flat * math.sin(az), y - flat * math.cos(az), z + self.distance * math.sin(el))

    def axes(self) -> tuple[Vec, Vec, Vec]:
        """Camera x (right), y (down) and z (forward) axes in world coordinates."""
        az, el = math.radians(self.azimuth_deg + self.pan_deg), math.radians(self.elevation_deg)
        sa, ca, se, ce = math.sin(az), math.cos(az), math.sin(el), math.cos(el)
        right, down, forward = (ca, sa, 0.0), (sa * se, -ca * se, -ce), (-sa * ce, ca * ce, -se)
        if not self.roll_deg:
            return right, down, forward
        c, s = math.cos(math.radians(self.roll_deg)), math.sin(math.radians(self.roll_deg))
        (rx, ry, rz), (dx, dy, dz) = right, down
        return (
            (c * rx + s * dx, c * ry + s * dy, c * rz + s * dz),
            (c * dx - s * rx, c * dy - s * ry, c * dz - s * rz),
            forward,
        )

    def viewmat(self) -> Tensor:
        """World-to-camera matrix [4,4]."""
        mat = torch.eye(4)
        for row, axis in enumerate(self.axes()):
            mat[row, :3] = torch.tensor(axis)
            mat[row, 3] = -sum(a * p for a, p in zip(axis, self.position, strict=True))
        return mat

    def focal(self, height: int, width: int) -> float:
        """Focal length in pixels."""
        return 0.5 * min(height, width) / math.tan(math.radians(self.fov_deg) / 2)

    def K(self, size: int | tuple[int, int]) -> Tensor:
        """Intrinsics [3,3] in pixels for a square size or (height, width); pixel centres lie at +0.5."""
        height, width = (size, size) if isinstance(size, int) else size
        f = self.focal(height, width)
        return torch.tensor([[f, 0.0, width / 2], [0.0, f, height / 2], [0.0, 0.0, 1.0]])

    def project(self, point: Vec) -> Vec:
        """World point to (u, v, depth); u right, v down, +-1 at the edges of a square image."""
        rel = [p - c for p, c in zip(point, self.position, strict=True)]
        x, y, z = (sum(a * r for a, r in zip(axis, rel, strict=True)) for axis in self.axes())
        f = 1.0 / math.tan(math.radians(self.fov_deg) / 2)
        return f * x / z, f * y / z, z


def named_view(name: str) -> Camera:
    """The default camera turned to one of the eight named views."""
    if name not in VIEWS:
        raise ValueError(f"unknown view {name!r}; known: {', '.join(VIEWS)}")
    return Camera(azimuth_deg=VIEWS[name])


def view_name(camera: Camera) -> str:
    """The nearest of the eight view names."""
    return list(VIEWS)[round(camera.azimuth_deg / 45.0) % 8]
