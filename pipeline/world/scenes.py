"""A procedural 3D world: rooms, yards, open country, streets and close-ups, with moving objects, seen by two cameras.

Everything follows from a seed. World axes are those of the camera convention (x right, y down, z forward) with the
ground at y = 0; a person is about 1.3 units tall. `make_scene` draws what there is, `source_path` and `target_path`
where the cameras go, and `raycast.render_view` records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from pipeline.camera.geometry import PRESETS, CameraPath, preset_motion
from pipeline.world.raycast import FAR, Light, Material, Part, Plane, Scene, Solid, View, Viewpoint, render_view
from pipeline.world.textures import COLOURS, KINDS, PATTERNS, make_texture, mip_volume, natural_palette, power_noise

__all__ = ["COMPOUNDS", "FAR", "MOTIONS", "PATTERN_WORDS", "SHAPES", "make_scene", "render_sample", "render_view"]

SHAPES = ("ball", "egg", "box", "cylinder", "cone", "pyramid", "pill", "ring")
MOTIONS = {
    "still": "stands",
    "roll": "rolls",
    "slide": "slides",
    "bounce": "bounces",
    "swing": "swings",
    "spin": "spins",
    "circle": "circles",
    "float": "floats",
    "drive": "drives",
    "walk": "walks",
    "crawl": "crawls",
    "pass": "passes behind",
}
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
PLACES = {"room": 0.3, "yard": 0.16, "country": 0.2, "street": 0.18, "close-up": 0.16}  # with their frequencies
GLOSSY = 0.25  # from here on a surface is called glossy


@dataclass(frozen=True, eq=False)
class Sample:
    """The same moments from two camera paths; the target starts at the source's first pose in most samples."""

    seed: int
    source: View
    target: View
    caption: str
    scene: Scene


@dataclass(frozen=True, eq=False)
class Place:
    """Surroundings without the objects. `bounds` (x from, to, z from, to) is where objects may be."""

    words: str
    viewpoint: Viewpoint
    planes: tuple[Plane, ...]
    scenery: tuple[Part, ...]
    bounds: tuple[float, float, float, float]
    size: float = 1.0  # of the objects
    road: tuple[float, float] | None = None  # the direction (x, z) in which vehicles drive


