"""Parts and surfaces from which things and places are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from pipeline.world.raycast import Material, Part
from pipeline.world.textures import COLOURS, make_texture, mip_volume, natural_palette

PATTERN_WORDS = {
    "plain": "",
    "noise": "mottled ",
    "leaves": "speckled ",
    "stripes": "striped ",
    "checks": "chequered ",
    "tiles": "tiled ",
    "dots": "dotted ",
    "marble": "marbled ",
    "bricks": "brick ",
    "wood": "wooden ",
    "grass": "grassy ",
    "gradient": "shaded ",
    "cracks": "cracked ",
    "brushed": "metal ",
    "pebbles": "pebbly ",
    "windows": "windowed ",
}


@dataclass(frozen=True, eq=False)
class Track:
    """Where an object is: positions over time on the ground plane (x, z), and how far it reaches around them."""

    at: np.ndarray
    reach: float

    def clear_of(self, other: Track) -> bool:
        return bool((np.hypot(*(self.at - other.at).T) > self.reach + other.reach + 0.05).all())


def make_volume(texture: np.ndarray, device) -> Tensor:
    return torch.from_numpy(mip_volume(texture)).to(device)


def make_surface(
    rng: np.random.Generator, kind: str, scale: float, device, palette=None, gloss: float = 0.0
) -> Material:
    """A material of muted natural colours, or of `palette`."""
    palette = natural_palette(rng) if palette is None else palette
    return Material(make_volume(make_texture(rng, kind, palette), device), float(scale), float(gloss))


def make_paint(rng: np.random.Generator, colour: str, kind: str, device, scale=None, gloss: float = 0.0) -> Material:
    """A material of which all shades are called `colour`."""
    base = np.array(COLOURS[colour], np.float32)
    accent = base * 0.55 if rng.uniform() < 0.6 else base + (1 - base) * 0.5
    if kind == "windows":
        accent = base + (1 - base) * 0.6
    palette = np.clip(np.stack([base, accent, base * 0.8, base * 1.15]), 0, 1).astype(np.float32)
    return make_surface(rng, kind, rng.uniform(0.5, 1.2) if scale is None else scale, device, palette, gloss)


def tones_of(rng: np.random.Generator, *colours: tuple[float, float, float], spread: float = 0.12) -> np.ndarray:
    """A palette of varied brightness around the given colours: (N, 3)."""
    palette = np.array(colours, np.float32) * rng.uniform(0.75, 1.25)
    palette = np.concatenate([palette, palette * rng.uniform(0.6, 1.3, (3, 1))[: len(palette)]])
    return np.clip(palette + rng.normal(0, spread / 3, palette.shape), 0.02, 0.98).astype(np.float32)


def part_at(shape: str, extent, at, material: Material, turn: Rotation | None = None, casts: bool = True) -> Part:
    """A part at rest whose centre is `at`."""
    pose = np.eye(4)
    pose[:3, 3] = at
    if turn is not None:
        pose[:3, :3] = turn.as_matrix()
    world_from_part = torch.from_numpy(pose).float()[None].to(material.texture.device)
    width, height, depth = (float(e) for e in extent)
    return Part(shape, (width, height, depth), world_from_part, material, casts)


def carried_along(parts: list[Part], poses: np.ndarray) -> tuple[Part, ...]:
    """The parts of an object at rest at the origin, carried along `poses` (T, 4, 4)."""
    carried = torch.from_numpy(poses).float()
    return tuple(
        replace(p, world_from_part=(carried.to(p.world_from_part) @ p.world_from_part).contiguous()) for p in parts
    )


def footprint_of(part: Part) -> Track:
    reach = math.hypot(part.extent[0], part.extent[2]) if part.shape == "box" else max(part.extent[0], part.extent[2])
    return Track(part.world_from_part[:, (0, 2), 3].cpu().numpy().astype(float), reach)


def tilt_of(axis: str, angle: float) -> Rotation:
    return Rotation.from_euler(axis, angle)


def make_tree(rng: np.random.Generator, tall: float, bark: Material, crown: Material) -> list[Part]:
    """A leafy tree or a fir at the origin."""
    if rng.uniform() < 0.3:
        low = 0.15 * tall
        parts = [part_at("cylinder", (0.05 * tall, low / 2, 0.05 * tall), (0, -low / 2, 0), bark, casts=False)]
        for k in range(2):
            wide, half = (0.28 - 0.08 * k) * tall, 0.28 * tall
            parts.append(part_at("cone", (wide, half, wide), (0, -low - half - 0.28 * k * tall, 0), crown))
        return parts
    trunk, wide = tall * rng.uniform(0.3, 0.5), tall * rng.uniform(0.2, 0.32)
    parts = [part_at("cylinder", (0.04 * tall, trunk / 2, 0.04 * tall), (0, -trunk / 2, 0), bark)]
    for _ in range(int(rng.integers(1, 4))):
        shift = rng.uniform(-0.5, 0.5, 3) * wide * np.array([1, 0.5, 1]) * (len(parts) > 1)
        size = wide * rng.uniform(0.7, 1.0, 3)
        parts.append(part_at("egg", size, np.array([0, -trunk - 0.7 * wide, 0]) + shift, crown))
    return parts
