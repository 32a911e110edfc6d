"""Primitive solids and where rays meet them.

Every function takes rays in the solid's own frame (origin `o` (3, T), direction `d` (3, T, H, W); y down, the solid
centred at the origin) and the half extents, and returns the ray parameter of the first hit (inf where there is none)
and the unit normal there, (T, H, W) and (3, T, H, W).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RING_HOLE = 0.6  # inner over outer radius


def norm(v: Tensor) -> Tensor:
    """Length of the vectors along the first axis."""
    return (v * v).sum(0).sqrt()  # several times faster than torch.linalg.vector_norm over a leading axis


def _intersect_ellipsoid(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    e = torch.tensor(extent, dtype=d.dtype, device=d.device)
    so, sd = o / e[:, None], d / e[:, None, None, None]
    a = (sd * sd).sum(0)
    b = (so[:, :, None, None] * sd).sum(0)
    c = ((so * so).sum(0) - 1)[:, None, None]
    disc = b * b - a * c
    t = torch.where(disc > 0, (-b - disc.clamp(min=0).sqrt()) / a, math.inf)
    p = torch.where(disc > 0, t, 0.0) * sd + so[:, :, None, None]
    n = p / e[:, None, None, None]
    return t, n / norm(n).clamp(min=1e-6)


def _intersect_box(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    e = torch.tensor(extent, dtype=d.dtype, device=d.device)[:, None, None, None]
    d = torch.where(d.abs() < 1e-9, 1e-9, d)
    o = o[:, :, None, None]
    near = (-d.sign() * e - o) / d
    far = (d.sign() * e - o) / d
    t, axis = near.max(0)
    hit = (t < far.amin(0)) & (t > 0)
    n = F.one_hot(axis, 3).movedim(-1, 0) * -d.sign()
    return torch.where(hit, t, math.inf), n


def _intersect_cylinder(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    r, h = extent[0], extent[1]
    return _round(o, d, r, r, h)


def _intersect_cone(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    return _round(o, d, 0.02, extent[0], extent[1])


def _intersect_ring(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    """A pipe around y: outer and inner wall, and the annuli between them."""
    return _round(o, d, extent[0], extent[0], extent[1], hole=RING_HOLE * extent[0])


def _intersect_pill(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    """A cylinder around y with half balls at its ends."""
    r, h = extent[0], max(extent[1] - extent[0], 1e-3)
    best, n = _round(o, d, r, r, h)
    for end in (-h, h):
        shift = o - torch.tensor([0.0, end, 0.0], dtype=o.dtype, device=o.device)[:, None]
        t, ball = _intersect_ellipsoid(shift, d, (r, r, r))
        closer = (t > 1e-3) & (t < best)
        best, n = torch.where(closer, t, best), torch.where(closer, ball, n)
    return best, n


def _intersect_pyramid(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    """Four sides that meet at (0, -h, 0), on a base at y = h."""
    a, h, b = extent
    sides = [(2 * h, -a, 0.0), (-2 * h, -a, 0.0), (0.0, -b, 2 * h), (0.0, -b, -2 * h), (0.0, 1.0, 0.0)]
    return _convex(o, d, sides, [a * h, a * h, b * h, b * h, h])


def _intersect_gable(o: Tensor, d: Tensor, extent) -> tuple[Tensor, Tensor]:
    """A roof with its ridge along z at y = -h."""
    a, h, b = extent
    sides = [(2 * h, -a, 0.0), (-2 * h, -a, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)]
    return _convex(o, d, sides, [a * h, a * h, b, b, h])


def _convex(o: Tensor, d: Tensor, normals: list, offsets: list) -> tuple[Tensor, Tensor]:
    """The intersection of the half-spaces normal·p <= offset."""
    entry = torch.full_like(d[0], -math.inf)
    leave = torch.full_like(d[0], math.inf)
    n = torch.zeros_like(d)
    for normal, offset in zip(normals, offsets, strict=True):
        length = math.hypot(*normal)
        side = torch.tensor(normal, dtype=d.dtype, device=d.device) / length
        speed = torch.einsum("i,ithw->thw", side, d)
        speed = torch.where(speed.abs() < 1e-9, 1e-9, speed)
        t = (offset / length - side @ o)[:, None, None] / speed
        later = (speed < 0) & (t > entry)
        entry = torch.where(later, t, entry)
        n = torch.where(later, side[:, None, None, None], n)
        leave = torch.where((speed > 0) & (t < leave), t, leave)
    return torch.where((entry < leave) & (entry > 0), entry, math.inf), n


def _round(o: Tensor, d: Tensor, top: float, bottom: float, h: float, hole: float = 0.0) -> tuple[Tensor, Tensor]:
    """A truncated cone around y, radius `top` at y = -h (up) and `bottom` at y = +h, with caps; a cylindrical hole."""
    slope, middle = (bottom - top) / (2 * h), (bottom + top) / 2
    ox, oy, oz = (c[:, None, None] for c in o)
    dx, dy, dz = d
    dy = torch.where(dy.abs() < 1e-9, 1e-9, dy)
    ro, rd = middle + slope * oy, slope * dy
    a = dx * dx + dz * dz - rd * rd
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    b = ox * dx + oz * dz - ro * rd
    c = ox * ox + oz * oz - ro * ro
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt()
    best = torch.full_like(dx, math.inf)
    n = torch.zeros_like(d)
    for t in ((-b - root) / a, (-b + root) / a):
        y = oy + t * dy
        ok = (disc > 0) & (y.abs() <= h) & (t > 1e-3) & (t < best) & (ro + t * rd > 0)
        x, zz = ox + t * dx, oz + t * dz
        radius = (middle + slope * y).clamp(min=1e-4)
        side = torch.stack([x / radius, torch.full_like(x, -slope), zz / radius]) / math.sqrt(1 + slope * slope)
        best = torch.where(ok, t, best)
        n = torch.where(ok, side, n)
    for y, radius, sign in ((-h, top, -1.0), (h, bottom, 1.0)):
        t = (y - oy) / dy
        x, zz = ox + t * dx, oz + t * dz
        distance = x * x + zz * zz
        ok = (distance <= radius * radius) & (distance >= hole * hole) & (t > 1e-3) & (t < best)
        best = torch.where(ok, t, best)
        cap = torch.tensor([0.0, sign, 0.0], dtype=d.dtype, device=d.device)[:, None, None, None]
        n = torch.where(ok, cap, n)
    if hole > 0:  # the far side of the hole, seen from within
        a = dx * dx + dz * dz
        b, c = ox * dx + oz * dz, ox * ox + oz * oz - hole * hole
        disc = b * b - a * c
        t = (-b + disc.clamp(min=0).sqrt()) / a.clamp(min=1e-9)
        ok = (disc > 0) & ((oy + t * dy).abs() <= h) & (t > 1e-3) & (t < best)
        inward = -torch.stack([ox + t * dx, torch.zeros_like(t), oz + t * dz]) / hole
        best, n = torch.where(ok, t, best), torch.where(ok, inward, n)
    return best, n


INTERSECT = {
    "ball": _intersect_ellipsoid,
    "egg": _intersect_ellipsoid,
    "box": _intersect_box,
    "cylinder": _intersect_cylinder,
    "cone": _intersect_cone,
    "pyramid": _intersect_pyramid,
    "pill": _intersect_pill,
    "ring": _intersect_ring,
    "gable": _intersect_gable,
}
