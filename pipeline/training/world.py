"""A procedural 3D world: moving solids, textured ground, walls or sky, light and shadow, seen by two cameras.

Everything follows from a seed. Rays are scaled so that their parameter is the depth along the optical axis, hence depth
is exact. World axes are those of the camera convention (x right, y down, z forward) with the ground at y = 0.
Runs on the CPU or on a CUDA device through torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from pipeline.camera import PRESETS, CameraPath, preset_motion
from pipeline.training.textures import COLOURS, KINDS, SIZE, make_texture, mip_volume, natural_palette

FAR = 60.0
SHAPES = ("ball", "egg", "box", "cylinder", "cone")
MOTIONS = {
    "still": "stands",
    "roll": "rolls",
    "slide": "slides",
    "bounce": "bounces",
    "swing": "swings",
    "spin": "spins",
    "circle": "circles",
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
}


@dataclass(frozen=True, eq=False)
class View:
    """One camera's recording. `z` is depth along the optical axis (sky at FAR); `objects` a visible mask per solid."""

    frames: Float[Tensor, "T 3 H W"]
    z: Float[Tensor, "T H W"]
    path: CameraPath
    objects: Bool[Tensor, "T N H W"]


@dataclass(frozen=True, eq=False)
class Solid:
    """A primitive of half extents `extent` posed by `world_from_object` in each frame."""

    shape: str
    colour: str
    pattern: str
    motion: str
    extent: tuple[float, float, float]
    world_from_object: Float[Tensor, "T 4 4"]
    texture: Float[Tensor, "3 L S S"]
    texture_scale: float
    gloss: float


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane normal·p = offset, seen from the side the normal points to; hidden above `height` if that is set."""

    normal: tuple[float, float, float]
    offset: float
    texture: Float[Tensor, "3 L S S"]
    texture_scale: float
    height: float | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    solids: tuple[Solid, ...]
    planes: tuple[Plane, ...]
    sky: Float[Tensor, "3 L S S"]
    light: Float[Tensor, "3"]  # unit vector towards the light
    light_colour: Float[Tensor, "3"]
    ambient: Float[Tensor, "3"]
    caption: str


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
) -> Sample:
    """A scene of `seed` with its source and target recording, each `frames` long at `size` = (H, W)."""
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, frames, device)
    source, words = source_path(rng, frames, size)
    target = target_path(rng, source, scene)
    scene = replace(scene, caption=f"{scene.caption}, {words}")
    source_view = render_view(scene, source, size, supersample=supersample)
    target_view = render_view(scene, target, size, supersample=supersample)
    return Sample(seed, source_view, target_view, scene.caption, scene)


# --- what is in the scene ---------------------------------------------------------------------------------------------


def make_scene(rng: np.random.Generator, frames: int, device: str | torch.device = "cpu") -> Scene:
    """Draw solids with motions, surroundings and light from `rng`."""
    interior = rng.uniform() < 0.45
    floor_kind = str(rng.choice(["plain", "noise", "leaves", "stripes", "checks", "tiles", "dots", "marble"]))
    planes = [_plane(rng, (0, -1, 0), 0.0, floor_kind, rng.uniform(0.15, 0.6), device)]
    place = f"on a {PATTERN_WORDS[floor_kind]}floor" if interior else f"on {PATTERN_WORDS[floor_kind]}ground"
    if interior:
        half, back, ceiling = rng.uniform(3, 6), rng.uniform(6, 11), rng.uniform(3, 5)
        kinds = [str(rng.choice(KINDS)) for _ in range(3)]
        planes += [
            _plane(rng, (0, 0, -1), -back, kinds[0], rng.uniform(0.15, 0.5), device),
            _plane(rng, (1, 0, 0), -half, kinds[1], rng.uniform(0.15, 0.5), device),
            _plane(rng, (-1, 0, 0), -half, kinds[1], rng.uniform(0.15, 0.5), device),
            _plane(rng, (0, 1, 0), -ceiling, kinds[2], rng.uniform(0.15, 0.5), device),
            _plane(rng, (0, 0, 1), -8.0, kinds[0], rng.uniform(0.15, 0.5), device),  # behind the camera
        ]
        place += f" in a room with a {PATTERN_WORDS[kinds[0]]}wall"
    elif rng.uniform() < 0.6:
        kind = str(rng.choice(KINDS))
        height = rng.uniform(0.5, 3.5)
        planes.append(_plane(rng, (0, 0, -1), -rng.uniform(6, 14), kind, rng.uniform(0.1, 0.5), device, height=height))
        place += f" before a {PATTERN_WORDS[kind]}wall under the sky"
    else:
        place += " under the sky"

    solids: list[Solid] = []
    spots: list[tuple[np.ndarray, float]] = []
    for _ in range(int(rng.integers(2, 7))):
        solid = _solid(rng, frames, spots, device)
        if solid is not None:
            solids.append(solid)
    elevation, azimuth = rng.uniform(0.5, 1.4), rng.uniform(0, 2 * math.pi)
    light = torch.tensor(
        [math.cos(elevation) * math.cos(azimuth), -math.sin(elevation), math.cos(elevation) * math.sin(azimuth)]
    )
    warmth = rng.uniform(-0.12, 0.12)
    strength, ambient = rng.uniform(0.45, 0.9), rng.uniform(0.38, 0.62)
    tint = torch.tensor([1 + warmth, 1.0, 1 - warmth])
    return Scene(
        solids=tuple(solids),
        planes=tuple(planes),
        sky=_sky(rng, device),
        light=light.float().to(device),
        light_colour=(strength * tint).float().to(device),
        ambient=(ambient * (2 - tint)).float().to(device),
        caption=_caption(solids, place),
    )


def _plane(rng, normal, offset, kind, scale, device, height=None) -> Plane:
    texture = _volume(make_texture(rng, kind, natural_palette(rng)), device)
    return Plane(normal, float(offset), texture, float(scale), None if height is None else float(height))


def _volume(texture: np.ndarray, device) -> Tensor:
    return torch.from_numpy(mip_volume(texture)).to(device)


def _sky(rng: np.random.Generator, device) -> Tensor:
    palette = np.array([[0.35, 0.55, 0.85], [0.9, 0.92, 0.95]], np.float32) * rng.uniform(0.5, 1.05)
    palette = np.clip(palette + rng.normal(0, 0.08, (2, 3)), 0, 1).astype(np.float32)
    return _volume(
        make_texture(rng, str(rng.choice(["noise", "marble", "plain", "leaves"], p=[0.5, 0.2, 0.2, 0.1])), palette),
        device,
    )


def _solid(rng: np.random.Generator, frames: int, spots: list, device) -> Solid | None:
    """One solid standing, moving or hanging somewhere free of the others; None if no free place was found."""
    shape = str(rng.choice(SHAPES))
    r = rng.uniform(0.22, 0.6)
    extent = {
        "ball": (r, r, r),
        "egg": (r * rng.uniform(0.6, 1.0), r, r * rng.uniform(0.6, 1.0)),
        "box": (r * rng.uniform(0.5, 1.1), r * rng.uniform(0.5, 1.4), r * rng.uniform(0.5, 1.1)),
        "cylinder": (r * 0.7, r * rng.uniform(0.6, 1.7), r * 0.7),
        "cone": (r * 0.8, r * rng.uniform(0.8, 1.6), r * 0.8),
    }[shape]
    allowed = ["still", "slide", "bounce", "swing", "spin", "circle"] + (["roll"] * 3 if shape == "ball" else [])
    motion = str(rng.choice(allowed))
    reach = max(extent[0], extent[2])
    for _ in range(20):
        depth = rng.uniform(2.2, 6.5)
        start = np.array([rng.uniform(-0.55, 0.55) * depth, 0.0, depth])
        if all(np.hypot(*(start - other)[[0, 2]]) > reach + size + 0.1 for other, size in spots):
            break
    else:
        return None
    spots.append((start, reach))

    s = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    heading = rng.uniform(0, 2 * math.pi)
    direction = np.array([math.cos(heading), 0, 0.6 * math.sin(heading)])
    travel = rng.uniform(0.4, 1.8)
    position = np.repeat(start[None], frames, 0)
    position[:, 1] = -extent[1]
    yaw = np.full(frames, rng.uniform(0, 2 * math.pi))
    rotation = _turn("y", yaw)
    if motion in ("roll", "slide"):
        position += (s - 0.5)[:, None] * travel * direction
        if motion == "roll":
            axis = np.cross(np.array([0.0, -1.0, 0.0]), direction / np.linalg.norm(direction))
            turns = s * travel * np.linalg.norm(direction) / extent[1]
            rotation = Rotation.from_rotvec(turns[:, None] * axis) * rotation
    elif motion == "bounce":
        phase, hops = rng.uniform(0, 1), rng.uniform(0.8, 2.0)
        position[:, 1] -= rng.uniform(0.3, 1.1) * np.abs(np.sin(math.pi * (s * hops + phase)))
        position += (s - 0.5)[:, None] * 0.5 * travel * direction
    elif motion == "swing":
        length, angle = rng.uniform(1.0, 2.0), rng.uniform(0.25, 0.7)
        theta = angle * np.sin(2 * math.pi * (s * rng.uniform(0.4, 1.1) + rng.uniform()))
        lift = rng.uniform(0.1, 0.7)
        position[:, 0] += length * np.sin(theta)
        position[:, 1] -= lift + length * (1 - np.cos(theta))
        rotation = _turn("z", -theta) * rotation
    elif motion == "spin":
        rotation = _turn("y", yaw + s * rng.uniform(0.8, 4) * rng.choice([-1, 1]))
    elif motion == "circle":
        phase = heading + s * rng.uniform(0.8, 3) * rng.choice([-1, 1])
        radius = rng.uniform(0.2, 0.6)
        position[:, 0] += radius * (np.cos(phase) - math.cos(heading))
        position[:, 2] += radius * (np.sin(phase) - math.sin(heading))
    world_from_object = np.tile(np.eye(4), (frames, 1, 1))
    world_from_object[:, :3, :3] = rotation.as_matrix()
    world_from_object[:, :3, 3] = position

    colour = str(rng.choice(list(COLOURS)))
    pattern = str(rng.choice(KINDS, p=[0.3, 0.14, 0.06, 0.14, 0.12, 0.06, 0.1, 0.08]))
    base = np.array(COLOURS[colour], np.float32)
    accent = base * 0.55 if rng.uniform() < 0.6 else base + (1 - base) * 0.5
    palette = np.clip(np.stack([base, accent, base * 0.8, base * 1.15]), 0, 1).astype(np.float32)
    return Solid(
        shape=shape,
        colour=colour,
        pattern=pattern,
        motion=motion,
        extent=extent,
        world_from_object=torch.from_numpy(world_from_object).float().to(device),
        texture=_volume(make_texture(rng, pattern, palette), device),
        texture_scale=float(rng.uniform(0.5, 1.2)),
        gloss=float(rng.choice([0.0, 0.0, rng.uniform(0.1, 0.5)])),
    )


def _turn(axis: str, angles: np.ndarray) -> Rotation:
    return Rotation.from_euler(axis, angles[:, None])


def _caption(solids: list[Solid], place: str) -> str:
    """In plain words: the moving solids first, at most three named."""
    named = sorted(solids, key=lambda s: s.motion == "still")[:3]
    article = lambda word: "an" if word[0] in "aeiou" else "a"
    parts = [f"{article(s.colour)} {s.colour} {PATTERN_WORDS[s.pattern]}{s.shape} {MOTIONS[s.motion]}" for s in named]
    return f"{' and '.join(parts)} {place}" if parts else f"an empty scene {place}"


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


def source_path(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> tuple[CameraPath, str]:
    """The recording camera: static, panning, moving or hand-held; with the words for the caption."""
    height, width = size
    focal = 0.5 * max(size) / math.tan(math.radians(rng.uniform(40, 70)) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]]).repeat(frames, 1, 1)
    eye = np.array([rng.uniform(-0.6, 0.6), -rng.uniform(0.6, 1.9), rng.uniform(-1.2, 0.2)])
    target = np.array([rng.uniform(-0.5, 0.5), -rng.uniform(0.2, 0.8), rng.uniform(3.5, 5)])
    kind = str(rng.choice(["static", "pan", "move", "hand-held"], p=[0.35, 0.2, 0.25, 0.2]))
    s = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    eyes, targets, rolls = np.repeat(eye[None], frames, 0), np.repeat(target[None], frames, 0), np.zeros(frames)
    if kind == "pan":
        targets = targets + s[:, None] * np.array([rng.uniform(-1.2, 1.2), rng.uniform(-0.2, 0.2), 0])
    elif kind == "move":
        eyes = eyes + s[:, None] * rng.uniform(-0.8, 0.8, 3) * np.array([1, 0.35, 1])
    elif kind == "hand-held":
        wobble = np.cumsum(np.cumsum(rng.normal(0, 1, (frames, 7)), 0), 0)
        wobble = (wobble - wobble[:1]) / (np.abs(wobble).max() + 1e-6)
        eyes = eyes + 0.25 * wobble[:, :3] * np.array([1, 0.4, 1])
        targets = targets + 0.3 * wobble[:, 3:6]
        rolls = 0.04 * wobble[:, 6]
    poses = np.stack([_look_at(e, t, r) for e, t, r in zip(eyes, targets, rolls, strict=True)])
    words = {
        "static": "static camera",
        "pan": "panning camera",
        "move": "moving camera",
        "hand-held": "hand-held camera",
    }
    return CameraPath(torch.from_numpy(poses).float(), K), words[kind]


def target_path(rng: np.random.Generator, source: CameraPath, scene: Scene) -> CameraPath:
    """A second path: one of the six presets relative to the source, sometimes shown from its far end throughout."""
    frames = source.K.shape[0]
    name = str(rng.choice(list(PRESETS)))
    amount = rng.uniform(8, 30) if name.startswith("orbit") else rng.uniform(10, 35)
    distance = rng.uniform(3.0, 5.0)
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
    eye = path.world_from_cam[:, :3, 3]
    if (eye[:, 1] > -0.15).any():
        return False
    for plane in scene.planes:
        if ((eye @ torch.tensor(plane.normal, dtype=eye.dtype)) - plane.offset < 0.15).any() and plane.height is None:
            return False
    centres = [s.world_from_object[:, :3, 3].cpu() for s in scene.solids]
    reach = [math.hypot(*s.extent) for s in scene.solids]
    return all(((eye - c).norm(dim=1) > r + 0.3).all() for c, r in zip(centres, reach, strict=True))


# --- rendering --------------------------------------------------------------------------------------------------------


def render_view(scene: Scene, path: CameraPath, size: tuple[int, int], *, supersample: int = 2) -> View:
    """Ray-cast the scene from every pose of `path` at `size` = (H, W); colours are averages of supersample² rays."""
    device = scene.light.device
    total = path.K.shape[0]
    if device.type == "cpu" and total > 1:
        # frame by frame the working set stays in the processor's cache: twice as fast
        views = [render_view(_moment(scene, i), _pick(path, i), size, supersample=supersample) for i in range(total)]
        return View(
            torch.cat([v.frames for v in views]),
            torch.cat([v.z for v in views]),
            path,
            torch.cat([v.objects for v in views]),
        )
    H, W = size[0] * supersample, size[1] * supersample
    pose = path.world_from_cam.to(device)
    K = path.K.to(device).clone()
    K[:, :2] *= supersample
    T = pose.shape[0]
    u = torch.arange(W, device=device) + 0.5
    v = torch.arange(H, device=device) + 0.5
    x = ((u[None] - K[:, 0, 2, None]) / K[:, 0, 0, None])[:, None, :].expand(T, H, W)
    y = ((v[None] - K[:, 1, 2, None]) / K[:, 1, 1, None])[:, :, None].expand(T, H, W)
    R, eye = pose[:, :3, :3], pose[:, :3, 3]
    # ray direction with unit depth: its parameter is the depth along the optical axis
    ray = torch.stack([_col(R, i, 0) * x + _col(R, i, 1) * y + _col(R, i, 2) for i in range(3)])
    footprint = 1 / K[0, 0, 0]

    z = torch.full((T, H, W), FAR, device=device)
    albedo = _sky_colour(scene, ray)
    normal = torch.zeros(3, T, H, W, device=device)
    gloss = torch.zeros(T, H, W, device=device)
    label = torch.full((T, H, W), -1, dtype=torch.int8, device=device)
    for plane in scene.planes:
        n = torch.tensor(plane.normal, dtype=torch.float32, device=device)
        facing = (ray * n[:, None, None, None]).sum(0)
        depth = (plane.offset - eye @ n)[:, None, None] / torch.where(facing.abs() < 1e-6, -1e-6, facing)
        hit = (facing < 0) & (depth > 1e-3) & (depth < z)
        point = eye.T[:, :, None, None] + depth * ray
        if plane.height is not None:
            hit &= point[1] > -plane.height
        axes = [i for i in range(3) if plane.normal[i] == 0]
        slant = (_norm(ray) / facing.abs().clamp(min=1e-3)).clamp(max=40)
        colour = _lookup(
            plane.texture, point[axes[0]], point[axes[1]], plane.texture_scale, depth * footprint * slant.sqrt()
        )
        z = torch.where(hit, depth, z)
        albedo = torch.where(hit, colour, albedo)
        normal = torch.where(hit, n[:, None, None, None], normal)
    for index, solid in enumerate(scene.solids):
        window = _window(solid, pose, K, (H, W))
        if window is None:
            continue
        rows, cols = window
        part = (slice(None), rows, cols)
        o, d, Ro = _local_rays(solid, eye, ray[(slice(None), *part)])
        depth, n = _INTERSECT[solid.shape](o, d, solid.extent)
        hit = (depth > 0.05) & (depth < z[part])
        local = o[:, :, None, None] + depth * d
        # box mapping: project along the dominant axis of the local normal
        axis = n.abs().argmax(0)
        first = torch.where(axis == 0, local[1], local[0])
        second = torch.where(axis == 2, local[1], local[2])
        colour = _lookup(solid.texture, first, second, solid.texture_scale, depth * footprint * 1.5)
        world_n = torch.stack([sum(Ro[:, i, j, None, None] * n[j] for j in range(3)) for i in range(3)])
        z[part] = torch.where(hit, depth, z[part])
        albedo[(slice(None), *part)] = torch.where(hit, colour, albedo[(slice(None), *part)])
        normal[(slice(None), *part)] = torch.where(hit, world_n, normal[(slice(None), *part)])
        gloss[part] = torch.where(hit, solid.gloss, gloss[part])
        label[part] = torch.where(hit, index, label[part])

    colour = _shade(scene, albedo, normal, gloss, eye, ray, z, label)
    s = supersample
    frames = F.avg_pool2d(colour.movedim(0, 1), s) if s > 1 else colour.movedim(0, 1).contiguous()
    label = label.reshape(T, size[0], s, size[1], s)
    objects = (
        torch.stack([(label == i).float().mean((2, 4)) >= 0.5 for i in range(len(scene.solids))], 1)
        if scene.solids
        else torch.zeros(T, 0, *size, dtype=torch.bool, device=device)
    )
    cells = z.reshape(T, size[0], s, size[1], s)
    near, far = cells.amin((2, 4)), cells.amax((2, 4))
    # a pixel that straddles an edge belongs to the nearer surface
    pixel_z = torch.where(far < 1.05 * near, cells.mean((2, 4)), near)
    return View(frames.clamp(0, 1), pixel_z, path, objects)


def _moment(scene: Scene, i: int) -> Scene:
    frozen = (replace(s, world_from_object=s.world_from_object[i : i + 1]) for s in scene.solids)
    return replace(scene, solids=tuple(frozen))


def _pick(path: CameraPath, i: int) -> CameraPath:
    return CameraPath(path.world_from_cam[i : i + 1], path.K[i : i + 1])


def _norm(v: Tensor) -> Tensor:
    return (v * v).sum(0).sqrt()  # several times faster than torch.linalg.vector_norm over a leading axis


def _col(R: Tensor, i: int, j: int) -> Tensor:
    return R[:, i, j, None, None]


def _lookup(texture: Tensor, a: Tensor, b: Tensor, scale: float, footprint: Tensor) -> Tensor:
    """Anti-aliased periodic texture colour at surface coordinates a, b (world units): (3, *a.shape)."""
    levels = texture.shape[1]
    level = torch.log2((footprint * scale * SIZE).clamp(min=1e-6)).clamp(0, levels - 1)
    size = SIZE + 2
    to_grid = lambda c: (((c * scale) % 1.0) * SIZE + 1.0) / size * 2 - 1
    grid = torch.stack([to_grid(a), to_grid(b), (level + 0.5) / levels * 2 - 1], -1)
    grid = grid.reshape(1, 1, -1, a.shape[-1], 3)
    out = F.grid_sample(texture[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out.reshape(3, *a.shape)


def _sky_colour(scene: Scene, ray: Tensor) -> Tensor:
    unit = ray / _norm(ray)
    azimuth, height = torch.atan2(unit[0], unit[2]) / math.pi, -unit[1]
    base = _lookup(scene.sky, azimuth, height, 1.0, torch.full_like(height, 1 / 400))
    return base * (1.05 - 0.35 * height.clamp(0, 1))


def _local_rays(solid: Solid, eye: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    R, centre = solid.world_from_object[:, :3, :3], solid.world_from_object[:, :3, 3]
    offset = eye - centre
    o = torch.stack([(R[:, :, i] * offset).sum(1) for i in range(3)])
    d = torch.stack([sum(R[:, j, i, None, None] * ray[j] for j in range(3)) for i in range(3)])
    return o, d, R


def _window(solid: Solid, pose: Tensor, K: Tensor, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """The rows and columns that the bounding sphere can touch in any frame."""
    centre = solid.world_from_object[:, :3, 3]
    local = torch.einsum("tji,tj->ti", pose[:, :3, :3], centre - pose[:, :3, 3])
    radius = math.sqrt(sum(e * e for e in solid.extent))
    depth = local[:, 2]
    if (depth < -radius).all():
        return None
    if (depth - radius < 0.3).any():
        return slice(0, size[0]), slice(0, size[1])
    spans = []
    for axis, limit in ((1, size[0]), (0, size[1])):
        f, c = K[:, axis, axis], K[:, axis, 2]
        low = (f * (local[:, axis] - radius) / (depth - radius) + c).minimum(
            f * (local[:, axis] - radius) / (depth + radius) + c
        )
        high = (f * (local[:, axis] + radius) / (depth - radius) + c).maximum(
            f * (local[:, axis] + radius) / (depth + radius) + c
        )
        start, stop = max(0, math.floor(float(low.min())) - 1), min(limit, math.ceil(float(high.max())) + 1)
        if stop <= start:
            return None
        spans.append(slice(start, stop))
    return spans[0], spans[1]


def _shade(scene, albedo, normal, gloss, eye, ray, z, label) -> Tensor:
    """Lambert, a Blinn highlight and soft shadows of bounding spheres; the sky shines by itself."""
    light = scene.light
    point = eye.T[:, :, None, None] + z * ray
    lambert = (normal * light[:, None, None, None]).sum(0).clamp(min=0)
    lit = torch.ones_like(z)
    for index, solid in enumerate(scene.solids):
        centre = solid.world_from_object[:, :3, 3].T[:, :, None, None]
        rx, ry, rz = solid.extent
        radius = (rx * ry * rz) ** (1 / 3) * 1.05
        to = centre - point
        along = (to * light[:, None, None, None]).sum(0)
        miss = ((to * to).sum(0) - along * along).clamp(min=0).sqrt()
        shade = (1 - ((miss / radius - 0.75) / 0.5).clamp(0, 1)) * (along > 0) * (label != index)
        lit = lit * (1 - 0.85 * shade)
    half = light[:, None, None, None] - ray / _norm(ray)
    half = half / _norm(half).clamp(min=1e-6)
    highlight = gloss * ((normal * half).sum(0).clamp(min=0) ** 40) * lit
    shaded = (
        albedo * (scene.ambient[:, None, None, None] + scene.light_colour[:, None, None, None] * (lambert * lit))
        + highlight
    )
    return torch.where(z < FAR, shaded, albedo)


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
    return t, n / _norm(n).clamp(min=1e-6)


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


def _round(o: Tensor, d: Tensor, top: float, bottom: float, h: float) -> tuple[Tensor, Tensor]:
    """A truncated cone around y, radius `top` at y = -h (up) and `bottom` at y = +h, with caps."""
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
        ok = (x * x + zz * zz <= radius * radius) & (t > 1e-3) & (t < best)
        best = torch.where(ok, t, best)
        cap = torch.tensor([0.0, sign, 0.0], dtype=d.dtype, device=d.device)[:, None, None, None]
        n = torch.where(ok, cap, n)
    return best, n


_INTERSECT = {
    "ball": _intersect_ellipsoid,
    "egg": _intersect_ellipsoid,
    "box": _intersect_box,
    "cylinder": _intersect_cylinder,
    "cone": _intersect_cone,
}
