"""The six settings: sky, ground and what metal mirrors. All colours are linear RGB."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .scene import SETTINGS
from .tracing import Pack, linear, take

GROUND_RADIUS = 8.0
"""The ground is a disc; its rim is the horizon, inside the frame of a raised camera."""


class Look(NamedTuple):
    """One setting, sRGB 0..255."""

    zenith: tuple[int, int, int]
    horizon: tuple[int, int, int]
    ground: tuple[int, int, int]
    ground2: tuple[int, int, int]
    """Second ground colour, mixed in by a smooth texture."""
    haze: float
    """How far the rim of the ground fades to the horizon, 0..1."""
    key: float
    """Strength of the key light."""
    ambient: float


LOOKS: dict[str, Look] = {
    "studio": Look((214, 214, 216), (188, 188, 190), (188, 188, 190), (184, 184, 186), 1.0, 1.0, 0.42),
    "meadow": Look((84, 150, 228), (190, 220, 244), (96, 158, 58), (120, 178, 70), 0.25, 1.0, 0.42),
    "snow": Look((168, 190, 214), (214, 222, 230), (232, 236, 242), (214, 224, 236), 0.35, 0.92, 0.44),
    "desert": Look((236, 176, 120), (248, 216, 170), (222, 178, 116), (206, 156, 94), 0.3, 1.0, 0.40),
    "sea": Look((96, 170, 226), (206, 232, 242), (24, 106, 160), (44, 142, 186), 0.3, 1.0, 0.42),
    "night": Look((8, 12, 40), (30, 38, 84), (56, 60, 84), (64, 69, 96), 0.35, 0.62, 0.26),
}


def table(device: torch.device) -> Tensor:
    """[15,6]: zenith, horizon, ground, ground2 (linear), haze, key, ambient per setting."""
    rows = []
    for name in SETTINGS:
        look = LOOKS[name]
        rgb = torch.tensor([*look.zenith, *look.horizon, *look.ground, *look.ground2], dtype=torch.float32)
        rows.append(torch.cat((linear(rgb / 255), torch.tensor([look.haze, look.key, look.ambient]))))
    return torch.stack(rows, 1).to(device)


def looks_of(p: Pack) -> Tensor:
    """The look [15,B] of each scene: its setting's, moved towards the night's by its dusk."""
    known = table(p.dusk.device)
    night = take(known, torch.full_like(p.setting, SETTINGS.index("night")))
    return torch.lerp(take(known, p.setting), night, p.dusk)


def smooth(x: Tensor, low: float, high: float) -> Tensor:
    """Smooth step from 0 at `low` to 1 at `high`."""
    u = ((x - low) / (high - low)).clamp(0, 1)
    return u * u * (3 - 2 * u)


def sky(p: Pack, looks: Tensor, scene: Tensor, d: Tensor) -> Tensor:
    """Colour [3,R] of the sky along unit rays d of `scene` [R]."""
    t = smooth(d[2], -0.22, 0.12)
    # The light's colour tints the air a little, so that it shows in the whole picture.
    tint = take(1 + 0.35 * (p.tint - 1), scene)
    out = torch.lerp(take(looks[3:6], scene), take(looks[0:3], scene), t) * tint
    setting = take(p.setting, scene)
    dark = torch.where(p.setting == SETTINGS.index("night"), 1.0, p.dusk)
    night = torch.nonzero(take(dark, scene)).flatten()
    if night.numel():
        stars = _stars(take(d, night), take(p.phase, take(scene, night)))
        out[:, night] += stars * take(dark, take(scene, night))
    cloudy = torch.nonzero(setting == SETTINGS.index("meadow")).flatten()
    if cloudy.numel():
        out[:, cloudy] = _clouds(p, take(out, cloudy), take(d, cloudy), take(scene, cloudy))
    return out


def bearing(d: Tensor) -> Tensor:
    """Angle of d from the +y axis towards +x, -pi..pi; see `power` for why not atan2."""
    side = torch.atan(d[0].abs() / d[1].abs().clamp_min(1e-20))
    return torch.where(d[1] > 0, side, torch.pi - side) * torch.where(d[0] < 0, -1.0, 1.0)


def _stars(d: Tensor, phase: Tensor) -> Tensor:
    """Sparse soft stars, and a moon over the back of the stage."""
    angle = bearing(d) * 10.0
    u = angle + phase
    v = d[2] * 14.0
    cu, cv = u.floor(), v.floor()
    noise = torch.sin(cu * 127.1 + cv * 311.7 + phase.floor() * 7.3) * 43.7
    a, b = noise - noise.floor(), (noise * 7.7) - (noise * 7.7).floor()
    gap = (u - cu - 0.2 - 0.6 * (2.2 * (a - 0.55)).clamp(0, 1)).square() * 2.4 + (
        v - cv - 0.2 - 0.6 * b
    ).square()
    # Straight behind, where the angle jumps by a full turn, no star is cut in two.
    whole = (cu != (10 * torch.pi + phase).floor()) & (cu != (phase - 10 * torch.pi).floor())
    star = torch.exp(-gap * 90) * ((a > 0.55) & whole) * 0.5
    side = 0.19 * torch.sin(phase)
    moon = (d[0] - side).square() + (d[2] + 0.045).square()
    glow = torch.where(d[1] > 0, smooth(-moon, -0.0022, -0.0013) * 0.8 + torch.exp(-moon * 60) * 0.05, 0.0)
    return (star + glow) * d.new_tensor([[1.0], [0.97], [0.86]])


def _clouds(p: Pack, base: Tensor, d: Tensor, scene: Tensor) -> Tensor:
    phase = take(p.phase, scene)
    u = bearing(d)
    wave = torch.sin(6.0 * u + phase) + torch.sin(11.0 * u - 2 * phase + 9.0 * d[2])
    wave = wave + 1.6 * torch.sin(26.0 * d[2] + 1.7 * phase + 2.0 * torch.sin(3.0 * u + phase))
    return base + (1 - base) * (0.55 * (1 - take(p.dusk, scene)) * smooth(wave, 0.2, 2.6))


def ground(p: Pack, looks: Tensor, scene: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Albedo [3,R] and haze share [R] of the ground at points [3,R]."""
    x, y = points[0], points[1]
    phase, setting = take(p.phase, scene), take(p.setting, scene)
    wave = torch.sin(1.1 * x + 0.6 * y + phase) + torch.sin(0.8 * x - 1.3 * y + 2.1 * phase)
    sea = setting == SETTINGS.index("sea")
    ripple = torch.sin(4.6 * y + 0.5 * torch.sin(1.7 * x + phase) + phase) + 0.4 * wave
    wave = torch.where(sea, ripple, wave)
    mix = 0.5 + 0.25 * wave
    albedo = torch.lerp(take(looks[6:9], scene), take(looks[9:12], scene), mix.clamp(0, 1))
    rim = smooth((x * x + y * y).sqrt(), 2.5, GROUND_RADIUS)
    return albedo, rim * take(looks[12], scene)


