"""A procedural 3D world: rooms, yards, open country, streets and close-ups, with moving objects, seen by two cameras.

Everything follows from a seed. World axes are those of the camera convention (x right, y down, z forward) with the
ground at y = 0; a person is about 1.3 units tall. `make_scene` draws what there is, `source_path` and `target_path`
where the cameras go, and `raycast.render_view` records it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.world.cameras import source_path, target_path
from pipeline.world.materials import Track, footprint_of, make_volume
from pipeline.world.objects import make_object, passing_behind, phrase_of
from pipeline.world.places import MAKE_PLACE, PLACES
from pipeline.world.raycast import Light, Part, Plane, Scene, Solid, View, render_view
from pipeline.world.textures import make_texture


@dataclass(frozen=True, eq=False)
class Sample:
    """The same moments from two camera paths; the target starts at the source's first pose in most samples."""

    seed: int
    source: View
    target: View
    caption: str
    scene: Scene


def render_sample(
    seed: int,
    *,
    frames: int = 17,
    size: tuple[int, int] = (128, 208),
    device: str | torch.device = "cpu",
    supersample: int = 2,
    move: str | None = None,
) -> Sample:
    """A scene of `seed` with its source and target recording, each `frames` long at `size` = (H, W).

    move: of `geometry.PRESETS`, how the target's camera goes; None for one that the seed draws.
    """
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, frames, device)
    source, words = source_path(rng, scene, frames, size)
    target = target_path(rng, source, scene, move)
    scene = replace(scene, caption=f"{scene.caption}, {words}")
    source_view = render_view(scene, source, size, supersample=supersample)
    target_view = render_view(scene, target, size, supersample=supersample)
    return Sample(seed, source_view, target_view, scene.caption, scene)


def make_scene(
    rng: np.random.Generator,
    frames: int,
    device: str | torch.device = "cpu",
    *,
    place: str | None = None,
    passing: bool | None = None,
) -> Scene:
    """Draw surroundings, objects with motions and light; `place` and `passing` (behind something) can be forced."""
    kind = str(rng.choice(list(PLACES), p=list(PLACES.values())))
    kind = place or kind
    where = MAKE_PLACE[kind](rng, device)
    passes = rng.uniform() < 0.3
    passes = passes if passing is None else passing
    scenery, tracks = list(where.scenery), [footprint_of(part) for part in where.scenery]
    tracks = [t for t in tracks if t.reach < 1.5]
    eye = where.viewpoint.eye
    tracks.append(Track(np.array([[eye[0], eye[2]]]), 0.9 * where.size))
    solids: list[Solid] = []
    named: list[str] = []
    described = 0
    if passes:
        front, mover, words, apart = passing_behind(rng, frames, where, device)
        solids += [s for s in (front, mover) if isinstance(s, Solid)]
        scenery = [
            p for p in scenery if all(footprint_of(p).clear_of(t) for t in apart) or footprint_of(p).reach >= 1.5
        ]
        scenery += [front] if isinstance(front, Part) else []
        tracks += apart
        named.append(words)
        described = len(solids)
    for _ in range(int(rng.integers(1, 5)) if passes else int(rng.integers(2, 7))):
        solid = make_object(rng, kind, frames, where, tracks, device)
        if solid is not None:
            solids.append(solid)
    for _ in range(20):  # a crowded place may have had no room so far
        solid = None if solids else make_object(rng, kind, frames, where, tracks, device)
        solids += [] if solid is None else [solid]
    light, sky, light_words = _light(rng, kind, where.planes, device)
    others = sorted(solids[described:], key=lambda s: s.motion == "still")
    named += [phrase_of(s) for s in others[: 3 - 2 * len(named)]]
    caption = f"{' and '.join(named)} {where.words}" if named else f"an empty scene {where.words}"
    return Scene(
        solids=tuple(solids),
        scenery=tuple(scenery),
        planes=where.planes,
        sky=sky,
        light=light,
        viewpoint=where.viewpoint,
        caption=" ".join(f"{caption} {light_words}".split()),
    )