@dataclass(frozen=True, eq=False)
class Track:
    """Where an object is: positions over time on the ground plane (x, z), and how far it reaches around them."""

    at: np.ndarray
    reach: float

    def clear_of(self, other: Track) -> bool:
        return bool((np.hypot(*(self.at - other.at).T) > self.reach + other.reach + 0.05).all())


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

    move: of `camera.PRESETS`, how the target's camera goes; None for one that the seed draws.
    """
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, frames, device)
    source, words = source_path(rng, scene, frames, size)
    target = target_path(rng, source, scene, move)
    scene = replace(scene, caption=f"{scene.caption}, {words}")
    source_view = render_view(scene, source, size, supersample=supersample)
    target_view = render_view(scene, target, size, supersample=supersample)
    return Sample(seed, source_view, target_view, scene.caption, scene)


# --- the scene --------------------------------------------------------------------------------------------------------


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
    where = _PLACES[kind](rng, device)
    passes = rng.uniform() < 0.3
    passes = passes if passing is None else passing
    scenery, tracks = list(where.scenery), [_footprint(part) for part in where.scenery]
    tracks = [t for t in tracks if t.reach < 1.5]
    eye = where.viewpoint.eye
    tracks.append(Track(np.array([[eye[0], eye[2]]]), 0.9 * where.size))
    solids: list[Solid] = []
    named: list[str] = []
    described = 0
    if passes:
        front, mover, words, apart = _passing_behind(rng, frames, where, device)
        solids += [s for s in (front, mover) if isinstance(s, Solid)]
        scenery = [p for p in scenery if all(_footprint(p).clear_of(t) for t in apart) or _footprint(p).reach >= 1.5]
        scenery += [front] if isinstance(front, Part) else []
        tracks += apart
        named.append(words)
        described = len(solids)
    for _ in range(int(rng.integers(1, 5)) if passes else int(rng.integers(2, 7))):
        solid = _object(rng, kind, frames, where, tracks, device)
        if solid is not None:
            solids.append(solid)
    for _ in range(20):  # a crowded place may have had no room so far
        solid = None if solids else _object(rng, kind, frames, where, tracks, device)
        solids += [] if solid is None else [solid]
    light, sky, light_words = _light(rng, kind, where.planes, device)
    others = sorted(solids[described:], key=lambda s: s.motion == "still")
    named += [_phrase(s) for s in others[: 3 - 2 * len(named)]]
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


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def object_name(solid: Solid) -> str:
    """Such as "a glossy red striped ball", as captions say it."""
    if solid.shape == "person":
        return f"a person in {solid.colour}"
    glossy = "glossy " if solid.parts[0].material.gloss > GLOSSY else ""
    return _article(f"{glossy}{solid.colour} {PATTERN_WORDS[solid.pattern]}{solid.shape}")


def _phrase(solid: Solid) -> str:
    return f"{object_name(solid)} {MOTIONS[solid.motion]}"


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
    return light, _volume(sky, device), words


# --- materials and parts ----------------------------------------------------------------------------------------------


def _volume(texture: np.ndarray, device) -> Tensor:
    return torch.from_numpy(mip_volume(texture)).to(device)


def _surface(rng: np.random.Generator, kind: str, scale: float, device, palette=None, gloss: float = 0.0) -> Material:
    """A material of muted natural colours, or of `palette`."""
    palette = natural_palette(rng) if palette is None else palette
    return Material(_volume(make_texture(rng, kind, palette), device), float(scale), float(gloss))


def _paint(rng: np.random.Generator, colour: str, kind: str, device, scale=None, gloss: float = 0.0) -> Material:
    """A material of which all shades are called `colour`."""
    base = np.array(COLOURS[colour], np.float32)
    accent = base * 0.55 if rng.uniform() < 0.6 else base + (1 - base) * 0.5
    if kind == "windows":
        accent = base + (1 - base) * 0.6
    palette = np.clip(np.stack([base, accent, base * 0.8, base * 1.15]), 0, 1).astype(np.float32)
    return _surface(rng, kind, rng.uniform(0.5, 1.2) if scale is None else scale, device, palette, gloss)


def _tones(rng: np.random.Generator, *colours: tuple[float, float, float], spread: float = 0.12) -> np.ndarray:
    """A palette of varied brightness around the given colours: (N, 3)."""
    palette = np.array(colours, np.float32) * rng.uniform(0.75, 1.25)
    palette = np.concatenate([palette, palette * rng.uniform(0.6, 1.3, (3, 1))[: len(palette)]])
    return np.clip(palette + rng.normal(0, spread / 3, palette.shape), 0.02, 0.98).astype(np.float32)


def _part(shape: str, extent, at, material: Material, turn: Rotation | None = None, casts: bool = True) -> Part:
    """A part at rest whose centre is `at`."""
    pose = np.eye(4)
    pose[:3, 3] = at
    if turn is not None:
        pose[:3, :3] = turn.as_matrix()
    world_from_part = torch.from_numpy(pose).float()[None].to(material.texture.device)
    return Part(shape, tuple(float(e) for e in extent), world_from_part, material, casts)


def _moved(parts: list[Part], poses: np.ndarray) -> tuple[Part, ...]:
    """The parts of an object at rest at the origin, carried along `poses` (T, 4, 4)."""
    carried = torch.from_numpy(poses).float()
    return tuple(
        replace(p, world_from_part=(carried.to(p.world_from_part) @ p.world_from_part).contiguous()) for p in parts
    )


def _footprint(part: Part) -> Track:
    reach = math.hypot(part.extent[0], part.extent[2]) if part.shape == "box" else max(part.extent[0], part.extent[2])
    return Track(part.world_from_part[:, (0, 2), 3].cpu().numpy().astype(float), reach)


def _tilt(axis: str, angle: float) -> Rotation:
    return Rotation.from_euler(axis, angle)


def _tree(rng: np.random.Generator, tall: float, bark: Material, crown: Material) -> list[Part]:
    """A leafy tree or a fir at the origin."""
    if rng.uniform() < 0.3:
        low = 0.15 * tall
        parts = [_part("cylinder", (0.05 * tall, low / 2, 0.05 * tall), (0, -low / 2, 0), bark, casts=False)]
        for k in range(2):
            wide, half = (0.28 - 0.08 * k) * tall, 0.28 * tall
            parts.append(_part("cone", (wide, half, wide), (0, -low - half - 0.28 * k * tall, 0), crown))
        return parts
    trunk, wide = tall * rng.uniform(0.3, 0.5), tall * rng.uniform(0.2, 0.32)
    parts = [_part("cylinder", (0.04 * tall, trunk / 2, 0.04 * tall), (0, -trunk / 2, 0), bark)]
    for _ in range(int(rng.integers(1, 4))):
        shift = rng.uniform(-0.5, 0.5, 3) * wide * np.array([1, 0.5, 1]) * (len(parts) > 1)
        size = wide * rng.uniform(0.7, 1.0, 3)
        parts.append(_part("egg", size, np.array([0, -trunk - 0.7 * wide, 0]) + shift, crown))
    return parts


# --- objects ----------------------------------------------------------------------------------------------------------


def _object(rng, place: str, frames: int, where: Place, tracks: list[Track], device) -> Solid | None:
    """One object standing or moving somewhere free of the others and in view; None if no place was found."""
    compounds = _COMPOUNDS_OF[place]
    if rng.uniform() < (0.6 if place == "street" else 0.3):
        shape, make = str(rng.choice(compounds)), _compound
    else:
        shape, make = str(rng.choice(SHAPES)), _simple
    for _ in range(16):
        start = _spot(rng, where)
        way = None
        if where.road is not None and shape in ("car", "bus"):
            way = rng.choice([-1, 1]) * rng.uniform(1, 6) * np.array(where.road)
        build, track = make(rng, shape, start, frames, where.size, way=way)
        if _inside(track, where) and all(track.clear_of(other) for other in tracks):
            tracks.append(track)
            return build(device)
    return None


def _inside(track: Track, where: Place) -> bool:
    (x0, z0), (x1, z1) = track.at.min(0) - track.reach, track.at.max(0) + track.reach
    left, right, near, far = where.bounds
    return left < x0 and x1 < right and near < z0 and z1 < far


def _spot(rng: np.random.Generator, where: Place) -> np.ndarray:
    """A point (x, z) on the ground in the view of the place's camera."""
    eye, target = np.array(where.viewpoint.eye), np.array(where.viewpoint.target)
    away = float(np.hypot(*(target - eye)[[0, 2]]))
    forward = (target - eye)[[0, 2]] / away
    side = np.array([forward[1], -forward[0]])
    depth = rng.uniform(0.62, 1.55) * away
    across = rng.uniform(-0.85, 0.85) * math.tan(math.radians(where.viewpoint.angle) / 2)
    return eye[[0, 2]] + depth * (forward + across * side)


Draft = tuple[Callable[[torch.device], Solid], Track]  # an object whose textures are made once its place is found


def _simple(rng, shape: str, start: np.ndarray, frames: int, size: float, motion: str = "", way=None) -> Draft:
    """A single primitive; its motion and the way (x, z) that it goes are drawn unless they are given."""
    r = rng.uniform(0.22, 0.6) * size
    extent = {
        "ball": (r, r, r),
        "egg": (r * rng.uniform(0.6, 1.0), r, r * rng.uniform(0.6, 1.0)),
        "box": (r * rng.uniform(0.5, 1.1), r * rng.uniform(0.5, 1.4), r * rng.uniform(0.5, 1.1)),
        "cylinder": (r * 0.7, r * rng.uniform(0.6, 1.7), r * 0.7),
        "cone": (r * 0.8, r * rng.uniform(0.8, 1.6), r * 0.8),
        "pyramid": (r * 0.9, r * rng.uniform(0.7, 1.3), r * 0.9),
        "pill": (r * 0.55, r * rng.uniform(0.9, 1.4), r * 0.55),
        "ring": (r, r * rng.uniform(0.15, 0.4), r),
    }[shape]
    rolls = ["roll"] * 4 if shape in ("ball", "ring") else ["roll"] if shape == "cylinder" else []
    allowed = ["still", "still", "slide", "bounce", "swing", "spin", "circle", "float", *rolls]
    word = motion or str(rng.choice(allowed))
    motion = ("roll" if rolls else "slide") if word == "pass" else word
    upright = shape == "ring" or (shape == "cylinder" and motion == "roll")  # its axis lies along the ground
    low = extent[0] if upright else extent[1]
    poses, at = _motion(rng, motion, start, frames, size, low=low, upright=upright, way=way)
    colour = str(rng.choice(list(COLOURS)))
    pattern = str(rng.choice(KINDS, p=_SOLID_PATTERNS))
    gloss = float(rng.choice([0.0, 0.0, rng.uniform(0.1, 0.7)]))

    def build(device) -> Solid:
        material = _paint(rng, colour, pattern, device, scale=rng.uniform(0.5, 1.2) / size, gloss=gloss)
        return Solid(shape, colour, pattern, word, _moved([_part(shape, extent, (0, 0, 0), material)], poses))

    reach = max(extent) if motion in ("swing", "float") or upright else max(extent[0], extent[2])
    return build, Track(at, reach)


