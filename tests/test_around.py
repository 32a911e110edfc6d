"""What the benchmark compares the warp and a render's stages with."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.camera.geometry import default_intrinsics, follow, static_path
from pipeline.evaluation.around import Cost, exponent, forward_splat
from pipeline.known.warp import warp_to_path
from pipeline.media.quality import psnr
from pipeline.world.cameras import preset_motion

T, H, W = 3, 60, 90


def test_the_splat_sees_what_the_warp_sees_and_the_clip_itself_from_its_own_camera():
    coarse = torch.rand(T, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    frames = F.interpolate(coarse, (H, W), mode="bicubic").clamp(0, 1)
    z = torch.full((T, H, W), 4.0)
    z[:, 20:40, 30:60] = 2.0
    source = static_path(default_intrinsics(H, W, T))
    own, seen = forward_splat(frames, z, source, source)
    assert seen.all() and torch.allclose(own, frames, atol=1e-4)
    target = follow(source, preset_motion("orbit-left", 15, T, 4.0))
    splat, seen = forward_splat(frames, z, source, target)
    warped = warp_to_path(frames, z, source, target)
    both = seen & warped.mask
    assert both.float().mean() > 0.8
    assert psnr(splat, warped.video, both) > 28
    nearest = splat[-1, :, 25:35, 40:50] - warped.video[-1, :, 25:35, 40:50]  # of the block, not of what is behind it
    assert nearest.abs().mean() < 0.02


def test_powers_and_shares():
    assert exponent([17, 49, 97], [1.7, 4.9, 9.7]) == pytest.approx(1)
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    cost = Cost({"gather": 1.0, "encode": 2.0, "sample": 1.0, "decode": 2.0, "write": 0.5}, 0.1)
    assert cost.model == 5 and cost.around == 1.5
    best = cost.at_best(replace(cost, stages=cost.stages | {"sample": 0.25}, preview=9.0))
    assert best.stages == cost.stages | {"sample": 0.25} and best.preview == cost.preview
