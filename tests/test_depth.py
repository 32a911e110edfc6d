"""Depth: what estimates promise, how windows join, what files are read, and that the training learns."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline import InputError, result_of
from pipeline.depth.estimate import (
    Depth,
    HubDepth,
    align_disparity,
    estimate_depth,
    in_windows,
    resize_depth,
    subject_distance,
)
from pipeline.depth.files import load_depth
from pipeline.depth.load import load_depth_model
from pipeline.depth.network import DepthNet

TINY = dict(repeats=(1,) * 7, trunk=(8,) * 7, channels=(8, 8, 8, 8, 16), heads=2)
SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "nano" / "depth"


@pytest.fixture
def net() -> DepthNet:
    """A small network whose branches, which begin at zero, do something."""
    torch.manual_seed(0)
    net = DepthNet(**TINY).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    return net


def moving(frames: int = 6, height: int = 40, width: int = 56) -> torch.Tensor:
    texture = torch.rand(3, height, width + 4 * frames, generator=torch.Generator().manual_seed(1))
    return torch.stack([texture[:, :, 4 * t : 4 * t + width] for t in range(frames)])


# --- estimates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 40, 56), (3, 33, 47), (2, 5, 9), (1, 1, 1), (2, 260, 150)])
def test_estimates_have_the_clips_size_and_are_positive(net, shape):
    frames, height, width = shape
    depth = estimate_depth(torch.rand(frames, 3, height, width), net)
    assert depth.z.shape == shape and depth.z.dtype == torch.float32 and not depth.metric
    assert depth.z.isfinite().all() and (depth.z > 0).all()
    assert depth.z.max() / depth.z.min() < 100
    assert subject_distance(depth) > 0


def test_the_median_is_four(net):
    assert estimate_depth(moving(), net).z.median() == pytest.approx(4, rel=1e-4)


def test_a_clip_that_stands_still_has_depth_that_stands_still(net):
    z = estimate_depth(moving(1).expand(5, -1, -1, -1), net).z
    assert torch.allclose(z, z[:1].expand_as(z), rtol=1e-4)


def test_frames_know_of_one_another(net):
    clip = moving()
    alone = torch.cat([net(clip[None, t : t + 1]) for t in range(len(clip))], 1)
    assert (net(clip[None]) - alone).abs().max() > 1e-5


def test_a_clip_played_backwards_is_as_deep(net):
    clip = moving()
    with torch.no_grad():
        for layer in net.times:  # before and after weigh the same
            weight = layer.mix.weight.unflatten(1, (3, -1))
            weight[:, 2] = weight[:, 0]
    assert torch.allclose(net(clip[None]).flip(1), net(clip.flip(0)[None]), atol=1e-4)


def test_the_published_trunk_is_folded_exactly():
    """Convolutions with their normalisations folded in compute what the published layers compute."""
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    net, state = DepthNet(**TINY), {}

    def layer(conv: nn.Conv2d, name: str, norm: str):
        """A convolution without bias and a normalisation, as published, and what they compute."""
        weight = torch.randn_like(conv.weight)
        scale, shift, mean = (torch.randn(conv.out_channels) for _ in range(3))
        variance = torch.rand(conv.out_channels) + 0.5
        state[f"{name}.weight"] = weight
        for key, value in zip(
            ("weight", "bias", "running_mean", "running_var"), (scale, shift, mean, variance), strict=True
        ):
            state[f"{norm}.{key}"] = value
        how = dict(stride=conv.stride, padding=conv.padding, groups=conv.groups)
        return lambda x: F.batch_norm(F.conv2d(x, weight, **how), mean, variance, scale, shift, eps=1e-3)

    stem = layer(net.trunk.stem, "_conv_stem", "_bn0")
    blocks = []
    for number, block in enumerate(block for stage in net.trunk.stages for block in stage):
        at = f"_blocks.{number}."
        expand = layer(block.expand, at + "_expand_conv", at + "_bn0") if block.expand is not None else None
        depthwise = layer(block.depthwise, at + "_depthwise_conv", at + "_bn1")
        blocks.append((block.skips, expand, depthwise, layer(block.project, at + "_project_conv", at + "_bn2")))
    net.trunk.load_imagenet(state)
    picture = torch.randn(1, 3, 64, 64)
    x = F.relu6(stem(picture))
    for skips, expand, depthwise, project in blocks:
        y = x if expand is None else F.relu6(expand(x))
        y = project(F.relu6(depthwise(y)))
        x = x + y if skips else y
    assert torch.allclose(net.trunk(picture)[-1], x, rtol=1e-3, atol=1e-4 * x.abs().max())
    with pytest.raises(KeyError):
        net.trunk.load_imagenet({})
    state[f"_blocks.{len(blocks)}._project_conv.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="more blocks"):
        net.trunk.load_imagenet(state)


def test_windows_of_any_scale_join_without_a_seam():
    truth = torch.rand(50, 6, 8) + torch.linspace(0, 1, 50)[:, None, None]

    def model(frames):  # reads the depth written in the picture, at a scale of its own for each window
        return frames[:, :, 0] + 3 * torch.rand(1, generator=generator)

    generator = torch.Generator().manual_seed(0)
    found = in_windows(truth[:, None].expand(-1, 3, -1, -1), model, window=12, overlap=4)
    assert found.shape == truth.shape
    assert torch.allclose(found - found.mean(), truth - truth.mean(), atol=1e-5)


def test_a_long_clip_is_as_deep_as_a_short_one(net):
    clip = moving(1).expand(40, -1, -1, -1)
    z = estimate_depth(clip, net).z
    assert torch.allclose(z, z[:1].expand_as(z), rtol=1e-3)


def test_wrong_frames_are_refused(net):
    for shape in ((3, 8, 8), (2, 1, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ValueError, match="T 3 H W"):
            estimate_depth(torch.zeros(shape), net)


def test_weights_survive_a_round_trip_through_half_precision(net, tmp_path):
    net.half().save_pretrained(tmp_path / "depth")
    loaded = load_depth_model(str(tmp_path / "depth"))
    assert next(loaded.parameters()).dtype == torch.float32
    assert torch.allclose(loaded(moving()[None]), net.float()(moving()[None]), atol=1e-4)
    assert isinstance(load_depth_model(str(tmp_path)), DepthNet)  # a backbone's folder


def test_depth_models_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        load_depth_model(str(tmp_path / "empty"))
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="safetensors"):
        load_depth_model(str(tmp_path / "empty"))
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read"):
        load_depth_model(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="Unknown depth model"):
        load_depth_model("no such thing")


def test_without_a_hub_the_remedy_is_named(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nano"):
        load_depth_model("nobody/there-is-no-such-model")


def test_the_shipped_network_finds_the_depth_of_unseen_scenes():
    from pipeline.depth.estimate import affine_disparity
    from pipeline.world.raycast import FAR
    from pipeline.world.scenes import render_sample

    model = load_depth_model(str(SHIPPED))
    errors, flat, steps = [], [], []
    for seed in (5, 6, 7):
        view = render_sample(seed, frames=5, supersample=1).source
        surface, truth = view.z < 0.99 * FAR, view.z
        z = estimate_depth(view.frames, model).z
        error = lambda found, surface=surface, truth=truth: ((found - truth).abs() / truth)[surface].mean()
        errors.append(error(affine_disparity(z, truth)))
        flat.append(error(truth[surface].median().expand_as(truth)))
        steps.append((z.log().diff(dim=0) - truth.log().diff(dim=0)).abs().mean())
    assert torch.stack(errors).mean() < 0.4 * torch.stack(flat).mean(), "much better than a wall"
    assert torch.stack(steps).mean() < 0.07


# --- models of the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def depth_anything(tmp_path) -> Path:
    """Depth Anything at a tiny size with random weights, saved as the hub has it."""
    import transformers
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, out_features=stages,
        reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
        head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    torch.nn.init.constant_(model.head.conv3.bias, 0.3)  # above the last ReLU
    model.save_pretrained(tmp_path / "anything")
    processor = getattr(transformers, "DPTImageProcessorPil", None) or transformers.DPTImageProcessor
    size = {"height": 28, "width": 28}
    processor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(tmp_path / "anything")
    return tmp_path / "anything"


def said_of(model: HubDepth, clip: torch.Tensor) -> torch.Tensor:
    progress = []
    found = result_of(model.predict(clip, (40, 56)), progress.append)
    assert [share for _, share in progress] == [(t + 1) / len(clip) for t in range(len(clip))]
    return found


def test_a_depth_model_of_transformers_estimates(depth_anything):
    model = load_depth_model(str(depth_anything))
    assert isinstance(model, HubDepth) and model.inverse
    clip = moving(3)
    depth = estimate_depth(clip, model)
    assert depth.z.shape == (3, 40, 56) and (depth.z > 0).all() and depth.z.isfinite().all() and not depth.metric
    disparity = said_of(model, clip)
    if disparity.std() > 1e-4:  # near where it says near
        assert torch.corrcoef(torch.stack([disparity[0].flatten(), 1 / depth.z[0].flatten()]))[0, 1] > 0.99


def test_a_metric_model_keeps_its_metres(depth_anything):
    config = json.loads((depth_anything / "config.json").read_text())
    config |= {"depth_estimation_type": "metric", "max_depth": 20}
    (depth_anything / "config.json").write_text(json.dumps(config))
    model = load_depth_model(str(depth_anything))
    assert not model.inverse
    depth = estimate_depth(moving(2), model)
    assert depth.metric and torch.allclose(depth.z, said_of(model, moving(2)))


def test_other_models_of_transformers_are_refused(depth_anything):
    config = json.loads((depth_anything / "config.json").read_text())
    (depth_anything / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(InputError, match="bert"):
        load_depth_model(str(depth_anything))


def pan(frames: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A textured wall and things before it, past which a camera pans by `step` pixels a frame; and its disparity."""
    generator = torch.Generator().manual_seed(0)
    smooth = lambda channels, cell: torch.nn.functional.interpolate(
        torch.rand(1, channels, 48 // cell, 240 // cell, generator=generator), (48, 240), mode="bicubic"
    )[0]
    picture, disparity = smooth(3, 4).clamp(0, 1), smooth(1, 12)[0] + 0.5
    cut = lambda wide: torch.stack([wide[..., step * t : step * t + 64] for t in range(frames)])
    return cut(picture), cut(disparity)


def freed(disparity: torch.Tensor) -> torch.Tensor:
    """Each frame but the first with another scale and shift."""
    scale, shift = torch.rand(2, len(disparity), 1, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    scale[0], shift[0] = 1, 0
    return disparity * scale + shift


@pytest.mark.parametrize("step", [0, 3])
def test_frames_of_free_scale_and_shift_come_back(step):
    pictures, truth = pan(40, step)
    aligned = align_disparity(freed(truth), pictures)
    assert (aligned - truth).abs().mean() < 0.03 * truth.std()


def test_frames_are_aligned_without_shrinking():
    pictures, truth = pan(40, 0)
    pictures, truth = pictures.clone(), truth.clone()
    for t in range(40):  # something moves
        truth[t, 5:12, (t % 20) : (t % 20) + 9] = 2.5
        pictures[t, :, 5:12, (t % 20) : (t % 20) + 9] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    noisy = truth + 0.1 * truth.std() * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    aligned = align_disparity(freed(noisy), pictures)
    assert float(aligned[-1].std()) == pytest.approx(float(aligned[0].std()), rel=0.1)
    assert (aligned[:, 20:] - truth[:, 20:]).abs().mean() < 0.2 * truth.std()


def test_frames_on_both_sides_of_a_cut_are_compared_in_place():
    pictures, truth = pan(2, 0)
    pictures = torch.stack([pictures[0], torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(3))])
    assert torch.allclose(align_disparity(freed(truth), pictures), truth, atol=1e-3)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (40, 33)])
