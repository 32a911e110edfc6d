"""The procedural world: exact depth, determinism, masks and captions, two cameras that see one scene."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pipeline.camera.geometry import CameraPath, project, transform, unproject
from pipeline.known.warp import warp_to_path
from pipeline.media.quality import psnr
from pipeline.world.cameras import CAMERAS, source_path, target_path
from pipeline.world.objects import SHAPES
from pipeline.world.places import PLACES
from pipeline.world.raycast import FAR, render_view
from pipeline.world.scenes import make_scene, render_sample
from pipeline.world.textures import KINDS, SIZE, make_texture, natural_palette

small_sample = partial(render_sample, frames=5, size=(48, 80), supersample=1)


def test_a_seed_decides_everything():
    first, again = small_sample(7), small_sample(7)
    assert torch.equal(first.source.frames, again.source.frames)
    assert torch.equal(first.target.z, again.target.z)
    assert first.caption == again.caption
    assert not torch.equal(first.source.frames, small_sample(8).source.frames)


def test_views_are_well_formed():
    for seed in range(4):
        sample = small_sample(seed)
        for view in (sample.source, sample.target):
            assert view.frames.shape == (5, 3, 48, 80)
            assert view.frames.min() >= 0 and view.frames.max() <= 1
            assert (view.z > 0).all() and (view.z <= FAR).all()
            assert view.objects.shape == (5, len(sample.scene.solids), 48, 80)
            assert view.objects.float().sum(1).max() <= 1  # one solid at most is in front at a pixel
        for solid in sample.scene.solids[:1]:
            assert any(s.colour in sample.caption and s.shape in sample.caption for s in sample.scene.solids), solid


def test_depth_is_exact_on_the_ground():
    """Points of the lowest plane, unprojected to the world, lie at y = 0."""
    sample = small_sample(3)
    view = sample.source
    points = transform(view.path.world_from_cam, unproject(view.z, view.path.K))
    ground = (points[..., 1].abs() < 1e-3).float().mean()
    assert ground > 0.1
    assert points[..., 1].max() < 0.02  # nothing lies below the ground


@pytest.mark.parametrize("seed", [8, 9, 11])
def test_two_cameras_see_the_same_points(seed):
    """Where the depth says that both cameras see a point, their colours agree."""
    sample = render_sample(seed, frames=5, size=(96, 160))
    warped = warp_to_path(sample.source.frames, sample.source.z, sample.source.path, sample.target.path)
    assert warped.mask.float().mean() > 0.5
    assert psnr(warped.video, sample.target.frames, warped.mask) > 26
    uv, z = project(unproject(sample.source.z, sample.source.path.K), sample.source.path.K)
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    assert torch.allclose(uv[0, ..., 0], columns, atol=1e-3) and torch.allclose(uv[0, ..., 1], rows, atol=1e-3)
    assert torch.allclose(z, sample.source.z)


def _filmed(seed: int, **wish):
    """A scene and what a camera at rest at its viewpoint sees of it."""
    rng = np.random.default_rng(seed)
    scene = make_scene(rng, 9, **wish)
    path, _ = source_path(rng, scene, 9, (48, 80))
    path = CameraPath(path.world_from_cam[:1].expand(9, 4, 4), path.K)
    return scene, path, render_view(scene, path, (48, 80), supersample=1)


def test_a_compound_is_one_object():
    found = 0
    for seed in range(8):
        scene, path, view = _filmed(seed, place="street")
        for i, solid in enumerate(scene.solids):
            if len(solid.parts) == 1 or not view.objects[:, i].any():
                continue
            found += 1
            assert solid.shape not in SHAPES
            without = replace(scene, solids=tuple(s for s in scene.solids if s is not solid))
            behind = render_view(without, path, (48, 80), supersample=1).z
            assert torch.equal(view.objects[:, i], behind > view.z)  # its parts, all of them and nothing else
            steps = [p.world_from_part[-1] @ torch.linalg.inv(p.world_from_part[0]) for p in solid.parts]
            assert all(torch.allclose(step, steps[0], atol=1e-3) for step in steps)  # as one rigid body
        if found >= 3:
            return
    pytest.fail("hardly any compounds in the streets")


def test_the_horizon_is_nearer_than_the_sky_and_behind_everything():
    scenes = (_filmed(seed, place="country") for seed in range(12))
    _, path, view = next(f for f in scenes if "before hills" in f[0].caption and f[2].objects.any())
    points = transform(path.world_from_cam, unproject(view.z, path.K))
    far = (points[..., 1] < -0.05) & (view.z > 15) & (view.z < FAR)
    assert far.float().mean() > 0.005
    assert view.z[view.objects.any(1)].max() < view.z[far].min()


@pytest.mark.parametrize("place", PLACES)
def test_what_passes_behind_is_hidden_and_seen(place):
    hidden = []
    for seed in range(3):
        scene, path, view = _filmed(seed, place=place, passing=True)
        assert "passes behind" in scene.caption
        index = next(i for i, s in enumerate(scene.solids) if s.motion == "pass")
        alone = replace(scene, solids=(scene.solids[index],), scenery=())
        whole = render_view(alone, path, (48, 80), supersample=1).objects[:, 0].sum((1, 2))
        shown = view.objects[:, index].sum((1, 2)) / whole.clamp(min=1)
        hidden.append(bool(((whole > 8) & (shown < 0.6)).any() and ((whole > 8) & (shown > 0.6)).any()))
    assert sum(hidden) >= 2


def test_captions_name_things_motions_places_light_and_cameras():
    captions = []
    for seed in range(45):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, 5)
        _, words = source_path(rng, scene, 5, (48, 80))
        captions.append(f"{scene.caption}, {words}")
        assert words in CAMERAS.values()
        assert scene.solids
        simple = [s for s in scene.solids if s.motion not in ("still", "pass") and s.shape in SHAPES]
        if simple and len(scene.solids) <= 2:
            assert all(s.colour in scene.caption and s.shape in scene.caption for s in simple)
    places = ("in a street", "close by", "in a room", "before hills")
    for words in ("passes behind", "at dusk", "in fog", *places, *CAMERAS.values()):
        assert any(words in caption for caption in captions), words


def test_cameras_keep_clear_of_surfaces():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, 5)
        source, _ = source_path(rng, scene, 5, (48, 80))
        for path in (source, target_path(rng, source, scene)):
            assert render_view(scene, path, (12, 20), supersample=1).z.min() > 0.1


def test_spectra_fall_like_those_of_photographs():
    """The amplitude spectrum of natural images falls like 1/f^1.2 or so (Torralba and Oliva, 2003)."""
    size, window = 64, np.outer(np.hanning(64), np.hanning(64))
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) * size
    spectra = []
    for seed in range(16):
        grey = render_sample(seed, frames=1, size=(size, size)).source.frames[0].mean(0).numpy()
        amplitude = np.abs(np.fft.fft2((grey - grey.mean()) * window))
        spectra.append([np.log(amplitude[(f >= k) & (f < k + 1)].mean() + 1e-6) for k in range(2, 28)])
    slope = np.polyfit(np.log(np.arange(2, 28) + 0.5), np.mean(spectra, 0), 1)[0]
    assert -1.7 < slope < -0.9


@pytest.mark.parametrize("kind", KINDS)
def test_textures_are_periodic_and_in_range(kind):
    rng = np.random.default_rng(0)
    texture = make_texture(rng, kind, natural_palette(rng))
    assert texture.shape == (SIZE, SIZE, 3) and texture.min() >= 0 and texture.max() <= 1
    inside = np.abs(np.diff(texture, axis=0)).mean(axis=(1, 2))
    seam = np.abs(texture[0] - texture[-1]).mean()
    assert seam <= inside.max() + 0.02