_SOLID_PATTERNS = np.array(
    [0.28, 0.1, 0.05, 0.12, 0.1, 0.05, 0.09, 0.06, 0.02, 0.04, 0.0, 0.03, 0.02, 0.04, 0.0, 0.0]
)  # in the order of KINDS


def _compound(rng, shape: str, start: np.ndarray, frames: int, size: float, motion: str = "", way=None) -> Draft:
    """A thing of several primitives that moves as one."""
    moves, reach = COMPOUNDS[shape]
    word = motion or str(rng.choice(moves))
    motion = moves[-1] if word == "pass" else word
    poses, at = _motion(rng, motion, start, frames, size, low=0.0, upright=False, way=way)
    scale = rng.uniform(0.8, 1.2) * (size if shape != "crab" else 1.2 * size)
    colour = str(rng.choice(list(COLOURS)))
    if shape == "tree":
        colour = str(rng.choice(["green", "green", "green", "orange", "brown"]))

    def build(device) -> Solid:
        parts = _BUILD[shape](rng, colour, scale, device)
        return Solid(shape, colour, "plain", word, _moved(parts, poses))

    return build, Track(at, reach * scale)


def _motion(rng, motion: str, start, frames: int, size: float, *, low: float, upright: bool, way) -> tuple:
    """Poses (T, 4, 4) and ground positions (T, 2) of an object that rests `low` above the ground.

    Objects look along their x axis. `way` (x, z) is the displacement of a mover, drawn here if None.
    """
    s = np.linspace(0, 1, frames) if frames > 1 else np.full(1, 0.5)
    heading = rng.uniform(0, 2 * math.pi)
    if way is None:
        far = {"drive": (1.0, 4.5), "crawl": (0.3, 1.0), "walk": (0.4, 1.6)}.get(motion, (0.4, 2.2))
        way = rng.uniform(*far) * np.array([math.cos(heading), 0.7 * math.sin(heading)])
        if motion not in ("drive", "walk"):
            way = way * size
    position = np.tile([start[0], -low, start[1]], (frames, 1)).astype(float)
    along = np.array([way[0], 0, way[1]])
    length = np.hypot(*way) + 1e-9
    yaw = rng.uniform(0, 2 * math.pi)
    base = Rotation.from_euler("y", np.full((frames, 1), yaw))
    if motion in ("drive", "walk", "roll") or upright:
        base = Rotation.from_euler("y", np.full((frames, 1), math.atan2(-way[1], way[0])))
    if upright:
        base = base * Rotation.from_euler("x", math.pi / 2)
    if motion in ("roll", "slide", "drive", "walk", "crawl"):
        position += (s - 0.5)[:, None] * along
    if motion == "roll":
        axis = np.cross([0.0, -1.0, 0.0], along / length)
        base = Rotation.from_rotvec((s * length / low)[:, None] * axis) * base
    elif motion == "walk":
        position[:, 1] -= 0.03 * np.abs(np.sin(s * length * 6))
        base = base * Rotation.from_euler("x", (0.05 * np.sin(s * length * 6))[:, None])
    elif motion == "crawl":
        base = base * Rotation.from_euler("y", (0.15 * np.sin(9 * s + heading))[:, None])
    elif motion == "bounce":
        phase, hops = rng.uniform(0, 1), rng.uniform(0.8, 2.0)
        position[:, 1] -= size * rng.uniform(0.3, 1.1) * np.abs(np.sin(math.pi * (s * hops + phase)))
        position += (s - 0.5)[:, None] * 0.5 * along
    elif motion == "swing":
        rope, angle = size * rng.uniform(1.0, 2.0), rng.uniform(0.25, 0.7)
        theta = angle * np.sin(2 * math.pi * (s * rng.uniform(0.4, 1.1) + rng.uniform()))
        position[:, 0] += rope * np.sin(theta)
        position[:, 1] -= size * rng.uniform(0.1, 0.7) + rope * (1 - np.cos(theta))
        base = Rotation.from_euler("z", -theta[:, None]) * base
    elif motion == "spin":
        base = Rotation.from_euler("y", (s * rng.uniform(0.8, 4) * rng.choice([-1, 1]))[:, None]) * base
    elif motion == "float":
        axis = rng.normal(size=3)
        position[:, 1] -= size * (rng.uniform(0.35, 0.9) + 0.12 * np.sin(2 * math.pi * (s + rng.uniform())))
        position += (s - 0.5)[:, None] * 0.4 * along
        turns = (s * rng.uniform(0.3, 1.5))[:, None] * axis / np.linalg.norm(axis)
        base = Rotation.from_rotvec(turns) * base
    elif motion == "circle":
        phase = heading + s * rng.uniform(0.8, 3) * rng.choice([-1, 1])
        radius = size * rng.uniform(0.2, 0.6)
        position[:, 0] += radius * (np.cos(phase) - math.cos(heading))
        position[:, 2] += radius * (np.sin(phase) - math.sin(heading))
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = base.as_matrix()
    poses[:, :3, 3] = position
    return poses, position[:, [0, 2]]