def test_resizing_makes_no_depth_between_two_surfaces(size):
    z = torch.full((1, 16, 16), 10.0)
    z[:, :, :8] = 2.0
    found = resize_depth(z, size)
    assert torch.minimum((found - 2).abs(), (found - 10).abs()).max() < 1e-4


def test_enlarged_outlines_follow_the_picture():
    full = torch.zeros(1, 3, 64, 64)
    inside = (torch.arange(64)[:, None] + torch.arange(64)) < 61  # a slanted outline that the small grid cannot follow
    full[:, :, inside] = 1
    small = torch.nn.functional.interpolate(full, (16, 16), mode="area")
    z = torch.where(small[:, 0] > 0.5, 2.0, 10.0)
    truth = torch.where(inside, 2.0, 10.0)[None]
    wrong = lambda estimate: ((estimate - truth).abs() > 0.1).float().mean()
    assert wrong(resize_depth(z, (64, 64), guide=(small, full))) < 0.5 * wrong(resize_depth(z, (64, 64)))


def test_slopes_stay_smooth_when_enlarged():
    z = torch.linspace(2, 3, 16)[None, None].expand(1, 16, 16).contiguous()
    assert resize_depth(z, (16, 64)).diff(dim=-1).max() < 0.03


def test_steep_ground_stays_smooth_when_enlarged():
    disparity = torch.linspace(0.02, 1, 16)[:, None].expand(1, 16, 16)  # linear on a plane, steep at its horizon
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.interpolate(picture, (16, 16), mode="area")
    found = 1 / resize_depth((1 / disparity).contiguous(), (64, 64), guide=(small, picture))
    assert torch.allclose(found, found[..., :1].expand_as(found), atol=1e-5)
    assert (found.diff(dim=1) >= 0).all()