def mirror(p: Pack, looks: Tensor, thing: Tensor, points: Tensor, d: Tensor) -> Tensor:
    """What a polished thing sees along d [3,R] from points [3,R]: a near room in the setting's colours.

    The room has finite size, so flat faces show gradients; it has a dark horizon, a soft box
    at the key light, and two upright light panels, which give every upright wall a streak.
    """
    scene = torch.div(thing, p.slots, rounding_mode="floor")
    d = d + 0.55 * (points - take(p.centre, thing)) / take(p.radius, thing)
    d = d * (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).rsqrt()
    up = d[2]
    low = 0.4 * take(looks[6:9], scene) + 0.16
    high = (
        0.55
        * torch.lerp(take(looks[3:6], scene) * 1.15, take(looks[0:3], scene) * 0.6, smooth(up, 0.0, 0.55))
        + 0.22
    )
    out = torch.lerp(low, high, smooth(up, 0.02, 0.1))
    out = out * (1 - 0.8 * (smooth(up, -0.3, -0.06) - smooth(up, 0.02, 0.1)))
    light = take(p.light, scene)
    near = d[0] * light[0] + d[1] * light[1] + d[2] * light[2]
    box = 2.2 * smooth(near, 0.84, 0.92) + 0.5 * smooth(up, 0.5, 0.6) * (1 - smooth(up, 0.78, 0.88))
    # Azimuth relative to the light: a bright panel near it, a dim one opposite, dark gaps beside.
    flat = ((d[0] * d[0] + d[1] * d[1]) * (light[0] * light[0] + light[1] * light[1])).clamp_min(1e-6).rsqrt()
    along = (d[0] * light[0] + d[1] * light[1]) * flat
    wall = smooth(up, -0.85, -0.6) * (1 - smooth(up, 0.2, 0.5))
    gap = smooth(along, 0.15, 0.6) - smooth(along, 0.86, 0.92)
    gap = gap + 0.8 * (smooth(-along, 0.2, 0.5) - smooth(-along, 0.7, 0.8))
    out = out * (1 - 0.7 * wall * gap)
    panel = wall * (1.4 * smooth(along, 0.88, 0.94) + 0.6 * smooth(-along, 0.75, 0.85))
    tint = take(p.tint, scene)
    return out * (0.6 + 0.4 * tint) + (box + panel) * tint * take(looks[13], scene).clamp_min(0.75)