def _passing_behind(rng, frames: int, where: Place, device) -> tuple[Part | Solid, Solid, str, list[Track]]:
    """Something that stands in front and an object whose way crosses the line from the camera through it, behind it.

    Returns the thing in front (scenery or a solid), the mover, the words for both and their tracks.
    """
    size, above = where.size, -where.viewpoint.eye[1] / where.size
    eye, target = (np.array(p)[[0, 2]] for p in (where.viewpoint.eye, where.viewpoint.target))
    forward = (target - eye) / np.hypot(*(target - eye))
    wide = float(np.clip(0.6 / math.tan(math.radians(where.viewpoint.angle) / 2), 0.85, 1.7))  # to be seen as a whole
    for _ in range(12):  # until nothing is in the way of the surroundings
        side = np.array([forward[1], -forward[0]])
        ray = forward + rng.uniform(-0.5, 0.5) * math.tan(math.radians(where.viewpoint.angle) / 2) * side
        ray = ray / np.hypot(*ray)
        distance = rng.uniform(1.9, 2.8) * size * wide * (1 + 0.35 * max(0.0, above - 1.2))
        stand = eye + distance * ray
        pillar = above > 1.3 or rng.uniform() < 0.4
        radius, half = rng.uniform(0.14, 0.35) * size, rng.uniform(0.7, 1.3) * size
        shape = str(rng.choice(["box", "cylinder"] if pillar else ["box", "cylinder", "egg"]))
        build_front, front_track = _simple(rng, shape, stand, frames, 0.8 * size, "still")
        if pillar:
            front_track = Track(stand[None], 1.42 * radius)
        shape = str(rng.choice(["ball", "ball", "ring", "box", "pill", "person", "car"]))
        gap = distance + front_track.reach + ((1.6 if shape == "car" else 0.75) + rng.uniform(0, 0.5)) * size
        reach = gap / distance * front_track.reach + rng.uniform(0.6, 1.0) * size  # to be seen before and after
        way = 2 * reach * np.array([ray[1], -ray[0]]) * rng.choice([-1, 1])
        centre = eye + gap * ray + rng.uniform(-0.1, 0.1) * way
        draft = _compound if shape in COMPOUNDS else _simple
        build, track = draft(rng, shape, centre, frames, size, "pass", way)
        if _inside(track, where) and _inside(front_track, where):
            break
    mover = build(device)
    if not pillar:
        front = build_front(device)
        return front, mover, f"{_phrase(mover)} {object_name(front)}", [front_track, track]
    colour, kind = str(rng.choice(["grey", "white", "brown", "red"])), str(rng.choice(["bricks", "plain", "cracks"]))
    shape = str(rng.choice(["cylinder", "box"]))
    post = _part(shape, (radius, half, radius), (stand[0], -half, stand[1]), _paint(rng, colour, kind, device))
    words = _article(f"{colour} {PATTERN_WORDS[kind]}pillar")
    return post, mover, f"{_phrase(mover)} {words}", [front_track, track]


def _build_table(rng, colour: str, k: float, device) -> list[Part]:
    paint = _paint(rng, colour, "wood", device)
    a, b, tall = 0.55 * k, 0.35 * k, 0.5 * k
    legs = [
        _part("cylinder", (0.04 * k, tall / 2, 0.04 * k), (x * 0.85 * a, -tall / 2, z * 0.85 * b), paint, casts=False)
        for x in (-1, 1)
        for z in (-1, 1)
    ]
    return [_part("box", (a, 0.04 * k, b), (0, -tall - 0.04 * k, 0), paint), *legs]


def _build_lamp(rng, colour: str, k: float, device) -> list[Part]:
    shade, metal = _paint(rng, colour, "plain", device), _paint(rng, "black", "brushed", device, gloss=0.3)
    tall = 1.1 * k
    return [
        _part("cone", (0.25 * k, 0.2 * k, 0.25 * k), (0, -tall, 0), shade),
        _part("cylinder", (0.025 * k, tall / 2, 0.025 * k), (0, -tall / 2, 0), metal),
        _part("cylinder", (0.18 * k, 0.025 * k, 0.18 * k), (0, -0.025 * k, 0), metal),
    ]


def _build_person(rng, colour: str, k: float, device) -> list[Part]:
    coat, trousers = _paint(rng, colour, "plain", device), _surface(rng, "noise", 1.0, device)
    skin = np.array([(0.85, 0.65, 0.52), (0.55, 0.38, 0.28), (0.35, 0.23, 0.17)])[rng.integers(3)]
    skin = _surface(rng, "plain", 1.0, device, np.stack([skin, 0.8 * skin]))
    stride, swing = rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.5)
    parts = [
        _part("pill", (0.17 * k, 0.3 * k, 0.13 * k), (0, -0.82 * k, 0), coat),
        _part("ball", (0.11 * k,) * 3, (0.01 * k, -1.24 * k, 0), skin),
    ]
    for side in (-1, 1):
        leg = (side * stride * 0.28 * k, -0.29 * k, side * 0.08 * k)
        arm = (side * swing * -0.22 * k, -0.82 * k, side * 0.21 * k)
        parts.append(_part("pill", (0.075 * k, 0.3 * k, 0.075 * k), leg, trousers, _tilt("z", -side * stride)))
        parts.append(_part("pill", (0.05 * k, 0.27 * k, 0.05 * k), arm, coat, _tilt("z", side * swing), casts=False))
    return parts


def _wheels(rng, half: float, width: float, radius: float, device) -> list[Part]:
    rubber = _paint(rng, "black", "plain", device)
    across = _tilt("x", math.pi / 2)
    return [
        _part("cylinder", (radius, width, radius), (x * half, -radius, 0), rubber, across, casts=False) for x in (-1, 1)
    ]


def _build_car(rng, colour: str, k: float, device) -> list[Part]:
    paint = _paint(rng, colour, "plain", device, gloss=0.4)
    glass = _surface(rng, "gradient", 0.6, device, _tones(rng, (0.12, 0.14, 0.17), (0.3, 0.34, 0.4)), gloss=0.5)
    long, wide, r = rng.uniform(0.8, 1.0) * k, 0.4 * k, 0.17 * k
    back = rng.uniform(-0.3, 0.0) * long
    return [
        _part("box", (long, 0.18 * k, wide), (0, -0.32 * k, 0), paint),
        _part("box", (0.5 * long, 0.15 * k, 0.88 * wide), (back, -0.63 * k, 0), glass, casts=False),
        _part("box", (0.45 * long, 0.02 * k, 0.85 * wide), (back, -0.8 * k, 0), paint),
        *_wheels(rng, 0.6 * long, 1.02 * wide, r, device),
    ]


def _build_bus(rng, colour: str, k: float, device) -> list[Part]:
    paint = _paint(rng, colour, "plain", device, gloss=0.3)
    glass = _surface(rng, "stripes", 0.7, device, _tones(rng, (0.12, 0.14, 0.17), (0.2, 0.22, 0.25)), gloss=0.5)
    long, tall, wide = rng.uniform(1.4, 1.9) * k, 0.58 * k, 0.5 * k
    return [
        _part("box", (long, tall, wide), (0, -0.12 * k - tall, 0), paint),
        _part("box", (0.96 * long, 0.4 * tall, 1.01 * wide), (0, -0.12 * k - 1.25 * tall, 0), glass, casts=False),
        _part("box", (1.005 * long, 0.42 * tall, 0.9 * wide), (0, -0.12 * k - 1.25 * tall, 0), glass, casts=False),
        *_wheels(rng, 0.65 * long, 1.015 * wide, 0.2 * k, device),
    ]