def _light(rng: np.random.Generator, place: str, planes: tuple[Plane, ...], device) -> tuple[Light, Tensor, str]:
    """A time of day with its weather, or the lamps of a room; the sky and the words for them."""
    elevation, azimuth = rng.uniform(0.5, 1.4), rng.uniform(0, 2 * math.pi)
    warmth, fog, lamp = rng.uniform(-0.1, 0.1), 0.0, None
    if place == "room":
        kind = str(rng.choice(["day", "lamp", "dim"], p=[0.6, 0.28, 0.12]))
        strength, ambient = rng.uniform(0.35, 0.8), rng.uniform(0.38, 0.6)
        if kind != "day":
            lamp = (rng.uniform(-2, 2), -2.6, rng.uniform(2, 5))
            warmth, strength, ambient = rng.uniform(0.03, 0.2), rng.uniform(0.6, 1.0), rng.uniform(0.28, 0.48)
        if kind == "dim":
            strength, ambient = 0.65 * strength, 0.65 * ambient
        words = {"day": "", "lamp": "in lamp light", "dim": "in dim light"}[kind]
        zenith = clouds = horizon = np.array([0.6, 0.7, 0.8])
    else:
        kind = str(rng.choice(["sun", "overcast", "dusk", "night", "fog"], p=[0.5, 0.2, 0.14, 0.06, 0.1]))
        haze = rng.uniform(0.0, 0.02) * (rng.uniform() < 0.6)
        if kind == "sun":
            strength, ambient = rng.uniform(0.5, 0.95), rng.uniform(0.32, 0.55)
            zenith = np.array([0.28, 0.5, 0.85]) * rng.uniform(0.6, 1.05)
            clouds, horizon = np.array([0.92, 0.94, 0.96]), np.array([0.72, 0.82, 0.93]) * rng.uniform(0.8, 1.03)
        elif kind in ("overcast", "fog"):
            strength, ambient, warmth = rng.uniform(0.08, 0.25), rng.uniform(0.55, 0.85), 0.4 * warmth
            grey = rng.uniform(0.55, 0.95)
            zenith, clouds = grey * np.array([0.86, 0.89, 0.95]), grey * np.array([1.0, 1.0, 1.0])
            horizon = grey * rng.uniform(0.9, 1.05) * np.array([0.97, 0.99, 1.0])
            haze = rng.uniform(0.03, 0.12) if kind == "fog" else haze
        elif kind == "dusk":
            elevation, warmth = rng.uniform(0.2, 0.5), rng.uniform(0.12, 0.3)
            strength, ambient = rng.uniform(0.4, 0.75), rng.uniform(0.24, 0.4)
            zenith, clouds = np.array([0.22, 0.28, 0.5]) * rng.uniform(0.6, 1.2), np.array([0.75, 0.45, 0.4])
            horizon = np.array([0.95, 0.62, 0.38]) * rng.uniform(0.7, 1.0)
        else:
            strength, ambient, warmth = rng.uniform(0.15, 0.3), rng.uniform(0.2, 0.3), rng.uniform(-0.25, -0.1)
            zenith, clouds = np.array([0.03, 0.04, 0.1]), np.array([0.1, 0.11, 0.16])
            horizon = np.array([0.1, 0.11, 0.17]) * rng.uniform(0.6, 1.4)
        fog = haze
        words = {"sun": "", "overcast": "on a grey day", "dusk": "at dusk", "night": "at night", "fog": "in fog"}[kind]
    # like a camera's automatic exposure, but half as eager: dark scenes stay darker
    surroundings = np.mean([float(p.material.texture.mean()) for p in planes[:2]]) * (ambient + 0.5 * strength)
    exposure = float(np.clip((0.4 / surroundings) ** 0.65, 0.85, 2.4))
    strength, ambient = exposure * strength, exposure * ambient
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    cosine = math.cos(elevation)
    tensor = lambda v: torch.tensor(np.asarray(v), dtype=torch.float32, device=device)
    light = Light(
        direction=tensor([cosine * math.cos(azimuth), -math.sin(elevation), cosine * math.sin(azimuth)]),
        colour=tensor(strength * tint),
        ambient=tensor(ambient * (2 - tint)),
        horizon=tensor(np.clip(horizon, 0, 1)),
        fog=float(fog),
        lamp=lamp,
        vignette=float(rng.uniform(0.04, 0.15) * (rng.uniform() < 0.3)),
    )
    palette = np.clip(np.stack([zenith, clouds]) + rng.normal(0, 0.02, (2, 3)), 0, 1).astype(np.float32)
    sky = make_texture(rng, str(rng.choice(["noise", "marble", "plain"], p=[0.6, 0.1, 0.3])), palette)
    return light, make_volume(sky, device), words
