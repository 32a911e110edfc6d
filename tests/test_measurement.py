import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.camera.geometry import (
    CameraPath,
    default_intrinsics,
    follow,
    invert_rigid,
    pixel_rays,
    project,
    static_path,
    transform,
)
from pipeline.finish.composite import composite
from pipeline.known import warp
from pipeline.known.behind import see_behind
from pipeline.known.fill import fill_unknown
from pipeline.known.measurement import Measurement
from pipeline.known.warp import warp_depth, warp_to_path
from pipeline.world.cameras import preset_motion

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


def outlines(z: Tensor) -> Tensor:
    """Pixels next to a step in depth."""
    far = F.max_pool2d(z[:, None], 3, 1, 1)[:, 0]
    near = -F.max_pool2d(-z[:, None], 3, 1, 1)[:, 0]
    return far - near > 0.15 * near


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().clamp_min(1e-12).item())


def source_coordinates() -> Tensor:
    """A clip whose colours say where in the image they are."""
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    return torch.stack([u / W, v / H, torch.zeros_like(u)]).expand(T, 3, H, W)


@pytest.mark.parametrize("move", MOVES, ids=lambda m: f"{m[0]}-{m[1]}")
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_warp_agrees_with_the_ray_caster(scene, move):
    source = static_path(K)
    name, amount = move
    target = follow(source, preset_motion(name, amount, T, DISTANCE))
    frames, z, _ = scene.render(source)
    wanted, target_z, points = scene.render(target)
    uv, visible = scene.seen_from(source, points)
    measured = warp_to_path(frames, z, source, target)
    mask = measured.mask[:, 0]

    # The mask, but for a band along its border and along outlines; grazing surfaces are allowed a few stray pixels.
    inner = erode(visible & ~outlines(target_z), 2)
    assert inner.float().mean() > 0.3
    assert (mask & erode(~visible, 2)).float().mean() < 1e-4
    assert not (mask & erode(~visible, 3)).any()
    assert (~mask & inner).float().mean() < 1e-3
    assert not (~mask & erode(inner, 2)).any()

    got, want = measured.video.movedim(1, -1), wanted.movedim(1, -1)
    assert (got[~mask] == 0).all()
    assert psnr(got[inner & mask], want[inner & mask]) > 44
    assert psnr(got[mask & visible], want[mask & visible]) > 30

    found = warp_to_path(source_coordinates(), z, source, target).video.movedim(1, -1)[..., :2] * torch.tensor([W, H])
    error = (found - uv)[inner & mask].norm(dim=-1)
    assert error.mean() < 0.05
    assert (error > 1).float().mean() < 5e-4  # the wall through a stray hole in a grazing surface


def test_warp_follows_a_moving_source_camera():
    scene = SCENES["sphere"]
    source = CameraPath(preset_motion("orbit-up", 15, T, DISTANCE), K)
    target = static_path(K)
    frames, z, _ = scene.render(source)
    wanted, target_z, points = scene.render(target)
    visible = scene.seen_from(source, points)[1]
    measured = warp_to_path(frames, z, source, target)
    inner = erode(visible & ~outlines(target_z), 2)
    assert measured.mask[:, 0][inner].float().mean() > 0.999
    assert psnr((measured.video * inner[:, None])[1:], (wanted * inner[:, None])[1:]) > 44


def test_other_intrinsics_zoom_about_the_principal_point():
    """Without motion, K alone moves pixels, whatever their depth."""
    scene = SCENES["two spheres"]
    source = static_path(K)
    zoomed = K.clone()
    zoomed[:, :2, :2] *= 1.5
    frames, z, _ = scene.render(source)
    wanted = scene.render(static_path(zoomed))[0]
    measured = warp_to_path(frames, z, source, static_path(zoomed))
    assert measured.mask.all()
    inner = erode(~outlines(scene.render(static_path(zoomed))[1]), 3)
    assert psnr(measured.video.movedim(1, -1)[inner], wanted.movedim(1, -1)[inner]) > 40