def _build_house(rng, colour: str, k: float, device) -> list[Part]:
    walls = _paint(rng, colour, "windows", device, scale=0.7 / k)
    roof = _surface(rng, "tiles", 1.5, device, _tones(rng, (0.45, 0.2, 0.14), (0.2, 0.1, 0.08)))
    door = _paint(rng, str(rng.choice(["brown", "blue", "green"])), "wood", device)
    a, b, tall, ridge = 0.6 * k, 0.7 * k, 0.4 * k, 0.25 * k
    return [
        _part("box", (a, tall, b), (0, -tall, 0), walls),
        _part("gable", (1.15 * a, ridge, 1.08 * b), (0, -2 * tall - ridge, 0), roof),
        _part("box", (0.02 * k, 0.26 * k, 0.13 * k), (a, -0.26 * k, 0), door, casts=False),
    ]


def _build_tree(rng, colour: str, k: float, device) -> list[Part]:
    bark = _paint(rng, "brown", "wood", device)
    crown = _paint(rng, colour, str(rng.choice(["noise", "leaves"])), device)
    return _tree(rng, 1.7 * k, bark, crown)


def _build_crab(rng, colour: str, k: float, device) -> list[Part]:
    shell = _paint(rng, colour, str(rng.choice(["noise", "plain", "leaves"])), device, gloss=rng.uniform(0, 0.4))
    legs, dark = _paint(rng, colour, "noise", device), _paint(rng, "black", "plain", device, gloss=0.6)
    parts = [_part("egg", (0.24 * k, 0.13 * k, 0.32 * k), (0, -0.2 * k, 0), shell)]
    for side in (-1, 1):
        for j in range(3):
            lean = _tilt("x", side * rng.uniform(0.7, 0.9))
            at = (0.14 * (j - 1) * k, -0.14 * k, side * 0.36 * k)
            parts.append(_part("pill", (0.035 * k, 0.19 * k, 0.035 * k), at, legs, lean, casts=False))
        parts.append(_part("egg", (0.16 * k, 0.07 * k, 0.08 * k), (0.3 * k, -0.13 * k, side * 0.24 * k), shell))
        parts.append(_part("ball", (0.035 * k,) * 3, (0.2 * k, -0.33 * k, side * 0.1 * k), dark, casts=False))
    return parts


# the motions of each compound, the usual one last, and how far it reaches around its middle at size 1
COMPOUNDS = {
    "tree": (("still",), 0.6),
    "table": (("still", "slide"), 0.66),
    "lamp": (("still", "slide"), 0.3),
    "person": (("still", "walk", "walk"), 0.3),
    "car": (("still", "drive", "drive"), 1.05),
    "bus": (("still", "drive", "drive"), 1.95),
    "house": (("still",), 1.0),
    "crab": (("still", "crawl", "crawl"), 0.55),
}
_BUILD = {
    "tree": _build_tree,
    "table": _build_table,
    "lamp": _build_lamp,
    "person": _build_person,
    "car": _build_car,
    "bus": _build_bus,
    "house": _build_house,
    "crab": _build_crab,
}
_COMPOUNDS_OF = {
    "room": ("table", "lamp", "person"),
    "yard": ("tree", "table", "person", "car", "house"),
    "country": ("tree", "person", "house", "car", "crab"),
    "street": ("car", "car", "bus", "bus", "person", "tree"),
    "close-up": ("crab",),
}


# --- places -----------------------------------------------------------------------------------------------------------


def _viewpoint(rng, heights: tuple[float, float], looks: tuple[float, float] = (0.2, 1.0)) -> Viewpoint:
    """A camera at the near end, more often low than high, looking along z and down on what happens there."""
    height = math.exp(rng.uniform(math.log(heights[0]), math.log(heights[1])))
    eye = (rng.uniform(-0.6, 0.6), -height, rng.uniform(-1.2, 0.2))
    target = (rng.uniform(-0.8, 0.8), -rng.uniform(*looks), rng.uniform(3.5, 5.5))
    return Viewpoint(eye, target, float(rng.uniform(35, 80)))


def _ground(rng, kind: str, scale: float, device, palette=None) -> Plane:
    gloss = rng.uniform(0.1, 0.4) * (rng.uniform() < 0.15)
    return Plane((0, -1, 0), 0.0, _surface(rng, kind, scale, device, palette, gloss), variation=rng.uniform(0, 0.8))


def _room(rng: np.random.Generator, device) -> Place:
    half, back, ceiling = rng.uniform(2.6, 6), rng.uniform(6, 11), rng.uniform(2.6, 5)
    floor, rear, side, top = (str(rng.choice(k)) for k in (_FLOORS, _WALLS, _WALLS, ("plain", "noise", "wood")))
    walls = _surface(rng, rear, rng.uniform(0.15, 0.5), device)
    sides = _surface(rng, side, rng.uniform(0.15, 0.5), device) if rng.uniform() < 0.5 else walls
    planes = (
        _ground(rng, floor, rng.uniform(0.15, 0.6), device),
        Plane((0, 0, -1), -back, walls),
        Plane((1, 0, 0), -half, sides),
        Plane((-1, 0, 0), -half, sides),
        Plane((0, 1, 0), -ceiling, _surface(rng, top, rng.uniform(0.15, 0.5), device)),
        Plane((0, 0, 1), -8.0, walls),  # behind the camera
    )
    scenery: list[Part] = []
    picture = lambda: _surface(rng, str(rng.choice(PATTERNS)), rng.uniform(0.6, 1.5), device)
    frame = _surface(rng, "wood", 0.8, device)
    for _ in range(int(rng.integers(0, 4))):  # pictures, windows, doors
        x, y = rng.uniform(-0.85, 0.85) * half, -rng.uniform(1.2, max(1.3, ceiling - 0.7))
        a, b = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.5)
        flat = picture()
        if rng.uniform() < 0.25:
            y, a, b, flat = -0.95, 0.45, 0.95, frame
        elif rng.uniform() < 0.4:
            bright = _tones(rng, (0.8, 0.88, 0.95), (0.7, 0.8, 0.9))
            flat = _surface(rng, "noise", 0.3, device, bright)
        if rng.uniform() < 0.6:
            at, extents = (x, y, back), ((a + 0.06, b + 0.06, 0.03), (a, b, 0.05))
        else:
            at = (half * rng.choice([-1, 1]), y, rng.uniform(1.5, back - 1))
            extents = ((0.03, b + 0.06, a + 0.06), (0.05, b, a))
        scenery += [_part("box", e, at, m, casts=False) for e, m in zip(extents, (frame, flat), strict=True)]
    for _ in range(int(rng.integers(0, 4))):  # shelves, cupboards, benches along the walls; now and then a column
        a, tall, b = rng.uniform(0.25, 0.9), rng.uniform(0.2, 1.1), rng.uniform(0.2, 0.45)
        wood = _surface(rng, str(rng.choice(["wood", "plain", "stripes", "tiles"])), rng.uniform(0.4, 1), device)
        wall = rng.choice(["left", "right", "back", "back"])
        if wall == "back":
            extent, at = (a, tall, b), (rng.uniform(-0.9, 0.9) * (half - a), -tall, back - b)
        else:
            sign = -1 if wall == "left" else 1
            extent, at = (b, tall, a), (sign * (half - b), -tall, rng.uniform(1.8, back - 1))
        scenery.append(_part("box", extent, at, wood))
    if rng.uniform() < 0.25:
        r, x, z = rng.uniform(0.12, 0.3), rng.choice([-1, 1]) * rng.uniform(0.7, 1.6), rng.uniform(1.8, 4)
        scenery.append(_part("cylinder", (r, ceiling / 2, r), (x, -ceiling / 2, z), walls))
    view = _viewpoint(rng, (0.5, min(2.3, ceiling - 0.3)))
    words = f"on a {PATTERN_WORDS[floor]}floor in a room with a {PATTERN_WORDS[rear]}wall"
    return Place(words, view, planes, tuple(scenery), (-half, half, 0.2, back - 0.3))