def test_a_long_clip_is_resized_as_its_frames_are():
    z = 2 + torch.rand(37, 12, 16)
    guide = torch.rand(37, 3, 12, 16), torch.rand(37, 3, 24, 32)
    for size, pictures in (((24, 32), guide), ((24, 32), None), ((6, 8), None)):
        alone = [
            resize_depth(z[t : t + 1], size, pictures and tuple(p[t : t + 1] for p in pictures)) for t in range(37)
        ]
        assert torch.equal(resize_depth(z, size, pictures), torch.cat(alone))


def test_a_ramp_between_two_surfaces_becomes_a_step_where_the_colours_change():
    from pipeline.depth.outlines import sharpen_outlines

    near, far = 2.0, 10.0
    picture = torch.full((1, 3, 40, 60), 0.8)
    picture[..., 30:] = 0.2
    w = torch.full((1, 40, 60), 1 / near)
    w[..., 33:] = 1 / far
    w[..., 25:33] = torch.linspace(1 / near, 1 / far, 10)[1:-1]  # a ramp that misses the outline by a pixel
    z = sharpen_outlines(1 / w, picture)
    assert torch.allclose(z[..., :30], torch.tensor(near), rtol=0.12), "no depth between the two"
    assert torch.allclose(z[..., 30:], torch.tensor(far), rtol=0.5)
    assert ((z < 1.2 * near) | (z > 0.6 * far)).all()


