import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.camera import (
    CameraPath,
    default_intrinsics,
    follow,
    invert_rigid,
    pixel_rays,
    preset_motion,
    project,
    static_path,
    transform,
)
from pipeline.measurement import Measurement, composite, fill_unknown, warp_to_path

H, W, T = 96, 160, 3
K = default_intrinsics(H, W, T)
DISTANCE = 4.0


class Scene:
    """A ray-caster in closed form: a slanted wall and, before it, any number of balls, with a smooth solid texture."""

    def __init__(self, *balls: tuple[tuple[float, float, float], float], slant=(0.25, -0.15)):
        self.balls = [(torch.tensor(c, dtype=torch.float64), r) for c, r in balls]
        self.normal = torch.tensor([slant[0], slant[1], 1.0], dtype=torch.float64)

    def depth(self, pose: Tensor, rays: Tensor) -> Tensor:
        """Distance along the optical axis (the rays have z = 1 in camera axes) of the first hit; inf for none."""
        origin, world = pose[:3, 3], rays @ pose[:3, :3].T
        along = world @ self.normal
        z = (5.0 - origin @ self.normal) / along
        z = torch.where((along > 0) & (z > 0), z, math.inf)
        for centre, radius in self.balls:
            a, half_b = (world**2).sum(-1), world @ (origin - centre)
            root = half_b**2 - a * (((origin - centre) ** 2).sum() - radius**2)
            hit = (-half_b - root.clamp_min(0).sqrt()) / a
            z = torch.where((root > 0) & (hit > 0), torch.minimum(z, hit), z)
        return z

    def texture(self, points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        waves = (torch.sin(6 * x + 2 * z), torch.sin(7 * y - 3 * x + 1), torch.sin(5 * (x + y) + 2))
        return 0.5 + 0.4 * torch.stack(waves, -3)

    def render(self, path: CameraPath) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, z, and the points in the world."""
        rays = pixel_rays(H, W, path.K.double())
        poses = path.world_from_cam.double()
        z = torch.stack([self.depth(pose, r) for pose, r in zip(poses, rays, strict=True)])
        points = transform(poses, rays * z[..., None])
        return self.texture(points).float(), z.float(), points

    def seen_from(self, source: CameraPath, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where in the source image world points lie, and whether the source sees them there."""
        cam = transform(invert_rigid(source.world_from_cam.double()), points)
        uv, z = project(cam, source.K.double())
        poses = source.world_from_cam.double()
        first = torch.stack([self.depth(p, c / c[..., 2:]) for p, c in zip(poses, cam, strict=True)])
        inside = (uv >= 0).all(-1) & (uv[..., 0] <= W) & (uv[..., 1] <= H)
        return uv, inside & (z > 0) & (z <= first * (1 + 1e-6))


SCENES = {
    "plane": Scene(),
    "sphere": Scene(((0.1, 0.0, 3.6), 0.9)),
    "two spheres": Scene(((-0.6, 0.2, 3.2), 0.5), ((0.7, -0.2, 4.0), 0.6)),
}
MOVES = [("orbit-left", 30), ("orbit-right", 10), ("orbit-up", 20), ("orbit-down", 20), ("dolly-in", 30)]
MOVES += [("dolly-out", 40)]


def erode(mask: Tensor, pixels: int) -> Tensor:
    mask = F.pad(mask[:, None].float(), (pixels,) * 4, mode="replicate")
    return F.max_pool2d(1 - mask, 2 * pixels + 1, 1)[:, 0] == 0


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().clamp_min(1e-12).item())


@pytest.mark.parametrize("move", MOVES, ids=lambda m: f"{m[0]}-{m[1]}")
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_warp_agrees_with_the_ray_caster(scene, move):
    source = static_path(K)
    target = follow(source, preset_motion(*move, T, DISTANCE))
    frames, z, _ = scene.render(source)
    wanted, _, points = scene.render(target)
    uv, visible = scene.seen_from(source, points)
    measured = warp_to_path(frames, z, source, target)
    mask = measured.mask[:, 0]

    # The mask: nothing seen inside what is hidden, no hole inside what is seen, but for a band of two pixels.
    assert not (mask & erode(~visible, 2)).any()
    assert not (~mask & erode(visible, 2)).any()
    inner = erode(visible, 2)
    assert inner.float().mean() > 0.3

    # The colours.
    assert (measured.video.movedim(1, -1)[~mask] == 0).all()
    got, want = measured.video.movedim(1, -1), wanted.movedim(1, -1)
    assert psnr(got[inner], want[inner]) > 45
    seen = mask & visible
    assert psnr(got[seen], want[seen]) > 32

    # The geometry: a clip whose colours are source coordinates says where each pixel came from.
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    coordinates = torch.stack([u / W, v / H, torch.zeros_like(u)]).expand(T, 3, H, W)
    came_from = warp_to_path(coordinates, z, source, target).video.movedim(1, -1)[..., :2] * torch.tensor([W, H])
    error = (came_from - uv)[inner].norm(dim=-1)
    print(scene, move, "psnr", psnr(got[inner], want[inner]), psnr(got[seen], want[seen]), "px", error.mean(), error.max())
    assert error.max() < 1 and error.mean() < 0.05