def _country(rng: np.random.Generator, device) -> Place:
    kind = str(rng.choice(["grass", "grass", "noise", "leaves", "pebbles", "cracks", "tiles", "checks", "marble"]))
    palette = None
    if kind == "grass" or rng.uniform() < 0.5:
        palette = _tones(
            rng,
            *[((0.3, 0.42, 0.14), (0.5, 0.52, 0.25)), ((0.62, 0.52, 0.36), (0.45, 0.36, 0.25))][
                int(rng.uniform() < (0.2 if kind == "grass" else 0.7))
            ],
        )
    ground = _ground(rng, kind, rng.uniform(0.15, 0.6), device, palette)
    ranges, scenery = _distance(rng, device)
    words = f"on {PATTERN_WORDS[kind]}ground " + ("before hills" if scenery or ranges else "under the sky")
    if rng.uniform() < 0.7:
        scenery += _woods(rng, device)
    if rng.uniform() < 0.3:
        scenery += _fence(rng, device)
    view = _viewpoint(rng, (0.3, 4.0), (0.1, 1.3))
    return Place(words, view, (ground, *ranges), tuple(scenery), (-30, 30, 0.2, 30))


def _yard(rng: np.random.Generator, device) -> Place:
    """Ground before a wall, low or as high as the sky, dark or as pale as the sky."""
    floor, kind = str(rng.choice(_FLOORS)), str(rng.choice(_WALLS))
    palette = None
    if rng.uniform() < 0.3:
        palette = _tones(rng, (0.82, 0.85, 0.88), (0.7, 0.74, 0.8), spread=0.05)
    away, height = rng.uniform(5, 14), math.exp(rng.uniform(math.log(0.6), math.log(9)))
    wall = Plane((0, 0, -1), -away, _surface(rng, kind, rng.uniform(0.1, 0.5), device, palette), height=height)
    ranges, scenery = _distance(rng, device) if height < 2.5 else ([], [])
    planes = (_ground(rng, floor, rng.uniform(0.15, 0.6), device), wall, *ranges)
    if rng.uniform() < 0.35:
        scenery += _woods(rng, device, (max(away - 3, 3.5), away - 0.8))
    if rng.uniform() < 0.3:
        scenery += _fence(rng, device)
    words = f"on {PATTERN_WORDS[floor]}ground before a {PATTERN_WORDS[kind]}wall"
    view = _viewpoint(rng, (0.3, 3.0), (0.1, 1.3))
    return Place(words, view, planes, tuple(scenery), (-30, 30, 0.2, away - 0.4))


def _street(rng: np.random.Generator, device) -> Place:
    """A road between pavements and house fronts, along the view or across it; beyond it houses, hills or the sky."""
    across = rng.uniform() < 0.4
    asphalt = _tones(rng, (0.3, 0.3, 0.31), (0.36, 0.35, 0.34)) if rng.uniform() < 0.8 else None
    kind = str(rng.choice(["noise", "noise", "cracks", "tiles", "pebbles"]))
    ground = _ground(rng, kind, rng.uniform(0.2, 0.5), device, asphalt)
    road, pavement = rng.uniform(1.6, 3.2), rng.uniform(0.8, 1.8)
    slabs = _surface(
        rng, str(rng.choice(["tiles", "noise", "bricks"])), 0.5, device, _tones(rng, (0.6, 0.58, 0.55), (0.4, 0.4, 0.4))
    )
    scenery = [
        _part("box", (pavement / 2 + 2, 0.05, 30), (side * (road + pavement / 2 + 2), -0.02, 25), slabs, casts=False)
        for side in (-1, 1)
    ]
    plaster = [(0.75, 0.68, 0.55), (0.6, 0.6, 0.6), (0.5, 0.3, 0.24), (0.85, 0.84, 0.8), (0.4, 0.36, 0.33)]
    fronts = []
    for _ in range(3):
        palette = _tones(rng, plaster[rng.integers(5)], (0.7, 0.7, 0.68)) if rng.uniform() < 0.7 else None
        fronts.append(_surface(rng, "windows", rng.uniform(0.18, 0.5), device, palette))
    roof = _surface(rng, "tiles", 0.6, device, _tones(rng, (0.4, 0.2, 0.15), (0.2, 0.12, 0.1)))
    sides = (1,) if across else (-1, 1) if rng.uniform() < 0.75 else (int(rng.choice([-1, 1])),)
    for side in sides:
        z = rng.uniform(-1, 3)
        while z < 38:
            long, deep, tall = rng.uniform(1.5, 4.5), rng.uniform(1, 2.5), rng.uniform(1.2, 4) * rng.uniform(0.8, 1.6)
            x = side * (road + pavement + deep + rng.uniform(0, 0.3))
            scenery.append(_part("box", (deep, tall, long), (x, -tall, z + long), fronts[rng.integers(3)], casts=False))
            if rng.uniform() < 0.35:
                scenery.append(
                    _part("gable", (deep * 1.1, 0.6, long), (x, -2 * tall - 0.6, z + long), roof, casts=False)
                )
            z += 2 * long + rng.uniform(0, 3) * (rng.uniform() < 0.4)
    if rng.uniform() < 0.5 and not across:
        tall = rng.uniform(1.5, 5)
        scenery.append(
            _part("box", (8, tall, 1), (rng.uniform(-4, 4), -tall, rng.uniform(20, 42)), fronts[0], casts=False)
        )
    if rng.uniform() < 0.6:
        white = _paint(rng, "white", "noise", device)
        for k in range(7):
            scenery.append(_part("box", (0.06, 0.01, 0.6), (0, 0, 2.0 + 2.6 * k + 4 * across), white, casts=False))
    post = _paint(rng, "grey", "brushed", device)
    bark, crown = _paint(rng, "brown", "wood", device), _paint(rng, "green", "noise", device)
    side, trees = (1 if across else rng.choice([-1, 1])), rng.uniform() < 0.5
    for z in np.arange(rng.uniform(1.5, 4), 30 if across else 20, rng.uniform(3, 6)):
        x = side * (road + 0.3)
        if trees:
            pose = np.eye(4)[None]
            pose[0, :3, 3] = (x, 0, z)
            scenery += _moved(_tree(rng, rng.uniform(1.5, 2.8), bark, crown), pose)
        else:
            scenery.append(_part("cylinder", (0.05, 1.1, 0.05), (x, -1.1, z), post))
    view = _viewpoint(rng, (0.7, 3.5), (0.2, 1.2))
    if across:
        middle = road + rng.uniform(2.4, 4.5)
        pose = np.eye(4)[None]
        pose[0, :3, :3] = _tilt("y", -math.pi / 2).as_matrix()  # the road's right-hand side comes to lie beyond it
        pose[0, :3, 3] = (16, 0, middle)
        scenery = list(_moved(scenery, pose))
        bounds, way = (-9, 9, middle - road - 0.8, middle + road + 0.8), (1.0, 0.0)
    else:
        x, y, z = view.target
        view = replace(view, target=(x + rng.uniform(-2.2, 2.2), y, z + 1.5), angle=max(view.angle, 42.0))
        bounds, way = (-road - 0.8, road + 0.8, 0.5, 18), (0.0, 1.0)
    far = _distance(rng, device)
    return Place("in a street", view, (ground, *far[0]), (*scenery, *far[1]), bounds, road=way)


