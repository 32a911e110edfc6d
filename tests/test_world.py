"""The procedural world: exact depth, determinism, masks and captions, two cameras that see one scene."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from pipeline.camera import project, transform, unproject
from pipeline.evaluation.metrics import psnr
from pipeline.measurement import warp_to_path
from pipeline.training.textures import KINDS, SIZE, make_texture, natural_palette
from pipeline.training.world import FAR, render_sample

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


def test_two_cameras_see_the_same_still_points():
    """Where a still scene's depth says that both cameras see a point, their colours agree."""
    sample = render_sample(5, frames=5, size=(96, 160))
    warped = warp_to_path(sample.source.frames, sample.source.z, sample.source.path, sample.target.path)
    assert warped.mask.float().mean() > 0.5
    assert psnr(warped.video, sample.target.frames, warped.mask) > 26
    uv, z = project(unproject(sample.source.z, sample.source.path.K), sample.source.path.K)
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    assert torch.allclose(uv[0, ..., 0], columns, atol=1e-3) and torch.allclose(uv[0, ..., 1], rows, atol=1e-3)
    assert torch.allclose(z, sample.source.z)


@pytest.mark.parametrize("kind", KINDS)
def test_textures_are_periodic_and_in_range(kind):
    rng = np.random.default_rng(0)
    texture = make_texture(rng, kind, natural_palette(rng))
    assert texture.shape == (SIZE, SIZE, 3) and texture.min() >= 0 and texture.max() <= 1
    inside = np.abs(np.diff(texture, axis=0)).mean(axis=(1, 2))
    seam = np.abs(texture[0] - texture[-1]).mean()
    assert seam <= inside.max() + 0.02