def test_a_near_surface_grows_over_its_rim_and_a_slope_does_not():
    from pipeline.depth.outlines import grow_near

    z = torch.full((1, 20, 30), 10.0)
    z[:, 5:15, 10:20] = 2.0
    grown = torch.full((1, 20, 30), 10.0)
    grown[:, 4:16, 9:21] = 2.0
    assert torch.equal(grow_near(z), grown)
    slope = 1 / torch.linspace(0.5, 1, 30).expand(1, 20, 30)
    assert torch.equal(grow_near(slope), slope)


def test_sharpening_leaves_planes_and_clean_steps_alone():
    from pipeline.depth.outlines import sharpen_outlines

    picture = torch.rand(1, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    ground = 1 / torch.linspace(0.05, 1, 40)[None, :, None].expand(1, 40, 60)
    step = torch.full((1, 40, 60), 2.0)
    step[..., 30:] = 10.0
    for z in (torch.full_like(step, 3.0), step):
        assert torch.allclose(sharpen_outlines(z, picture), z)
    spur = step.clone()
    spur[:, 20, 30:34] = 2.0  # noise in the colours leaves such
    assert torch.allclose(sharpen_outlines(spur, picture)[..., 31:], step[..., 31:])
    assert (sharpen_outlines(ground, picture) / ground - 1).abs().mean() < 0.05


def test_depth_keeps_still_where_the_picture_does_and_nowhere_else():
    from pipeline.depth.estimate import steadied

    torch.manual_seed(0)
    texture, noisy = torch.rand(1, 3, 40, 120), torch.randn(9, 40, 60)
    still = texture[..., :60] + 0.005 * torch.randn(9, 3, 40, 60)
    found = steadied(noisy, still)
    assert found[4].std() < 0.4 and found.diff(dim=0).abs().mean() < 0.25 * noisy.diff(dim=0).abs().mean()
    moving = torch.cat([texture[..., 4 * t : 4 * t + 60] for t in range(9)])
    assert torch.allclose(steadied(noisy, moving), noisy, atol=1e-3)
    assert torch.allclose(steadied(noisy.flip(0), still.flip(0)).flip(0), found, atol=1e-5)
    assert torch.equal(steadied(noisy[:1], still[:1]), noisy[:1])


def test_subject_distance_is_that_of_the_middle():
    z = torch.full((2, 20, 20), 9.0)
    z[0, 5:15, 5:15] = 3.0
    assert subject_distance(Depth(z, False)) == 3.0
    assert subject_distance(Depth(torch.full((1, 20, 20), 7.0), False)) == 7.0


def test_a_person_before_a_wall_is_the_subject_and_something_at_the_border_is_not():
    z = torch.full((1, 60, 100), 9.0) + torch.rand(1, 60, 100, generator=torch.manual_seed(0))
    z[0, 15:, 44:58] = 3.0  # the wall covers four fifths of the picture's middle
    assert subject_distance(Depth(z, False)) == 3.0
    z[0, :, :10] = 1.0
    assert subject_distance(Depth(z, False)) == 3.0


# --- files of the user ------------------------------------------------------------------------------------------------


def ramp(frames: int = 4, height: int = 12, width: int = 20) -> np.ndarray:
    plane = np.linspace(1, 3, height, dtype=np.float32)[:, None].repeat(width, 1)
    return np.stack([plane + t for t in range(frames)])


@pytest.mark.parametrize("key", ["z", "depth", "distance"])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path, key, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", **{key: ramp()})
    depth = load_depth(tmp_path / "d.npz", 4, (12, 20))
    assert not depth.metric and np.allclose(depth.z, ramp())


def test_metres_are_believed_when_said(tmp_path):
    np.savez(tmp_path / "d.npz", z=ramp(), metric=True)
    assert load_depth(tmp_path / "d.npz", 4, (12, 20)).metric


@pytest.mark.parametrize("shape", [(4, 1, 12, 20), (4, 12, 20, 1)])
def test_npz_with_a_channel(tmp_path, shape):
    np.savez(tmp_path / "d.npz", z=ramp().reshape(shape))
    assert np.allclose(load_depth(tmp_path / "d.npz", 4, (12, 20)).z, ramp())


@pytest.mark.parametrize("key", ["disparity", "my_disp"])
def test_disparity(tmp_path, key):
    np.savez(tmp_path / "d.npz", **{key: (100 / ramp()).astype(np.float16)})
    z = load_depth(tmp_path / "d.npz", 4, (12, 20)).z
    assert z.median() == pytest.approx(4, rel=1e-3)
    assert np.allclose(z, ramp() * (4 / np.median(ramp())), rtol=0.02)


def test_disparity_of_infinity_is_far_and_finite(tmp_path):
    disparity = 1 / ramp()
    disparity[:, :3], disparity[0, 5, 5] = 0, -0.01
    np.savez(tmp_path / "d.npz", disparity=disparity)
    z = load_depth(tmp_path / "d.npz", 4, (12, 20)).z
    assert z.isfinite().all() and z[:, :3].min() > 10 * z[:, 3:].median() and z[0, 5, 5] == z.max()


def test_the_frames_of_the_clip_are_picked(tmp_path):
    np.savez(tmp_path / "d.npz", z=ramp(9))
    assert np.allclose(load_depth(tmp_path / "d.npz", 3, (12, 20), start=2, stride=3).z, ramp(9)[2::3])
    assert np.allclose(load_depth(tmp_path / "d.npz", 9, (12, 20), start=40, stride=2).z, ramp(9))  # picked already
    assert np.allclose(load_depth(tmp_path / "d.npz", 5, (12, 20)).z, ramp(9)[:5])
    with pytest.raises(InputError, match=r"d\.npz has 9 frames; the clip needs frames 2 to 14"):
        load_depth(tmp_path / "d.npz", 5, (12, 20), start=2, stride=3)


def test_holes_take_the_nearest_value(tmp_path):
    z = ramp()
    z[0, 3, 4], z[0, 6, 6], z[1, 2:5, 2:5], z[2] = np.nan, 0, -1, np.nan
    z[3, 0, 0] = np.inf
    np.savez(tmp_path / "d.npz", z=z)
    found = load_depth(tmp_path / "d.npz", 4, (12, 20)).z.numpy()
    assert np.isfinite(found).all() and (found > 0).all()
    assert abs(found[0] - ramp()[0]).max() < 0.5 and abs(found[1] - ramp()[1]).max() < 0.8
    assert any(np.array_equal(found[2], found[t]) for t in (1, 3))
    assert found[3, 0, 0] > 100


def test_depth_of_another_size_is_resized(tmp_path):
    np.savez(tmp_path / "d.npz", z=ramp())
    assert load_depth(tmp_path / "d.npz", 4, (24, 40)).z.shape == (4, 24, 40)
    assert load_depth(tmp_path / "d.npz", 4, (7, 12)).z.shape == (4, 7, 12)
    with pytest.raises(InputError, match="proportions"):
        load_depth(tmp_path / "d.npz", 4, (20, 12))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.full((4, 12, 20), np.nan)}, "no valid value"),
        ({"z": np.zeros((4, 12, 20))}, "no valid value"),
        ({"z": np.ones((4, 12))[0]}, "shape"),
        ({"z": np.ones((4, 12, 20, 3))}, "shape"),
        ({"z": np.ones((4, 12, 20), complex)}, "type"),
        ({"z": np.array([{}], dtype=object)}, "cannot be read|type"),
        ({"a": np.ones(3), "b": np.ones(3)}, "arrays a, b"),
        ({}, "arrays none"),
    ],
)
def test_npz_that_is_no_depth(tmp_path, arrays, message):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_depth(tmp_path / "d.npz", 4, (12, 20))