def _close_up(rng: np.random.Generator, device) -> Place:
    """Small things on sand, pebbles, leaves or a table top, from close above."""
    kind = str(rng.choice(["pebbles", "pebbles", "noise", "leaves", "wood", "marble", "grass"]))
    sand = _tones(rng, (0.72, 0.62, 0.48), (0.5, 0.42, 0.32), (0.8, 0.75, 0.68)) if rng.uniform() < 0.6 else None
    ground = _ground(rng, kind, rng.uniform(0.4, 1.0), device, sand)
    height = rng.uniform(0.5, 1.5)
    view = Viewpoint(
        (rng.uniform(-0.3, 0.3), -height, rng.uniform(-0.2, 0.3)),
        (rng.uniform(-0.3, 0.3), 0.0, rng.uniform(1.5, 2.6)),
        float(rng.uniform(38, 65)),
    )
    scenery = []
    stones = [_surface(rng, k, 1.0, device) for k in ("noise", "leaves")]
    for _ in range(int(rng.integers(0, 9))):
        size = np.array([1, rng.uniform(0.4, 0.8), rng.uniform(0.6, 1)]) * rng.uniform(0.04, 0.2)
        x, z = rng.uniform(-1.3, 1.3), rng.uniform(1.0, 3.5)
        at = (x, -0.5 * size[1], z)
        scenery.append(_part("egg", size, at, stones[rng.integers(2)], _tilt("y", rng.uniform(0, 6))))
    words = f"on {'sand' if sand is not None and kind in ('pebbles', 'noise') else PATTERN_WORDS[kind] + 'ground'}"
    return Place(f"{words} close by", view, (ground,), tuple(scenery), (-4, 4, 0.6, 4.5), size=0.5)


_PLACES = {"room": _room, "yard": _yard, "country": _country, "street": _street, "close-up": _close_up}
_FLOORS = (
    "plain",
    "noise",
    "leaves",
    "stripes",
    "checks",
    "tiles",
    "dots",
    "marble",
    "wood",
    "bricks",
    "cracks",
    "pebbles",
)
_WALLS = ("plain", "noise", "noise", "stripes", "checks", "tiles", "marble", "bricks", "bricks", "wood", "gradient",
          "gradient", "cracks", "leaves", "dots")  # fmt: skip


def _distance(rng: np.random.Generator, device) -> tuple[list[Plane], list[Part]]:
    """What stands at the horizon, 12 to 55 units away: ridges, hills, both or nothing; of any colour, light or dark."""
    tones = np.array([(0.2, 0.3, 0.12), (0.3, 0.24, 0.16), (0.4, 0.4, 0.4), (0.25, 0.32, 0.42), (0.08, 0.1, 0.09)])
    kind = str(rng.choice(["noise", "leaves", "cracks", "plain"], p=[0.5, 0.2, 0.15, 0.15]))
    materials = [
        _surface(rng, kind, rng.uniform(0.03, 0.12), device, _tones(rng, tone, 0.55 * tone))
        for tone in rng.permutation(tones)[:2]
    ]
    choice = rng.choice(["ridges", "hills", "both", "nothing"], p=[0.35, 0.25, 0.2, 0.2])
    ranges = []
    for material in materials[: int(rng.integers(1, 3))] if choice in ("ridges", "both") else []:
        away, rough = rng.uniform(22, 55), power_noise(rng, rng.uniform(1.5, 2.2))[0]
        height = away * np.clip(rng.uniform(0.03, 0.15) + rng.uniform(0.02, 0.07) * rough, 0, None)
        skyline = torch.from_numpy(height).float().to(device)
        ranges.append(Plane((0, 0, -1), -away, material, skyline))
    return ranges, _hills(rng, materials) if choice in ("hills", "both") else []


def _hills(rng: np.random.Generator, materials: list[Material]) -> list[Part]:
    """Half-sunken hills and peaks."""
    parts = []
    for _ in range(int(rng.integers(3, 12))):
        z = rng.uniform(18, 44)
        wide, high = rng.uniform(0.12, 0.5) * z, rng.uniform(0.03, 0.22) * z
        shape = str(rng.choice(["egg", "egg", "egg", "cone", "pyramid"]))
        extent, y = (wide, high, min(rng.uniform(0.5, 1) * wide, 0.7 * z - 6)), 0.0
        if shape != "egg":
            extent, y = (extent[2], 0.6 * high, extent[2]), -0.5 * high
        turn = _tilt("y", rng.uniform(-0.5, 0.5))
        parts.append(_part(shape, extent, (rng.uniform(-0.9, 0.9) * z, y, z), materials[rng.integers(2)], turn, False))
    return parts


