"""Where scenes of the procedural world stand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.world.materials import (
    PATTERN_WORDS,
    carried_along,
    make_paint,
    make_surface,
    make_tree,
    part_at,
    tilt_of,
    tones_of,
)
from pipeline.world.raycast import Material, Part, Plane, Viewpoint
from pipeline.world.textures import PATTERNS, power_noise

PLACES = {"room": 0.3, "yard": 0.16, "country": 0.2, "street": 0.18, "close-up": 0.16}  # with their frequencies


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


def _viewpoint(rng, heights: tuple[float, float], looks: tuple[float, float] = (0.2, 1.0)) -> Viewpoint:
    """A camera at the near end, more often low than high, looking along z and down on what happens there."""
    height = math.exp(rng.uniform(math.log(heights[0]), math.log(heights[1])))
    eye = (rng.uniform(-0.6, 0.6), -height, rng.uniform(-1.2, 0.2))
    target = (rng.uniform(-0.8, 0.8), -rng.uniform(*looks), rng.uniform(3.5, 5.5))
    return Viewpoint(eye, target, float(rng.uniform(35, 80)))


def _ground(rng, kind: str, scale: float, device, palette=None) -> Plane:
    gloss = rng.uniform(0.1, 0.4) * (rng.uniform() < 0.15)
    return Plane((0, -1, 0), 0.0, make_surface(rng, kind, scale, device, palette, gloss), variation=rng.uniform(0, 0.8))


def _room(rng: np.random.Generator, device) -> Place:
    half, back, ceiling = rng.uniform(2.6, 6), rng.uniform(6, 11), rng.uniform(2.6, 5)
    floor, rear, side, top = (str(rng.choice(k)) for k in (_FLOORS, _WALLS, _WALLS, ("plain", "noise", "wood")))
    walls = make_surface(rng, rear, rng.uniform(0.15, 0.5), device)
    sides = make_surface(rng, side, rng.uniform(0.15, 0.5), device) if rng.uniform() < 0.5 else walls
    planes = (
        _ground(rng, floor, rng.uniform(0.15, 0.6), device),
        Plane((0, 0, -1), -back, walls),
        Plane((1, 0, 0), -half, sides),
        Plane((-1, 0, 0), -half, sides),
        Plane((0, 1, 0), -ceiling, make_surface(rng, top, rng.uniform(0.15, 0.5), device)),
        Plane((0, 0, 1), -8.0, walls),  # behind the camera
    )
    scenery: list[Part] = []
    picture = lambda: make_surface(rng, str(rng.choice(PATTERNS)), rng.uniform(0.6, 1.5), device)
    frame = make_surface(rng, "wood", 0.8, device)
    for _ in range(int(rng.integers(0, 4))):  # pictures, windows, doors
        x, y = rng.uniform(-0.85, 0.85) * half, -rng.uniform(1.2, max(1.3, ceiling - 0.7))
        a, b = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.5)
        flat = picture()
        if rng.uniform() < 0.25:
            y, a, b, flat = -0.95, 0.45, 0.95, frame
        elif rng.uniform() < 0.4:
            bright = tones_of(rng, (0.8, 0.88, 0.95), (0.7, 0.8, 0.9))
            flat = make_surface(rng, "noise", 0.3, device, bright)
        if rng.uniform() < 0.6:
            at, extents = (x, y, back), ((a + 0.06, b + 0.06, 0.03), (a, b, 0.05))
        else:
            at = (half * rng.choice([-1, 1]), y, rng.uniform(1.5, back - 1))
            extents = ((0.03, b + 0.06, a + 0.06), (0.05, b, a))
        scenery += [part_at("box", e, at, m, casts=False) for e, m in zip(extents, (frame, flat), strict=True)]
    for _ in range(int(rng.integers(0, 4))):  # shelves, cupboards, benches along the walls; now and then a column
        a, tall, b = rng.uniform(0.25, 0.9), rng.uniform(0.2, 1.1), rng.uniform(0.2, 0.45)
        wood = make_surface(rng, str(rng.choice(["wood", "plain", "stripes", "tiles"])), rng.uniform(0.4, 1), device)
        wall = rng.choice(["left", "right", "back", "back"])
        if wall == "back":
            extent, at = (a, tall, b), (rng.uniform(-0.9, 0.9) * (half - a), -tall, back - b)
        else:
            sign = -1 if wall == "left" else 1
            extent, at = (b, tall, a), (sign * (half - b), -tall, rng.uniform(1.8, back - 1))
        scenery.append(part_at("box", extent, at, wood))
    if rng.uniform() < 0.25:
        r, x, z = rng.uniform(0.12, 0.3), rng.choice([-1, 1]) * rng.uniform(0.7, 1.6), rng.uniform(1.8, 4)
        scenery.append(part_at("cylinder", (r, ceiling / 2, r), (x, -ceiling / 2, z), walls))
    view = _viewpoint(rng, (0.5, min(2.3, ceiling - 0.3)))
    words = f"on a {PATTERN_WORDS[floor]}floor in a room with a {PATTERN_WORDS[rear]}wall"
    return Place(words, view, planes, tuple(scenery), (-half, half, 0.2, back - 0.3))


def _country(rng: np.random.Generator, device) -> Place:
    kind = str(rng.choice(["grass", "grass", "noise", "leaves", "pebbles", "cracks", "tiles", "checks", "marble"]))
    palette = None
    if kind == "grass" or rng.uniform() < 0.5:
        palette = tones_of(
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
        palette = tones_of(rng, (0.82, 0.85, 0.88), (0.7, 0.74, 0.8), spread=0.05)
    away, height = rng.uniform(5, 14), math.exp(rng.uniform(math.log(0.6), math.log(9)))
    wall = Plane((0, 0, -1), -away, make_surface(rng, kind, rng.uniform(0.1, 0.5), device, palette), height=height)
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
    asphalt = tones_of(rng, (0.3, 0.3, 0.31), (0.36, 0.35, 0.34)) if rng.uniform() < 0.8 else None
    kind = str(rng.choice(["noise", "noise", "cracks", "tiles", "pebbles"]))
    ground = _ground(rng, kind, rng.uniform(0.2, 0.5), device, asphalt)
    road, pavement = rng.uniform(1.6, 3.2), rng.uniform(0.8, 1.8)
    slabs = make_surface(
        rng,
        str(rng.choice(["tiles", "noise", "bricks"])),
        0.5,
        device,
        tones_of(rng, (0.6, 0.58, 0.55), (0.4, 0.4, 0.4)),
    )
    scenery = [
        part_at("box", (pavement / 2 + 2, 0.05, 30), (side * (road + pavement / 2 + 2), -0.02, 25), slabs, casts=False)
        for side in (-1, 1)
    ]
    plaster = [(0.75, 0.68, 0.55), (0.6, 0.6, 0.6), (0.5, 0.3, 0.24), (0.85, 0.84, 0.8), (0.4, 0.36, 0.33)]
    fronts = []
    for _ in range(3):
        palette = tones_of(rng, plaster[rng.integers(5)], (0.7, 0.7, 0.68)) if rng.uniform() < 0.7 else None
        fronts.append(make_surface(rng, "windows", rng.uniform(0.18, 0.5), device, palette))
    roof = make_surface(rng, "tiles", 0.6, device, tones_of(rng, (0.4, 0.2, 0.15), (0.2, 0.12, 0.1)))
    sides = (1,) if across else (-1, 1) if rng.uniform() < 0.75 else (int(rng.choice([-1, 1])),)
    for side in sides:
        z = rng.uniform(-1, 3)
        while z < 38:
            long, deep, tall = rng.uniform(1.5, 4.5), rng.uniform(1, 2.5), rng.uniform(1.2, 4) * rng.uniform(0.8, 1.6)
            x = side * (road + pavement + deep + rng.uniform(0, 0.3))
            scenery.append(
                part_at("box", (deep, tall, long), (x, -tall, z + long), fronts[rng.integers(3)], casts=False)
            )
            if rng.uniform() < 0.35:
                scenery.append(
                    part_at("gable", (deep * 1.1, 0.6, long), (x, -2 * tall - 0.6, z + long), roof, casts=False)
                )
            z += 2 * long + rng.uniform(0, 3) * (rng.uniform() < 0.4)
    if rng.uniform() < 0.5 and not across:
        tall = rng.uniform(1.5, 5)
        scenery.append(
            part_at("box", (8, tall, 1), (rng.uniform(-4, 4), -tall, rng.uniform(20, 42)), fronts[0], casts=False)
        )
    if rng.uniform() < 0.6:
        white = make_paint(rng, "white", "noise", device)
        for k in range(7):
            scenery.append(part_at("box", (0.06, 0.01, 0.6), (0, 0, 2.0 + 2.6 * k + 4 * across), white, casts=False))
    post = make_paint(rng, "grey", "brushed", device)
    bark, crown = make_paint(rng, "brown", "wood", device), make_paint(rng, "green", "noise", device)
    side, trees = (1 if across else rng.choice([-1, 1])), rng.uniform() < 0.5
    for z in np.arange(rng.uniform(1.5, 4), 30 if across else 20, rng.uniform(3, 6)):
        x = side * (road + 0.3)
        if trees:
            pose = np.eye(4)[None]
            pose[0, :3, 3] = (x, 0, z)
            scenery += carried_along(make_tree(rng, rng.uniform(1.5, 2.8), bark, crown), pose)
        else:
            scenery.append(part_at("cylinder", (0.05, 1.1, 0.05), (x, -1.1, z), post))
    view = _viewpoint(rng, (0.7, 3.5), (0.2, 1.2))
    if across:
        middle = road + rng.uniform(2.4, 4.5)
        pose = np.eye(4)[None]
        pose[0, :3, :3] = tilt_of("y", -math.pi / 2).as_matrix()  # the road's right-hand side comes to lie beyond it
        pose[0, :3, 3] = (16, 0, middle)
        scenery = list(carried_along(scenery, pose))
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
    sand = tones_of(rng, (0.72, 0.62, 0.48), (0.5, 0.42, 0.32), (0.8, 0.75, 0.68)) if rng.uniform() < 0.6 else None
    ground = _ground(rng, kind, rng.uniform(0.4, 1.0), device, sand)
    height = rng.uniform(0.5, 1.5)
    view = Viewpoint(
        (rng.uniform(-0.3, 0.3), -height, rng.uniform(-0.2, 0.3)),
        (rng.uniform(-0.3, 0.3), 0.0, rng.uniform(1.5, 2.6)),
        float(rng.uniform(38, 65)),
    )
    scenery = []
    stones = [make_surface(rng, k, 1.0, device) for k in ("noise", "leaves")]
    for _ in range(int(rng.integers(0, 9))):
        size = np.array([1, rng.uniform(0.4, 0.8), rng.uniform(0.6, 1)]) * rng.uniform(0.04, 0.2)
        x, z = rng.uniform(-1.3, 1.3), rng.uniform(1.0, 3.5)
        at = (x, -0.5 * size[1], z)
        scenery.append(part_at("egg", size, at, stones[rng.integers(2)], tilt_of("y", rng.uniform(0, 6))))
    words = f"on {'sand' if sand is not None and kind in ('pebbles', 'noise') else PATTERN_WORDS[kind] + 'ground'}"
    return Place(f"{words} close by", view, (ground,), tuple(scenery), (-4, 4, 0.6, 4.5), size=0.5)


MAKE_PLACE = {"room": _room, "yard": _yard, "country": _country, "street": _street, "close-up": _close_up}
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
        make_surface(rng, kind, rng.uniform(0.03, 0.12), device, tones_of(rng, tone, 0.55 * tone))
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
        turn = tilt_of("y", rng.uniform(-0.5, 0.5))
        parts.append(
            part_at(shape, extent, (rng.uniform(-0.9, 0.9) * z, y, z), materials[rng.integers(2)], turn, False)
        )
    return parts


def _woods(rng: np.random.Generator, device, reach: tuple[float, float] = (5.0, 26.0)) -> list[Part]:
    """A few trees, one by one or in a row."""
    bark = make_paint(rng, "brown", "wood", device)
    green = tones_of(rng, (0.16, 0.28, 0.08), (0.3, 0.4, 0.15))
    crown = make_surface(rng, str(rng.choice(["noise", "leaves", "grass"])), rng.uniform(0.3, 0.7), device, green)
    parts: list[Part] = []
    count, row = int(rng.integers(1, 6)), rng.uniform() < 0.4
    z, x, step = rng.uniform(*reach), rng.uniform(-6, -1), rng.uniform(1.4, 3)
    for k in range(count):
        pose = np.eye(4)[None]
        if not row:
            z = rng.uniform(*reach)
            x = rng.uniform(-0.7, 0.7) * z
        pose[0, :3, 3] = (x + (k * step if row else 0), 0, z)
        parts += carried_along(make_tree(rng, rng.uniform(1.6, 4.0), bark, crown), pose)
    return parts


def _fence(rng: np.random.Generator, device) -> list[Part]:
    """Posts with a rail, across the view or leading away."""
    wood = make_surface(rng, "wood", 0.8, device)
    tall, step, count = rng.uniform(0.4, 0.8), rng.uniform(0.7, 1.3), int(rng.integers(4, 8))
    yaw = rng.choice([0.0, rng.uniform(-0.3, 0.3), math.pi / 2])
    way = np.array([math.cos(yaw), 0, -math.sin(yaw)]) * (1 if yaw < 1 else -1)
    middle = np.array([rng.uniform(-1, 1), 0, rng.uniform(6, 9)])
    if yaw > 1:
        middle[0] = rng.choice([-1, 1]) * rng.uniform(1.8, 3)
    places = [middle + (k - (count - 1) / 2) * step * way for k in range(count)]
    parts = [part_at("box", (0.05, tall / 2, 0.05), p - [0, tall / 2, 0], wood, casts=False) for p in places]
    rail = (step * (count - 1) / 2, 0.04, 0.025)
    return [*parts, part_at("box", rail, middle - [0, 0.75 * tall, 0], wood, tilt_of("y", yaw), False)]