def test_the_identity_path_returns_the_clip_whatever_the_depth():
    torch.manual_seed(0)
    frames = torch.rand(T, 3, H, W)
    z = torch.rand(T, H, W) * 5
    z[:, :10] = math.nan
    source = CameraPath(preset_motion("orbit-up", 30, T, DISTANCE), K)
    measured = warp_to_path(frames, z, source, follow(source, torch.eye(4).expand(T, 4, 4)))
    assert torch.equal(measured.video, frames)
    assert measured.mask.all()


def test_a_path_that_starts_at_the_source_keeps_its_first_frame():
    frames, z, _ = SCENES["sphere"].render(static_path(K))
    target = follow(static_path(K), preset_motion("orbit-left", 30, T, DISTANCE))
    measured = warp_to_path(frames, z, static_path(K), target)
    assert torch.equal(measured.video[0], frames[0])
    assert measured.mask[0].all()


def test_a_tiny_motion_changes_almost_nothing():
    frames, z, _ = SCENES["two spheres"].render(static_path(K))
    target = follow(static_path(K), preset_motion("orbit-left", 0.001, T, DISTANCE))
    measured = warp_to_path(frames, z, static_path(K), target)
    assert measured.mask.all()
    assert (measured.video - frames).abs().max() < 0.01


def test_unknown_depth_is_unobserved_and_hides_nothing():
    frames, z, _ = SCENES["plane"].render(static_path(K))
    target = follow(static_path(K), preset_motion("dolly-in", 20, T, DISTANCE))
    whole = warp_to_path(frames, z, static_path(K), target)
    for bad in (math.nan, math.inf, -math.inf, 0.0, -2.0):
        broken = z.clone()
        broken[:, 40:60, 70:90] = bad
        measured = warp_to_path(frames, broken, static_path(K), target)
        lost = whole.mask & ~measured.mask
        assert 0.5 < lost[1:].sum() / (2 * 20 * 20 * 1.25) < 1.7  # magnified by about 1.2
        assert (measured.video - whole.video).masked_fill(~measured.mask, 0).abs().max() < 0.02
    nothing = warp_to_path(frames, torch.full_like(z, math.nan), static_path(K), target)
    assert not nothing.mask[1:].any()
    assert (nothing.video[1:] == 0).all()


def test_points_behind_the_target_camera_are_dropped():
    frames = torch.rand(T, 3, H, W)
    z = torch.ones(T, H, W)
    forward = torch.eye(4).repeat(T, 1, 1)
    forward[:, 2, 3] = 2.0
    assert not warp_to_path(frames, z, static_path(K), follow(static_path(K), forward)).mask.any()


def test_no_ghosts_at_a_blurred_step_of_depth():
    """Depth estimators smear outlines over a few pixels; what stands between the surfaces must not be drawn."""
    near = torch.zeros(H, W, dtype=torch.bool)
    near[30:66, 50:110] = True
    frames = torch.where(near, torch.tensor([1.0, 0, 0])[:, None, None], torch.tensor([0, 0, 1.0])[:, None, None])
    frames = frames.expand(T, 3, H, W)
    z = torch.where(near, 2.0, 6.0)[None, None]
    z = F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, 1)[0].expand(T, H, W)
    target = follow(static_path(K), preset_motion("orbit-left", 12, T, DISTANCE))
    measured = warp_to_path(frames, z, static_path(K), target)
    colour = measured.video.movedim(1, -1)[measured.mask[:, 0]]
    mixed = (colour[:, 0] > 0.02) & (colour[:, 2] > 0.02)
    assert mixed.float().mean() < 0.002
    hole = ~measured.mask[-1, 0, 48]
    assert hole.sum() > 8  # the step opens
    inside = measured.video[-1, 0, 40:56] > 0.9  # the near square: no background shows through it
    columns = inside.any(0).nonzero()[:, 0]
    assert inside[:, columns[1] : columns[-2]].all()