def _woods(rng: np.random.Generator, device, reach: tuple[float, float] = (5.0, 26.0)) -> list[Part]:
    """A few trees, one by one or in a row."""
    bark = _paint(rng, "brown", "wood", device)
    green = _tones(rng, (0.16, 0.28, 0.08), (0.3, 0.4, 0.15))
    crown = _surface(rng, str(rng.choice(["noise", "leaves", "grass"])), rng.uniform(0.3, 0.7), device, green)
    parts: list[Part] = []
    count, row = int(rng.integers(1, 6)), rng.uniform() < 0.4
    z, x, step = rng.uniform(*reach), rng.uniform(-6, -1), rng.uniform(1.4, 3)
    for k in range(count):
        pose = np.eye(4)[None]
        if not row:
            z = rng.uniform(*reach)
            x = rng.uniform(-0.7, 0.7) * z
        pose[0, :3, 3] = (x + (k * step if row else 0), 0, z)
        parts += _moved(_tree(rng, rng.uniform(1.6, 4.0), bark, crown), pose)
    return parts


def _fence(rng: np.random.Generator, device) -> list[Part]:
    """Posts with a rail, across the view or leading away."""
    wood = _surface(rng, "wood", 0.8, device)
    tall, step, count = rng.uniform(0.4, 0.8), rng.uniform(0.7, 1.3), int(rng.integers(4, 8))
    yaw = rng.choice([0.0, rng.uniform(-0.3, 0.3), math.pi / 2])
    way = np.array([math.cos(yaw), 0, -math.sin(yaw)]) * (1 if yaw < 1 else -1)
    middle = np.array([rng.uniform(-1, 1), 0, rng.uniform(6, 9)])
    if yaw > 1:
        middle[0] = rng.choice([-1, 1]) * rng.uniform(1.8, 3)
    places = [middle + (k - (count - 1) / 2) * step * way for k in range(count)]
    parts = [_part("box", (0.05, tall / 2, 0.05), p - [0, tall / 2, 0], wood, casts=False) for p in places]
    rail = (step * (count - 1) / 2, 0.04, 0.025)
    return [*parts, _part("box", rail, middle - [0, 0.75 * tall, 0], wood, _tilt("y", yaw), False)]


# --- where the cameras go ---------------------------------------------------------------------------------------------


def _look_at(eye: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(np.array([0.0, 1.0, 0.0]), forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, forward], axis=1) @ Rotation.from_euler("z", roll).as_matrix()
    pose[:3, 3] = eye
    return pose


CAMERAS = {
    "static": "static camera",
    "pan": "panning camera",
    "move": "moving camera",
    "hand-held": "hand-held camera",
    "track": "tracking camera",
}


def source_path(rng: np.random.Generator, scene: Scene, frames: int, size: tuple[int, int]) -> tuple[CameraPath, str]:
    """The recording camera: static, panning, moving, hand-held or following a mover; with the words for the caption."""
    height, width = size
    focal = 0.5 * max(size) / math.tan(math.radians(scene.viewpoint.angle) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]).repeat(frames, 1, 1)
    eye, target = np.array(scene.viewpoint.eye), np.array(scene.viewpoint.target)
    away = float(np.linalg.norm(target - eye)) / 4.5
    movers = [s for s in scene.solids if s.motion not in ("still", "spin")]
    kind = str(rng.choice(list(CAMERAS), p=[0.3, 0.17, 0.2, 0.2, 0.13]))
    if kind == "track" and not movers:
        kind = "move"
    s = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    still = np.repeat(eye[None], frames, 0), np.repeat(target[None], frames, 0), np.zeros(frames)
    way, wobble = rng.uniform(-1, 1, 3), np.cumsum(np.cumsum(rng.normal(0, 1, (frames, 7)), 0), 0)
    wobble = (wobble - wobble[:1]) / (np.abs(wobble).max() + 1e-6)
    amount = away * rng.uniform(0.5, 1.5)
    while True:
        eyes, targets, rolls = still
        if kind == "pan":
            targets = targets + amount * s[:, None] * way * np.array([1.2, 0.2, 0])
        elif kind == "move":
            eyes = eyes + amount * s[:, None] * way * np.array([0.8, 0.28, 0.8])
        elif kind == "hand-held":
            eyes = eyes + 0.25 * amount * wobble[:, :3] * np.array([1, 0.4, 1])
            targets = targets + 0.3 * amount * wobble[:, 3:6]
            rolls = 0.04 * wobble[:, 6]
        elif kind == "track":
            mover = movers[0].parts[0].world_from_part[:, :3, 3].cpu().numpy().astype(float)
            shift = (mover - mover[:1]) * np.array([1, 0, 1])
            eyes, targets = eyes + min(0.5 * amount, 0.6) * shift, targets + 0.9 * shift
        poses = np.stack([_look_at(e, t, r) for e, t, r in zip(eyes, targets, rolls, strict=True)])
        path = CameraPath(torch.from_numpy(poses).float(), K)
        if _free(path, scene) or amount < 0.02:
            return path, CAMERAS[kind]
        amount *= 0.6


def target_path(rng: np.random.Generator, source: CameraPath, scene: Scene, move: str | None = None) -> CameraPath:
    """A second path: one of the six presets relative to the source, sometimes shown from its far end throughout."""
    frames = source.K.shape[0]
    drawn = str(rng.choice(list(PRESETS)))
    name = move or drawn
    amount = rng.uniform(8, 30) if name.startswith("orbit") else rng.uniform(10, 35)
    subject = math.dist(scene.viewpoint.eye, scene.viewpoint.target)
    distance = rng.uniform(0.7, 1.1) * min(subject, 5.0)
    constant = rng.uniform() < 0.25
    while True:
        motion = preset_motion(name, amount, frames, distance)
        if constant:
            motion = motion[-1:].expand(frames, 4, 4)
        path = CameraPath(source.world_from_cam @ motion.to(source.world_from_cam), source.K)
        if _free(path, scene) or amount < 1:
            return path
        amount *= 0.6  # into a solid or under the ground: a smaller move


def _free(path: CameraPath, scene: Scene) -> bool:
    """Whether the camera keeps clear of all surfaces."""
    eye = path.world_from_cam[:, :3, 3]
    if (eye[:, 1] > -0.15).any():
        return False
    for plane in scene.planes:
        if ((eye @ torch.tensor(plane.normal, dtype=eye.dtype)) - plane.offset < 0.15).any() and plane.height is None:
            return False
    for _, part in scene.parts():
        pose = part.world_from_part.cpu()
        local = ((eye - pose[:, :3, 3])[:, None] @ pose[:, :3, :3])[:, 0]
        outside = (local.abs() - torch.tensor(part.extent)).clamp(min=0)
        if (outside.norm(dim=1) < 0.25).any():
            return False
    return True