def test_a_file_that_declares_more_than_memory_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("z.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 4000, 4000)}
        )
    with pytest.raises(InputError, match="too large"):
        load_depth(tmp_path / "d.npz", 4, (12, 20))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 nothing follows"])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"d\.npz cannot be read"):
        load_depth(tmp_path / "d.npz", 4, (12, 20))


def test_a_file_that_was_cut_short(tmp_path):
    np.savez(tmp_path / "whole.npz", z=ramp())
    (tmp_path / "d.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-500])
    with pytest.raises(InputError, match="cannot be read"):
        load_depth(tmp_path / "d.npz", 4, (12, 20))


def test_kinds_that_are_not_known(tmp_path):
    (tmp_path / "d.mp4").write_bytes(b"")
    with pytest.raises(InputError, match="kind"):
        load_depth(tmp_path / "d.mp4", 4, (12, 20))
    with pytest.raises(InputError, match="does not exist"):
        load_depth(tmp_path / "missing.npz", 4, (12, 20))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"no \.exr"):
        load_depth(tmp_path / "folder", 4, (12, 20))


def test_folder_of_png_in_the_order_of_numbers(tmp_path):
    for t in range(12):
        cv2.imwrite(str(tmp_path / f"depth_{t}.png"), np.full((12, 20), 1000 + t, np.uint16))
    z = load_depth(tmp_path, 4, (12, 20), start=1, stride=3).z
    assert z[:, 0, 0].tolist() == [1001, 1004, 1007, 1010]