def test_tidying_leaves_surfaces_alone_and_reaches_only_outlines():
    source = static_path(K)
    target = follow(source, preset_motion("orbit-right", 25, T, DISTANCE))
    for scene in SCENES.values():
        frames, z, _ = scene.render(source)
        _, target_z, _ = scene.render(target)
        plain, tidy = (warp_to_path(frames, z, source, target, tidy=on) for on in (False, True))
        changed = (plain.video != tidy.video).any(1) | (plain.mask != tidy.mask)[:, 0]
        assert torch.equal(plain.video[0], tidy.video[0])  # the camera that filmed it
        assert not (changed & erode(~outlines(target_z) & plain.mask[:, 0], 3)).any()
        assert changed.any() == (scene is not SCENES["plane"])
        assert (tidy.mask | ~plain.mask).all()


def test_tidying_closes_a_crack_and_keeps_a_wire():
    frames = torch.zeros(T, 3, H, W)
    frames[:, 0], frames[:, 0, 60:, 40:42], frames[:, 2, 60:, 40:42] = 1, 0, 1
    z = torch.full((T, H, W), 4.0)
    z[:, 40, 60] = math.nan
    z[:, 60:, 40:42] = 2.0
    pose = torch.eye(4)
    pose[0, 3] = 0.02
    target = CameraPath(pose.expand(T, 4, 4), K)
    plain, tidy = (warp_to_path(frames, z, static_path(K), target, tidy=on) for on in (False, True))
    wall = 0, 0, slice(35, 45), slice(50, 70)
    assert (~plain.mask[wall]).sum() == 1 and tidy.mask[wall].all() and (tidy.video[wall] > 0.99).all()
    assert (tidy.video[0, 2, 62:-2].amax(1) > 0.5).all()


@pytest.mark.parametrize("amount", [0, 25])
def test_a_warp_of_only_what_is_asked_for_is_the_whole_one_there(amount):
    scene = Scene(((-0.4, 0.1, 3.0), 0.6), ((0.7, -0.3, 2.4), 0.4))
    frames, z, _ = scene.render(static_path(K))
    target = follow(static_path(K), preset_motion("orbit-right", amount, T, DISTANCE))
    torch.manual_seed(0)
    coarse = torch.rand(T, 1, H // 8, W // 8) < 0.3
    wanted = F.interpolate(coarse.float(), (H, W))[:, 0] > 0
    wanted[0, 5, 7] = True  # a single pixel
    wanted[1] = False
    whole = warp_to_path(frames, z, static_path(K), target)
    part = warp_to_path(frames, z, static_path(K), target, wanted=wanted)
    assert torch.equal(part.mask, whole.mask & wanted[:, None])
    assert part.mask[0].any() and part.mask[2].any()
    assert torch.equal(part.video, torch.where(part.mask, whole.video, 0.0))


@pytest.mark.parametrize("tidy", [False, True])
@pytest.mark.parametrize(("camera", "amount"), [("orbit-right", 25), ("dolly-in", 60), ("orbit-up", 40)])
def test_compiled_loops_warp_as_tensors_do(camera, amount, tidy, monkeypatch):
    assert warp.compiled()  # Numba is among the requirements
    frames, z, _ = SCENES["two spheres"].render(static_path(K))
    z[:, 20:24, 30:50], z[:, 70, 90], z[:, 5, 5] = math.nan, -1, math.inf
    target = follow(static_path(K), preset_motion(camera, amount, T, DISTANCE))
    wanted = torch.rand(T, H, W, generator=torch.Generator().manual_seed(0)) < 0.02
    for asked in (None, wanted):
        found = []
        for compiled in (True, False):
            monkeypatch.setattr(warp, "compiled", lambda compiled=compiled: compiled)
            found.append(warp_to_path(frames, z, static_path(K), target, wanted=asked, tidy=tidy))
        loops, tensors = found
        assert (loops.mask != tensors.mask).float().mean() < 1e-4
        both = (loops.mask & tensors.mask).expand_as(frames)
        assert (loops.video - tensors.video)[both].abs().max() < 2e-3


def test_shapes_must_match():
    frames, z = torch.rand(T, 3, H, W), torch.ones(T, H, W)
    with pytest.raises(ValueError, match="do not match"):
        warp_to_path(frames, z[:, :-1], static_path(K), static_path(K))
    with pytest.raises(ValueError, match="do not match"):
        warp_to_path(frames, z, static_path(K[:2]), static_path(K))
    with pytest.raises(ValueError, match="do not match"):
        warp_to_path(frames, z, static_path(K), static_path(K), wanted=torch.ones(T, H, W + 1, dtype=torch.bool))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 2), (33, 65)])
