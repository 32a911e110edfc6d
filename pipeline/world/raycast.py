"""A scene of textured primitives and planes, and what a camera records of it: frames, exact depth, object masks.

Rays are scaled so that their parameter is the depth along the optical axis, hence depth is exact. World axes are those
of the camera convention (x right, y down, z forward) with the ground at y = 0. Runs on the CPU or on a CUDA device.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.camera.geometry import CameraPath
from pipeline.world.primitives import INTERSECT, norm
from pipeline.world.textures import SIZE

FAR = 60.0
RAYS = 110_000  # that a processor follows at once: their working set stays in its cache, which is twice as fast


@dataclass(frozen=True, eq=False)
class View:
    """One camera's recording. `z` is depth along the optical axis (sky at FAR); `objects` a visible mask per solid."""

    frames: Float[Tensor, "T 3 H W"]
    z: Float[Tensor, "T H W"]
    path: CameraPath
    objects: Bool[Tensor, "T N H W"]

    @property
    def standing(self) -> Bool[Tensor, "T H W"]:
        """What stands still for certain: no object, no sky."""
        return ~self.objects.any(1) & (self.z < 0.99 * FAR)


@dataclass(frozen=True, eq=False)
class Material:
    """What a surface looks like; `scale` is in texture periods per world unit."""

    texture: Float[Tensor, "3 L S S"]
    scale: float
    gloss: float = 0.0


@dataclass(frozen=True, eq=False)
class Part:
    """A primitive of half extents `extent`, posed by `world_from_part` in each frame (T = 1: it stands still)."""

    shape: str
    extent: tuple[float, float, float]
    world_from_part: Float[Tensor, "T 4 4"]
    material: Material
    casts: bool = True  # a shadow


@dataclass(frozen=True, eq=False)
class Solid:
    """An object: one primitive, or several that move as one (then `shape` names the whole, `colour` its main part)."""

    shape: str
    colour: str
    pattern: str
    motion: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane normal·p = offset, seen from the side the normal points to.

    A wall is hidden above its `height`, a number or a periodic skyline with four samples a unit of x. The brightness
    follows the plane's own texture, seen much enlarged, by `variation`: so that no period shows from afar.
    """

    normal: tuple[float, float, float]
    offset: float
    material: Material
    height: float | Float[Tensor, "N"] | None = None
    variation: float = 0.0


@dataclass(frozen=True, eq=False)
class Light:
    """A distant light and the ambient one; `lamp` dims the light with the distance from it; haze thickens by `fog`."""

    direction: Float[Tensor, "3"]  # unit vector towards the light
    colour: Float[Tensor, "3"]
    ambient: Float[Tensor, "3"]
    horizon: Float[Tensor, "3"]  # the colour of the haze, and of the sky above the horizon
    fog: float = 0.0  # per unit of depth
    lamp: tuple[float, float, float] | None = None
    vignette: float = 0.0  # darkening of the corners


@dataclass(frozen=True)
class Viewpoint:
    """Where a camera stands, the point it looks at, and the angle of view of its longer side, in degrees."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    angle: float


@dataclass(frozen=True, eq=False)
class Scene:
    """Solids are the objects, with masks; scenery is all else but planes. `viewpoint` is where to film it from."""

    solids: tuple[Solid, ...]
    scenery: tuple[Part, ...]
    planes: tuple[Plane, ...]
    sky: Float[Tensor, "3 L S S"]
    light: Light
    viewpoint: Viewpoint
    caption: str

    def parts(self) -> list[tuple[int, Part]]:
        """All parts with their owners: the index of the solid, and larger numbers for each part of the scenery."""
        owned = [(i, part) for i, solid in enumerate(self.solids) for part in solid.parts]
        return owned + list(enumerate(self.scenery, start=len(self.solids)))