@pytest.mark.parametrize("image", [np.ones((12, 20), np.uint8), np.ones((12, 20, 3), np.uint16)])
def test_png_that_is_no_depth(tmp_path, image):
    cv2.imwrite(str(tmp_path / "0.png"), image)
    with pytest.raises(InputError, match="16 bits"):
        load_depth(tmp_path, 1, (12, 20))


def test_damaged_png(tmp_path):
    cv2.imwrite(str(tmp_path / "whole.png"), np.random.default_rng(0).integers(1, 2**16, (12, 20), np.uint16))
    data = (tmp_path / "whole.png").read_bytes()
    for name, content in (("cut.png", data[:30]), ("no.png", b"GIF")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_depth(tmp_path / name, 1, (12, 20))


def test_png_of_different_sizes(tmp_path):
    for t in range(2):
        cv2.imwrite(str(tmp_path / f"{t}.png"), np.ones((12 + t, 20), np.uint16))
    with pytest.raises(InputError, match="one size"):
        load_depth(tmp_path, 2, (12, 20))


@pytest.mark.parametrize("names", [("Z",), ("R", "G", "B"), ("A", "ViewLayer.Depth.Z", "R"), ("odd",)])
def test_folder_of_exr(tmp_path, names):
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    for t, plane in enumerate(ramp()):
        depth = next((n for n in names if n.endswith("Z")), names[0])
        channels = {n: plane if n == depth or "B" in names else np.zeros_like(plane) for n in names}
        OpenEXR.File(header, channels).write(str(tmp_path / f"{t:03d}.exr"))
    kind = None if "ViewLayer.Depth.Z" in names else "depth"
    assert np.allclose(load_depth(tmp_path, 4, (12, 20), kind=kind).z, ramp())
    assert load_depth(tmp_path / "001.exr", 1, (12, 20), kind=kind).z.shape == (1, 12, 20)


def test_exr_that_is_none(tmp_path):
    (tmp_path / "0.exr").write_bytes(b"\x76\x2f\x31\x01 and so on")
    with pytest.raises(InputError, match=r"0\.exr"):
        load_depth(tmp_path, 1, (12, 20))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    from pipeline.world.dataset import render_to

    folder = tmp_path_factory.mktemp("scenes")
    for seed in (11, 12):
        render_to(folder, seed, frames=5, size=(32, 48))
    return folder


def test_pairs_are_read_as_they_were_written(pairs, tmp_path):
    from pipeline.training.pairs import read_index, read_pair

    found = {pair.id: pair for pair in read_index(pairs, "train")}
    assert found["d"].clip and found["d"].soft and found["b"].ordinal and not found["a"].clip
    for name, count in (("a", 1), ("d", 9)):
        frames, disparity = read_pair(pairs, found[name])
        assert frames.shape == (count, 48, 64, 3) and frames.dtype == np.uint8
        assert np.isnan(disparity[:, :, -4:]).all()
        assert np.allclose(disparity[0, 0, :-4], np.linspace(1, 0, 64)[:-4], atol=0.01)
    with pytest.raises(SystemExit, match="no items"):
        read_index(pairs, "test")


def batch_of(predicted: torch.Tensor, *, affine: bool):
    from pipeline.training.depth import Batch

    none = torch.zeros(len(predicted), dtype=torch.bool)
    valid = torch.ones_like(predicted, dtype=torch.bool)
    return Batch(torch.zeros(0), predicted, valid, none | affine, none, none)


def test_the_loss_forgives_what_is_not_known_and_nothing_else():
    from pipeline.training.depth import depth_loss

    torch.manual_seed(0)
    truth = 0.2 + torch.rand(2, 3, 16, 16)
    lost = lambda predicted, affine: float(depth_loss(predicted, batch_of(truth, affine=affine)))
    right = {affine: lost(truth, affine) for affine in (True, False)}  # only the soft cost of the order is left
    assert lost(3 * truth, False) == pytest.approx(right[False], abs=0.01)
    assert lost(3 * truth + 1, True) == pytest.approx(right[True], abs=0.01)
    assert lost(truth + 1, False) > right[False] + 0.3, "zero is infinity"
    assert lost(truth * torch.rand(2, 3, 1, 1), True) > right[True] + 0.3, "one scale for the clip"
    assert lost(truth.flip(-1), True) > right[True] + 0.5


def test_order_across_edges():
    from pipeline.training.depth import edge_order

    given = torch.zeros(1, 32, 48)
    given[..., 24:] = 1
    assert edge_order(3 * given - 5, given) == 1 and edge_order(-given, given) == 0
    assert edge_order(torch.zeros_like(given), given) == 0, "no difference is no order"
    assert edge_order(given, torch.zeros_like(given)) is None


def test_validation_forgives_what_it_says():
    from pipeline.depth.estimate import affine_disparity

    truth = 1 + 5 * torch.rand(3, 8, 8)
    assert torch.allclose(affine_disparity(1 / (0.3 / truth + 0.2), truth), truth, rtol=1e-3)


def test_batches_mix_the_world_and_real_pairs_and_are_learned(scenes, pairs):
    from pipeline.training.depth import Mixture, depth_loss

    mixture = Mixture(pairs, scenes, 1, 0)
    batches = [mixture.collect(mixture.draw(((32, 64),))) for _ in range(12)]
    assert {batch.frames.shape[:2] for batch in batches} == {(8, 1), (2, 4), (1, 8)}
    for batch in batches:
        assert batch.frames.shape[2:] == (3, 32, 64) and batch.frames.min() >= 0 and batch.frames.max() <= 1
        assert batch.disparity.shape == batch.valid.shape and batch.disparity.isfinite().all()
        if len(batch.affine) == 8:
            assert (~batch.affine).sum() == 2, "a quarter is of the world"
    assert any(batch.ordinal.any() for batch in batches) and any(batch.soft.any() for batch in batches)
    with pytest.raises(SystemExit, match="has no scenes"):
        Mixture(pairs, pairs, 0, 0)

    torch.manual_seed(0)
    model, batch = DepthNet(**TINY), batches[0]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = depth_loss(model(batch.frames), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_stages_that_are_frozen_do_not_learn(net):
    net.frozen = 2
    net(moving(2)[None]).mean().backward()
    learns = lambda part: any(p.grad is not None and p.grad.any() for p in part.parameters())
    assert not learns(net.trunk.stem) and not learns(net.trunk.stages[:2]) and learns(net.trunk.stages[2])


def test_the_mirrored_look_counts_as_much():
    class Leaning(torch.nn.Module):  # takes the right for farther, whatever is there
        pixels = 32 * 48

        def __init__(self):
            super().__init__()
            self.anywhere = torch.nn.Parameter(torch.zeros(()))

        def forward(self, frames):
            return torch.linspace(-0.5, 0.5, frames.shape[-1]).exp().expand(*frames.shape[:2], *frames.shape[-2:])

    z = estimate_depth(moving(3, 64, 96), Leaning()).z
    assert z.shape == (3, 64, 96) and torch.allclose(z, z.median(), rtol=0.05)


@pytest.mark.slow
def test_the_training_command(scenes, pairs, tmp_path, capsys, monkeypatch):
    from pipeline.training import depth

    monkeypatch.setattr(depth, "SMALL", ((32, 64),))
    out = tmp_path / "depth"
    DepthNet(**TINY).save_pretrained(out)
    command = ["--pairs", str(pairs), "--data", str(scenes), "--out", str(out), "--held-out", "1", "--device", "cpu"]
    depth.main([*command, "--steps", "1"])
    assert isinstance(load_depth_model(str(out)), DepthNet)
    facts = json.loads((tmp_path / "depth.figures.json").read_text())
    assert {"rank", "rank_worst", "edges", "world", "seed"} <= set(facts)
    depth.main([*command, "--steps", "2"])
    assert "step 2 " in capsys.readouterr().out, "it goes on from its checkpoint"
    depth.main([*command, "--measure"])
    assert "rank_worst" in capsys.readouterr().out