def test_any_image_size(size):
    h, w = size
    frames, path = torch.rand(2, 3, h, w), static_path(default_intrinsics(h, w, 2))
    target = follow(path, preset_motion("dolly-in", 10, 2, 1.0))
    measured = warp_to_path(frames, torch.ones(2, h, w), path, target)
    assert measured.mask.all()
    assert measured.video.isfinite().all()


def ramp() -> Tensor:
    v, u = torch.meshgrid(torch.linspace(0, 1, H), torch.linspace(0, 1, W), indexing="ij")
    return torch.stack([u, v, 0.5 * (u + v)]).expand(T, 3, H, W).contiguous()


def test_filling_keeps_what_is_known_and_is_smooth():
    video, mask = ramp(), torch.ones(T, 1, H, W, dtype=torch.bool)
    mask[:, :, 30:60, 50:100] = False
    mask[:, :, :, 140:] = False
    filled = fill_unknown(Measurement(video * mask, mask))
    assert torch.equal(torch.where(mask, filled, 0), video * mask)
    assert (filled - video).abs().mean() < 0.02
    assert (filled - video)[:, :, 30:60, 50:100].abs().max() < 0.12
    assert filled.diff(dim=-1).abs().max() < 0.1
    assert filled.min() >= 0 and filled.max() <= 1


def test_a_long_clip_is_filled_as_its_frames_are():
    generator = torch.Generator().manual_seed(0)
    video, mask = torch.rand(37, 3, 11, 14, generator=generator), torch.rand(37, 1, 11, 14, generator=generator) < 0.4
    alone = [fill_unknown(Measurement(video[t : t + 1], mask[t : t + 1])) for t in range(37)]
    assert torch.equal(fill_unknown(Measurement(video, mask)), torch.cat(alone))


def test_filling_at_the_extremes():
    video = torch.rand(T, 3, H, W)
    full = torch.ones(T, 1, H, W, dtype=torch.bool)
    assert torch.equal(fill_unknown(Measurement(video, full)), video)
    empty = fill_unknown(Measurement(torch.zeros_like(video), ~full))
    assert torch.allclose(empty, torch.full_like(empty, 0.5))
    one = torch.zeros_like(full)
    one[:, :, 5, 7] = True
    alone = fill_unknown(Measurement(video * one, one))
    assert torch.allclose(alone, video[:, :, 5:6, 7:8].expand_as(alone), atol=1e-5)


def test_a_constant_is_filled_by_itself():
    torch.manual_seed(0)
    mask = torch.rand(T, 1, 37, 51) > 0.7
    filled = fill_unknown(Measurement(torch.full((T, 3, 37, 51), 0.3) * mask, mask))
    assert torch.allclose(filled, torch.full_like(filled, 0.3), atol=1e-5)


