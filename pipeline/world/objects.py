"""The things of the procedural world: simple solids and compounds, how they move, and their names."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from pipeline.world.materials import (
    PATTERN_WORDS,
    Track,
    carried_along,
    make_paint,
    make_surface,
    make_tree,
    part_at,
    tilt_of,
    tones_of,
)
from pipeline.world.places import Place
from pipeline.world.raycast import Part, Solid
from pipeline.world.textures import COLOURS, KINDS

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
GLOSSY = 0.25  # from here on a surface is called glossy


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def object_name(solid: Solid) -> str:
    """Such as "a glossy red striped ball", as captions say it."""
    if solid.shape == "person":
        return f"a person in {solid.colour}"
    glossy = "glossy " if solid.parts[0].material.gloss > GLOSSY else ""
    return _article(f"{glossy}{solid.colour} {PATTERN_WORDS[solid.pattern]}{solid.shape}")


def short_name(name: str) -> str:
    """Colour and shape of an object alone: "a red ball" of "a glossy red striped ball"."""
    words = name.split()
    if "in" in words:  # "a person in red"
        return name
    return _article(f"{next(word for word in words if word in COLOURS)} {words[-1]}")


def phrase_of(solid: Solid) -> str:
    return f"{object_name(solid)} {MOTIONS[solid.motion]}"


def make_object(rng, place: str, frames: int, where: Place, tracks: list[Track], device) -> Solid | None:
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
        material = make_paint(rng, colour, pattern, device, scale=rng.uniform(0.5, 1.2) / size, gloss=gloss)
        return Solid(shape, colour, pattern, word, carried_along([part_at(shape, extent, (0, 0, 0), material)], poses))

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
        return Solid(shape, colour, "plain", word, carried_along(parts, poses))

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


def passing_behind(rng, frames: int, where: Place, device) -> tuple[Part | Solid, Solid, str, list[Track]]:
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
        return front, mover, f"{phrase_of(mover)} {object_name(front)}", [front_track, track]
    colour, kind = str(rng.choice(["grey", "white", "brown", "red"])), str(rng.choice(["bricks", "plain", "cracks"]))
    shape = str(rng.choice(["cylinder", "box"]))
    post = part_at(shape, (radius, half, radius), (stand[0], -half, stand[1]), make_paint(rng, colour, kind, device))  # pyright: ignore[reportOperatorIssue]
    words = _article(f"{colour} {PATTERN_WORDS[kind]}pillar")
    return post, mover, f"{phrase_of(mover)} {words}", [front_track, track]


def _build_table(rng, colour: str, k: float, device) -> list[Part]:
    paint = make_paint(rng, colour, "wood", device)
    a, b, tall = 0.55 * k, 0.35 * k, 0.5 * k
    legs = [
        part_at("cylinder", (0.04 * k, tall / 2, 0.04 * k), (x * 0.85 * a, -tall / 2, z * 0.85 * b), paint, casts=False)
        for x in (-1, 1)
        for z in (-1, 1)
    ]
    return [part_at("box", (a, 0.04 * k, b), (0, -tall - 0.04 * k, 0), paint), *legs]


def _build_lamp(rng, colour: str, k: float, device) -> list[Part]:
    shade, metal = make_paint(rng, colour, "plain", device), make_paint(rng, "black", "brushed", device, gloss=0.3)
    tall = 1.1 * k
    return [
        part_at("cone", (0.25 * k, 0.2 * k, 0.25 * k), (0, -tall, 0), shade),
        part_at("cylinder", (0.025 * k, tall / 2, 0.025 * k), (0, -tall / 2, 0), metal),
        part_at("cylinder", (0.18 * k, 0.025 * k, 0.18 * k), (0, -0.025 * k, 0), metal),
    ]


def _build_person(rng, colour: str, k: float, device) -> list[Part]:
    coat, trousers = make_paint(rng, colour, "plain", device), make_surface(rng, "noise", 1.0, device)
    skin = np.array([(0.85, 0.65, 0.52), (0.55, 0.38, 0.28), (0.35, 0.23, 0.17)])[rng.integers(3)]
    skin = make_surface(rng, "plain", 1.0, device, np.stack([skin, 0.8 * skin]))
    stride, swing = rng.uniform(0.1, 0.35), rng.uniform(0.1, 0.5)
    parts = [
        part_at("pill", (0.17 * k, 0.3 * k, 0.13 * k), (0, -0.82 * k, 0), coat),
        part_at("ball", (0.11 * k,) * 3, (0.01 * k, -1.24 * k, 0), skin),
    ]
    for side in (-1, 1):
        leg = (side * stride * 0.28 * k, -0.29 * k, side * 0.08 * k)
        arm = (side * swing * -0.22 * k, -0.82 * k, side * 0.21 * k)
        parts.append(part_at("pill", (0.075 * k, 0.3 * k, 0.075 * k), leg, trousers, tilt_of("z", -side * stride)))
        parts.append(
            part_at("pill", (0.05 * k, 0.27 * k, 0.05 * k), arm, coat, tilt_of("z", side * swing), casts=False)
        )
    return parts


def _wheels(rng, half: float, width: float, radius: float, device) -> list[Part]:
    rubber = make_paint(rng, "black", "plain", device)
    across = tilt_of("x", math.pi / 2)
    return [
        part_at("cylinder", (radius, width, radius), (x * half, -radius, 0), rubber, across, casts=False)
        for x in (-1, 1)
    ]


def _build_car(rng, colour: str, k: float, device) -> list[Part]:
    paint = make_paint(rng, colour, "plain", device, gloss=0.4)
    glass = make_surface(rng, "gradient", 0.6, device, tones_of(rng, (0.12, 0.14, 0.17), (0.3, 0.34, 0.4)), gloss=0.5)
    long, wide, r = rng.uniform(0.8, 1.0) * k, 0.4 * k, 0.17 * k
    back = rng.uniform(-0.3, 0.0) * long
    return [
        part_at("box", (long, 0.18 * k, wide), (0, -0.32 * k, 0), paint),
        part_at("box", (0.5 * long, 0.15 * k, 0.88 * wide), (back, -0.63 * k, 0), glass, casts=False),
        part_at("box", (0.45 * long, 0.02 * k, 0.85 * wide), (back, -0.8 * k, 0), paint),
        *_wheels(rng, 0.6 * long, 1.02 * wide, r, device),
    ]


def _build_bus(rng, colour: str, k: float, device) -> list[Part]:
    paint = make_paint(rng, colour, "plain", device, gloss=0.3)
    glass = make_surface(rng, "stripes", 0.7, device, tones_of(rng, (0.12, 0.14, 0.17), (0.2, 0.22, 0.25)), gloss=0.5)
    long, tall, wide = rng.uniform(1.4, 1.9) * k, 0.58 * k, 0.5 * k
    return [
        part_at("box", (long, tall, wide), (0, -0.12 * k - tall, 0), paint),
        part_at("box", (0.96 * long, 0.4 * tall, 1.01 * wide), (0, -0.12 * k - 1.25 * tall, 0), glass, casts=False),
        part_at("box", (1.005 * long, 0.42 * tall, 0.9 * wide), (0, -0.12 * k - 1.25 * tall, 0), glass, casts=False),
        *_wheels(rng, 0.65 * long, 1.015 * wide, 0.2 * k, device),
    ]


def _build_house(rng, colour: str, k: float, device) -> list[Part]:
    walls = make_paint(rng, colour, "windows", device, scale=0.7 / k)
    roof = make_surface(rng, "tiles", 1.5, device, tones_of(rng, (0.45, 0.2, 0.14), (0.2, 0.1, 0.08)))
    door = make_paint(rng, str(rng.choice(["brown", "blue", "green"])), "wood", device)
    a, b, tall, ridge = 0.6 * k, 0.7 * k, 0.4 * k, 0.25 * k
    return [
        part_at("box", (a, tall, b), (0, -tall, 0), walls),
        part_at("gable", (1.15 * a, ridge, 1.08 * b), (0, -2 * tall - ridge, 0), roof),
        part_at("box", (0.02 * k, 0.26 * k, 0.13 * k), (a, -0.26 * k, 0), door, casts=False),
    ]


def _build_tree(rng, colour: str, k: float, device) -> list[Part]:
    bark = make_paint(rng, "brown", "wood", device)
    crown = make_paint(rng, colour, str(rng.choice(["noise", "leaves"])), device)
    return make_tree(rng, 1.7 * k, bark, crown)


def _build_crab(rng, colour: str, k: float, device) -> list[Part]:
    shell = make_paint(rng, colour, str(rng.choice(["noise", "plain", "leaves"])), device, gloss=rng.uniform(0, 0.4))
    legs, dark = make_paint(rng, colour, "noise", device), make_paint(rng, "black", "plain", device, gloss=0.6)
    parts = [part_at("egg", (0.24 * k, 0.13 * k, 0.32 * k), (0, -0.2 * k, 0), shell)]
    for side in (-1, 1):
        for j in range(3):
            lean = tilt_of("x", side * rng.uniform(0.7, 0.9))
            at = (0.14 * (j - 1) * k, -0.14 * k, side * 0.36 * k)
            parts.append(part_at("pill", (0.035 * k, 0.19 * k, 0.035 * k), at, legs, lean, casts=False))
        parts.append(part_at("egg", (0.16 * k, 0.07 * k, 0.08 * k), (0.3 * k, -0.13 * k, side * 0.24 * k), shell))
        parts.append(part_at("ball", (0.035 * k,) * 3, (0.2 * k, -0.33 * k, side * 0.1 * k), dark, casts=False))
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