def render_view(scene: Scene, path: CameraPath, size: tuple[int, int], *, supersample: int = 2) -> View:
    """Ray-cast the scene from every pose of `path` at `size` = (H, W); colours are averages of supersample² rays."""
    device = scene.sky.device
    total, rays = path.K.shape[0], size[0] * size[1] * supersample**2
    together = max(1, RAYS // rays)  # frames
    if device.type == "cpu" and total > together:
        spans = [slice(i, i + together) for i in range(0, total, together)]
        views = [render_view(_moments(scene, s), _pick(path, s), size, supersample=supersample) for s in spans]
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
    footprint = 1 / float(K[0, 0, 0])

    z, surface = _planes_hit(scene, eye, ray)
    albedo = _sky_colour(scene, ray)
    normal = torch.zeros(3, T, H, W, device=device)
    gloss = torch.zeros(T, H, W, device=device)
    solid_from = len(scene.planes)
    for owner, part in _near_to_far(scene, eye):
        window = _window(part, pose, K, (H, W))
        if window is None:
            continue
        where = (slice(None), *window)
        o, d, Ro = _local_rays(part, eye, ray[(slice(None), *where)])
        depth, n = INTERSECT[part.shape](o, d, part.extent)
        hit = (depth > 0.05) & (depth < z[where])
        if not hit.any():
            continue
        t, row, col = hit.nonzero(as_tuple=True)
        depth, n = depth[t, row, col], n[:, t, row, col]
        local = o[:, t] + depth * d[:, t, row, col]
        # box mapping: project along the dominant axis of the local normal
        axis = n.abs().argmax(0)
        first = torch.where(axis == 0, local[2], local[0])
        second = torch.where(axis == 1, local[2], local[1])
        pixels = (t, row + window[0].start, col + window[1].start)
        material = part.material
        z[pixels] = depth
        surface[pixels] = solid_from + owner
        gloss[pixels] = material.gloss
        colour = _lookup(material.texture, first, second, material.scale, depth * footprint * 1.5)
        albedo[(slice(None), *pixels)] = colour
        normal[(slice(None), *pixels)] = torch.einsum("nij,jn->in", Ro[t], n) if T > 1 else Ro[0] @ n
    for index, plane in enumerate(scene.planes):
        pixels = (surface == index).nonzero(as_tuple=True)
        if len(pixels[0]) == 0:
            continue
        n = torch.tensor(plane.normal, dtype=torch.float32, device=device)
        depth, direction = z[pixels], ray[(slice(None), *pixels)]
        point = eye.T[:, pixels[0]] + depth * direction
        slant = (norm(direction) / (n @ direction).abs().clamp(min=1e-3)).clamp(max=40)
        first, second = (i for i in (0, 2, 1) if plane.normal[i] == 0)
        texture, scale, width = plane.material.texture, plane.material.scale, depth * footprint * slant.sqrt()
        colour = _lookup(texture, point[first], point[second], scale, width)
        if plane.variation > 0:
            broad = _lookup(texture, point[second], point[first], scale * 0.083, width).mean(0)
            colour = colour * (1 + plane.variation * (broad / texture.mean() - 1)).clamp(0.4, 1.6)
        albedo[(slice(None), *pixels)] = colour
        normal[(slice(None), *pixels)] = n[:, None]
        gloss[pixels] = plane.material.gloss

    label = surface - solid_from
    colour = _shade(scene, albedo, normal, gloss, eye, ray, z, label)
    if scene.light.vignette > 0:
        colour = colour * (1 - scene.light.vignette * (x * x + y * y) / (x * x + y * y).amax())
    return _averaged(colour, z, label, path, len(scene.solids), supersample)


def _planes_hit(scene: Scene, eye: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """How far the nearest plane is along each ray, T H W, and which one, -1 for none."""
    T, H, W = ray.shape[1:]
    device = ray.device
    z = torch.full((T, H, W), FAR, device=device)
    surface = torch.full((T, H, W), -1, dtype=torch.int16, device=device)  # which plane, or beyond them which owner
    for index, plane in enumerate(scene.planes):
        n = torch.tensor(plane.normal, dtype=torch.float32, device=device)
        facing = (ray * n[:, None, None, None]).sum(0)
        depth = (plane.offset - eye @ n)[:, None, None] / torch.where(facing.abs() < 1e-6, -1e-6, facing)
        hit = (facing < 0) & (depth > 1e-3) & (depth < z)
        if plane.height is not None:
            height = plane.height
            if isinstance(height, Tensor):
                along = (eye[:, 0, None, None] + depth * ray[0]).nan_to_num(0, 0, 0) * 4
                below, share = along.floor().long(), along - along.floor()
                left, right = height[below % len(height)], height[(below + 1) % len(height)]
                height = left + (right - left) * share
            hit &= eye[:, 1, None, None] + depth * ray[1] > -height
        z = torch.where(hit, depth, z)
        surface = torch.where(hit, index, surface)
    return z, surface


def _averaged(colour: Tensor, z: Tensor, label: Tensor, path: CameraPath, solids: int, s: int) -> View:
    """The view of rays s times as dense each way. label: of the solid that a ray hit, counted from 0."""
    T, H, W = z.shape
    size = H // s, W // s
    frames = F.avg_pool2d(colour.movedim(0, 1), s) if s > 1 else colour.movedim(0, 1).contiguous()
    label = label.reshape(T, size[0], s, size[1], s)
    objects = (
        torch.stack([(label == i).float().mean((2, 4)) >= 0.5 for i in range(solids)], 1)
        if solids
        else torch.zeros(T, 0, *size, dtype=torch.bool, device=z.device)
    )
    cells = z.reshape(T, size[0], s, size[1], s)
    near, far = cells.amin((2, 4)), cells.amax((2, 4))
    # a pixel that straddles an edge belongs to the nearer surface
    pixel_z = torch.where(far < 1.05 * near, cells.mean((2, 4)), near)
    return View(frames.clamp(0, 1), pixel_z, path, objects)


def _moments(scene: Scene, span: slice) -> Scene:
    frozen = lambda part: replace(part, world_from_part=part.world_from_part[span])
    solids = (replace(s, parts=tuple(frozen(p) for p in s.parts)) for s in scene.solids)
    return replace(scene, solids=tuple(solids))


def _pick(path: CameraPath, span: slice) -> CameraPath:
    return CameraPath(path.world_from_cam[span], path.K[span])


def _col(R: Tensor, i: int, j: int) -> Tensor:
    return R[:, i, j, None, None]


def _near_to_far(scene: Scene, eye: Tensor) -> list[tuple[int, Part]]:
    """What is hidden behind a nearer part needs no texture."""
    distance = lambda part: float((part.world_from_part[0, :3, 3] - eye[0]).norm()) - min(part.extent)
    return sorted(scene.parts(), key=lambda owned: distance(owned[1]))


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
    unit = ray / norm(ray)
    azimuth, height = torch.atan2(unit[0], unit[2]) / math.pi, -unit[1]
    base = _lookup(scene.sky, azimuth, height, 1.0, torch.full_like(height, 1 / 400))
    haze = 0.75 * torch.exp(-6 * height.clamp(min=0))
    return base + (scene.light.horizon[:, None, None, None] - base) * haze


def _local_rays(part: Part, eye: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pose = part.world_from_part.expand(len(eye), 4, 4)
    R, centre = pose[:, :3, :3], pose[:, :3, 3]
    offset = eye - centre
    o = torch.stack([(R[:, :, i] * offset).sum(1) for i in range(3)])
    d = torch.stack([sum((_col(R, j, i) * ray[j] for j in range(3)), ray.new_zeros(())) for i in range(3)])
    return o, d, R


_CORNERS = np.array(list(itertools.product((-1, 1), repeat=3)), np.float32)
_EDGES = np.array([(i, j) for i in range(8) for j in range(i) if np.abs(_CORNERS[i] - _CORNERS[j]).sum() == 2])


def _window(part: Part, pose: Tensor, K: Tensor, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """The rows and columns that the bounding box can touch in any frame: its corners, clipped at the camera."""
    camera, world = pose.cpu().numpy(), part.world_from_part.cpu().numpy()
    corners = (_CORNERS * part.extent) @ world[:, :3, :3].transpose(0, 2, 1) + world[:, None, :3, 3]
    local = (corners - camera[:, None, :3, 3]) @ camera[:, :3, :3]
    local = local @ K.cpu().numpy().transpose(0, 2, 1)  # (u z, v z, z)
    near = 0.05
    shown = local[local[..., 2] >= near]
    if len(shown) == 0:
        return None
    if len(shown) < local.shape[0] * 8:
        a, b = local[:, _EDGES[:, 0]].reshape(-1, 3), local[:, _EDGES[:, 1]].reshape(-1, 3)
        cut = (a[:, 2] < near) != (b[:, 2] < near)
        a, b = a[cut], b[cut]
        shown = np.concatenate([shown, a + (b - a) * ((near - a[:, 2]) / (b[:, 2] - a[:, 2]))[:, None]])
    uv = shown[:, :2] / shown[:, 2:]
    low = np.clip(np.floor(uv.min(0)) - 1, 0, size[::-1]).astype(int)
    high = np.clip(np.ceil(uv.max(0)) + 1, 0, size[::-1]).astype(int)
    if (high <= low).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def _shade(scene, albedo, normal, gloss, eye, ray, z, label) -> Tensor:
    """Lambert, a Blinn highlight, soft shadows of bounding ellipsoids, haze; the sky shines by itself."""
    light, T = scene.light, len(eye)
    point = eye.T[:, :, None, None] + z * ray
    direction = light.direction[:, None, None, None]
    lambert = (normal * direction).sum(0).clamp(min=0)
    along = (point * direction).sum(0)
    across = _across(light.direction)  # seen from the light, an ellipsoid is an ellipse
    a, b = ((point * axis[:, None, None, None]).sum(0) for axis in across)
    lit = torch.ones_like(z)
    for owner, part in scene.parts():
        if not part.casts:
            continue
        pose = part.world_from_part.expand(T, 4, 4)
        fill = 1.1 if part.shape == "box" else 1.0
        half = torch.einsum("ij,tjk->tik", across, pose[:, :3, :3]) * (fill * pose.new_tensor(part.extent))
        outline = torch.linalg.inv(half @ half.transpose(1, 2))[:, :, :, None, None]
        centre = pose[:, :3, 3]
        da, db = (c - (centre @ axis)[:, None, None] for c, axis in zip((a, b), across, strict=True))
        miss = outline[:, 0, 0] * da * da + 2 * outline[:, 0, 1] * da * db + outline[:, 1, 1] * db * db
        shade = ((1.25 - miss.clamp(min=0).sqrt()) * 2).clamp(0, 1)
        behind = (along < (centre @ light.direction)[:, None, None]) & (label != owner)
        lit = lit * (1 - 0.85 * shade * behind)
    strength = lit
    if light.lamp is not None:
        away = point - torch.tensor(light.lamp, device=point.device)[:, None, None, None]
        strength = lit * 1.6 / (1 + (away * away).sum(0) / 9)
    half = direction - ray / norm(ray)
    half = half / norm(half).clamp(min=1e-6)
    highlight = gloss * ((normal * half).sum(0).clamp(min=0) ** 40) * strength * light.colour.amax()
    ambient = light.ambient[:, None, None, None] * (0.85 - 0.15 * normal[1])  # more from above than from below
    shaded = albedo * (ambient + light.colour[:, None, None, None] * (lambert * strength)) + highlight
    if light.fog > 0:
        clear = torch.exp(-light.fog * z)
        shaded = light.horizon[:, None, None, None] * (1 - clear) + shaded * clear
    return torch.where(z < FAR, shaded, albedo)


def _across(direction: Tensor) -> Tensor:
    """Two unit vectors across `direction` and each other: (2, 3)."""
    helper = torch.eye(3, device=direction.device)[int(direction.abs().argmin())]
    first = torch.linalg.cross(direction, helper)
    first = first / first.norm()
    return torch.stack([first, torch.linalg.cross(direction, first)])