def test_a_hole_beside_a_thing_is_filled_by_what_is_behind_it():
    near, far = (torch.tensor(colour).view(3, 1, 1) for colour in ([0.9, 0.1, 0.1], [0.1, 0.2, 0.9]))
    left = (torch.arange(W) < 60).expand(T, H, W)
    video, z = torch.where(left[:, None], near, far), torch.where(left, 1.0, 3.0)

    def off(width: int, z: Tensor | None) -> Tensor:
        mask = torch.ones(T, 1, H, W, dtype=torch.bool)
        mask[..., 60 : 60 + width] = False
        seen = None if z is None else torch.where(mask[:, 0], z, torch.nan)
        filled = fill_unknown(Measurement(video * mask, mask, seen))
        assert torch.equal(torch.where(mask, filled, 0), video * mask)
        return (filled - far)[..., 60 : 60 + width].abs()

    assert off(4, z).max() < 0.02 and off(4, None).max() > 0.3
    assert off(12, z).mean() < 0.7 * off(12, None).mean()
    # where all is as far away, or its distance is not known, depth says nothing
    for flat in (torch.full_like(z, 2.0), torch.full_like(z, torch.nan)):
        assert torch.equal(off(12, flat), off(12, None))
    # ground is not taken for something in front of the wall behind it: across, it is as far on either side
    rows = torch.linspace(6, 1, H)[:, None].expand(T, H, W)
    assert (off(12, rows) - off(12, None)).abs().mean() < 0.05


def test_composite_keeps_known_pixels_and_ramps_inside_the_known_side():
    torch.manual_seed(0)
    video, raw = torch.rand(T, 3, H, W), torch.rand(T, 3, H, W)
    mask = torch.ones(T, 1, H, W, dtype=torch.bool)
    mask[..., 80:] = False
    measurement = Measurement(video * mask, mask)
    mixed = composite(raw, measurement, seam_pixels=6)
    assert torch.equal(mixed[..., :74], video[..., :74])
    assert torch.equal(mixed[..., 80:], raw[..., 80:])
    share = ((mixed - raw) / (video - raw))[..., 74:80].median(dim=0).values[0].median(dim=0).values
    assert (share.diff() < 0).all() and 0 < share[-1] < share[0] < 1  # known further in, raw at the seam

    hard = composite(raw, measurement, seam_pixels=0)
    assert torch.equal(hard, torch.where(mask, video, raw))


def test_composite_at_the_extremes():
    video, raw = torch.rand(T, 3, H, W), torch.rand(T, 3, H // 2, W // 2)
    full = torch.ones(T, 1, H, W, dtype=torch.bool)
    assert torch.equal(composite(raw, Measurement(video, full), seam_pixels=8), video)
    alone = composite(raw, Measurement(torch.zeros_like(video), ~full), seam_pixels=8)
    assert alone.shape == video.shape
    assert alone.min() >= 0 and alone.max() <= 1
    assert alone.mean().item() == pytest.approx(raw.mean().item(), abs=0.01)
    with pytest.raises(ValueError, match="seam"):
        composite(raw, Measurement(video, full), seam_pixels=-1)
    with pytest.raises(ValueError, match="frames"):
        composite(raw[:1], Measurement(video, full), seam_pixels=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_with_the_cpu():
    frames, z, _ = SCENES["two spheres"].render(static_path(K))
    target = follow(static_path(K), preset_motion("orbit-left", 20, T, DISTANCE))
    here = warp_to_path(frames, z, static_path(K), target)
    there = warp_to_path(frames.cuda(), z.cuda(), static_path(K), target)
    assert (here.mask == there.mask.cpu()).float().mean() > 0.999
    both = here.mask & there.mask.cpu()
    assert ((here.video - there.video.cpu()) * both).abs().mean() < 1e-4
    assert fill_unknown(there).is_cuda
    assert composite(there.video, there, seam_pixels=4).is_cuda


# --- an object taken out ----------------------------------------------------------------------------------------------


def moving_square(
    frames: int = 6, size: tuple[int, int] = (64, 96), *, shift: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """A background, panned by `shift` pixels a frame; the clip with a square before it; where the square is."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 24, 40, generator=generator)
    wide = F.interpolate(coarse, (size[0], size[1] + 40), mode="bicubic").clamp(0, 1)[0]
    background = torch.stack([wide[..., shift * t : shift * t + size[1]] for t in range(frames)])
    hidden = torch.zeros(frames, *size, dtype=torch.bool)
    for t in range(frames):
        hidden[t, 20:36, 8 + 12 * t : 22 + 12 * t] = True
    return background, torch.where(hidden[:, None], torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1), background), hidden


@pytest.mark.parametrize("move", ["orbit-left", "dolly-in", None])
def test_without_the_hidden_objects_the_world_behind_them_is_seen(move):
    """What is known then is what a camera sees of the same world without the balls; nothing of their colour is left."""
    frames, z, _ = SCENES["two spheres"].render(source := static_path(K))
    plane_z = SCENES["plane"].render(source)[1]
    hidden = F.max_pool2d((z < plane_z - 1e-3).float(), 5, 1, 2) > 0
    assert 0.05 < hidden.float().mean() < 0.6
    clip = torch.where(hidden[:, None], torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1), frames)
    target = source if move is None else follow(source, preset_motion(move, 20, T, DISTANCE))
    found = warp_to_path(clip, z, source, target, hidden)
    truth = SCENES["plane"].render(target)[0]
    assert found.mask.float().mean() < 0.95 - hidden.float().mean() / 2
    error = ((found.video - truth) * found.mask).abs().amax(1)
    inner = F.max_pool2d((~found.mask).float(), 7, 1, 3)[:, 0] == 0  # the look-up of colours reaches two pixels far
    assert inner.float().mean() > 0.2 and error[inner].max() < 0.05
    if move is None:
        assert torch.equal(found.mask[:, 0], ~hidden) and torch.equal(found.video, frames * ~hidden[:, None])


def test_hiding_nothing_changes_nothing():
    frames, z, _ = SCENES["sphere"].render(source := static_path(K))
    target = follow(source, preset_motion("orbit-up", 15, T, DISTANCE))
    plain, hidden = (warp_to_path(frames, z, source, target, h) for h in (None, torch.zeros_like(z, dtype=torch.bool)))
    assert torch.equal(plain.video, hidden.video) and torch.equal(plain.mask, hidden.mask)


def test_what_stood_behind_comes_back_exactly_before_a_camera_that_stands():
    background, clip, hidden = moving_square()
    found, left = see_behind(clip, hidden)
    assert not left.any() and torch.equal(found, background)


def test_what_stood_behind_comes_back_before_a_camera_that_pans():
    background, clip, hidden = moving_square(shift=3)
    found, left = see_behind(clip, hidden)
    assert left.sum() < 0.2 * hidden.sum()
    recovered = (hidden & ~left)[:, None].expand_as(found)
    assert (found - background)[recovered].abs().mean() < 0.02
    outside = ~hidden[:, None].expand_as(found)
    assert torch.equal(found[outside], clip[outside])


def test_what_nobody_saw_stays_hidden():
    _, clip, hidden = moving_square()
    hidden = hidden[:1].expand_as(hidden)
    found, left = see_behind(clip, hidden)
    assert torch.equal(left, hidden) and torch.equal(found, clip)


def test_frames_that_do_not_agree_lend_nothing():
    _, clip, hidden = moving_square()
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(clip.shape, generator=generator)  # each frame shows another world
    _, left = see_behind(noise, hidden)
    assert torch.equal(left, hidden)


def test_depth_as_other_cameras_see_it():
    source = static_path(default_intrinsics(48, 64, 3))
    z = torch.full((3, 48, 64), 4.0)
    nearer = CameraPath(source.world_from_cam.clone(), source.K)
    nearer.world_from_cam[1:, 2, 3] = 1.0  # after the first frame a step ahead: the wall is at 3
    seen = warp_depth(z, source, nearer)
    assert torch.allclose(seen[0], torch.tensor(4.0)) and torch.allclose(seen[1:], torch.tensor(3.0), atol=1e-4)
    z[:, :, 40:] = math.nan
    seen = warp_depth(z, source, nearer)
    assert seen[:, :, 44:].isnan().all() and torch.allclose(seen[1:, :, :40], torch.tensor(3.0), atol=1e-3)
