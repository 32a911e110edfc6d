"""Soft conditioning: a tiny random LaVR with a tiny random CUT3R, from the method's row to a render."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from synthetic import write_clip, write_depth
from test_methods import H, T, W, known

from pipeline import InputError
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import inversecrafter
from pipeline.method.lavr import both, distance_of, lavr
from pipeline.method.methods import solve
from pipeline.prior.adapter import SceneAdapter
from pipeline.prior.load import load_backbone
from pipeline.prior.posed import PosedLayers
from pipeline.render import DoneEvent, RenderRequest, render
from pipeline.scene.cut3r import CUT3R, Config
from pipeline.scene.weights import convert

SIZES = Config(
    encoder=16, encoder_depth=1, encoder_heads=2, ray_depth=1, decoder=16, decoder_depth=4, decoder_heads=2,
    state=6, slots=3, maps=(4, 4, 4, 4), width=8, side=48,
)  # fmt: skip
GUIDANCE = Guidance(steps=2, prompt="a red ball")


@pytest.fixture(scope="module")
def folder(tiny_backbone_folder, tmp_path_factory) -> Path:
    """The tiny backbone with soft parts, whose weights are all some numbers."""
    made = shutil.copytree(tiny_backbone_folder, tmp_path_factory.mktemp("soft") / "backbone")
    torch.manual_seed(0)
    torch.save({"model": CUT3R(SIZES).state_dict()}, made / "cut3r.pth")
    convert(made / "cut3r.pth", made / "soft" / "cut3r", ["cut3r"], SIZES)
    config = {
        "layers": {"width": 24, "blocks": 2},
        "adapter": {"tokens": 16, "channels": 16, "grid": [2, 3], "heads": 2},
        "encoder": "cut3r",
    }
    (made / "soft" / "config.json").write_text(json.dumps(config))
    layers, adapter = PosedLayers(24, 2), SceneAdapter(16, 16, (2, 3), heads=2)
    parts = {"layers": layers, "adapter": adapter}
    tensors = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    save_file({key: value + 0.3 * torch.randn_like(value) for key, value in tensors.items()},
              made / "soft" / "model.safetensors")  # fmt: skip
    settings = json.loads((made / "recapture.json").read_text())
    (made / "recapture.json").write_text(json.dumps(settings | {"soft": "soft"}))
    return made


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder), device="cpu", dtype=torch.float32)


def result(backbone, told) -> torch.Tensor:
    *_, last = solve(backbone, told)
    return last.z


def test_soft_alone_reads_the_clip_and_the_path_and_no_warp(backbone):
    moving = known()
    told = lavr(backbone, moving, GUIDANCE)
    assert not told.hooks and told.z.shape == (16, 2, H // 8, W // 8)
    z = result(backbone, told)
    assert torch.equal(z, result(backbone, lavr(backbone, moving, GUIDANCE)))
    warped = replace(moving.measurement, video=1 - moving.measurement.video)
    assert torch.equal(z, result(backbone, lavr(backbone, replace(moving, measurement=warped), GUIDANCE)))
    for other in (replace(moving, clip=1 - moving.clip), known(5.0)):
        assert not torch.allclose(z, result(backbone, lavr(backbone, other, GUIDANCE)), atol=1e-4)


def test_the_scale_of_depth_means_nothing_to_it(backbone):
    """The path is laid out in distances of the subject, and told in them."""
    near = known()
    far = replace(near, z=3 * near.z)
    for path in (far.source, far.target):
        path.world_from_cam[:, :3, 3] *= 3
    z = [result(backbone, lavr(backbone, one, GUIDANCE)) for one in (known(), far)]
    torch.testing.assert_close(z[0], z[1], atol=1e-4, rtol=1e-4)
    assert distance_of(known()) == 4.0 and distance_of(replace(near, z=near.z * float("nan"))) == 1.0


def test_both_is_the_soft_velocity_and_the_hooks_of_inversecrafter(backbone):
    moving = known()
    hard, hybrid = inversecrafter(backbone, moving, GUIDANCE), both(backbone, moving, GUIDANCE)
    assert hybrid.hooks.keys() == hard.hooks.keys() and torch.equal(hybrid.z, hard.z)
    z = torch.randn_like(hard.z)
    for name in hard.hooks.keys() - {"generator"}:
        if callable(hard.hooks[name]):
            torch.testing.assert_close(hybrid.hooks[name](z, 0.5), hard.hooks[name](z, 0.5))
    assert not torch.allclose(hybrid.velocity(z, 0.5), hard.velocity(z, 0.5), atol=1e-4)
    bare = replace(GUIDANCE, solver="none", condition="none")
    soft = lavr(backbone, moving, GUIDANCE)
    assert torch.equal(both(backbone, moving, bare).velocity(z, 0.5), soft.velocity(z, 0.5))


def test_soft_parts_change_nothing_for_inversecrafter(backbone, tiny_backbone_folder):
    plain = load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.float32)
    before = result(plain, inversecrafter(plain, known(), GUIDANCE))
    result(backbone, lavr(backbone, known(), GUIDANCE))
    assert torch.equal(result(backbone, inversecrafter(backbone, known(), GUIDANCE)), before)


def test_a_long_clip_is_shown_window_by_window(backbone):
    moving = known()
    long = lambda x: torch.cat([x, x.flip(0)[1:]])
    path = lambda given: replace(given, world_from_cam=long(given.world_from_cam), K=long(given.K))
    measurement = replace(moving.measurement, video=long(moving.measurement.video), mask=long(moving.measurement.mask))
    clip = replace(
        moving, measurement=measurement, clip=long(moving.clip), z=long(moving.z), source=path(moving.source),
        target=path(moving.target),
    )  # fmt: skip
    assert len(clip.clip) == 2 * T - 1 > backbone.frames
    assert result(backbone, lavr(backbone, clip, GUIDANCE)).shape == (16, 3, H // 8, W // 8)


def test_what_cannot_be_is_said(backbone, tiny_backbone_folder, tmp_path, monkeypatch):
    plain = load_backbone(str(tiny_backbone_folder), device="cpu", dtype=torch.float32)
    for method in (lavr, both):
        with pytest.raises(InputError, match=r"no parts for soft conditioning.*inversecrafter"):
            method(plain, known(), GUIDANCE)
        with pytest.raises(InputError, match="replace nothing"):
            method(backbone, replace(known(), place=torch.ones(T, H, W, dtype=torch.bool)), GUIDANCE)
    monkeypatch.setattr(backbone, "compiled", True)
    with pytest.raises(InputError, match="leave out compile"):
        lavr(backbone, known(), GUIDANCE)
    (tmp_path / "config.json").write_text('{"layers": {"width": 24, "blocks": 2}, "encoder": "cut3r"}')
    shutil.copytree(tiny_backbone_folder, tmp_path / "backbone")
    settings = json.loads((tmp_path / "backbone" / "recapture.json").read_text())
    (tmp_path / "backbone" / "recapture.json").write_text(json.dumps(settings | {"soft": ".."}))
    broken = load_backbone(str(tmp_path / "backbone"), device="cpu", dtype=torch.float32)
    with pytest.raises(InputError, match=r"no usable soft parts.*go together"):
        lavr(broken, known(), GUIDANCE)


def test_a_render_by_either_method_says_so_in_its_report(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    clip, depth = write_clip(tmp_path / "clip.mp4"), write_depth(tmp_path / "depth.npz")
    for method in ("lavr", "both"):
        given = {"backbone": str(folder), "depth": str(depth), "steps": 2, "amount": 10.0, "method": method}
        *_, done = render(RenderRequest.of(str(clip), **given), tmp_path / method)
        assert isinstance(done, DoneEvent), done
        report = done.result.report.to_dict()
        assert report["request"]["method"] == method
        assert (report["latent_mask"] is None) == (method == "lavr")


def test_it_runs_in_half_precision_and_with_a_cache(folder, backbone):
    half = load_backbone(str(folder), device="cpu", dtype=torch.bfloat16)
    whole = lavr(backbone, known(), GUIDANCE)
    expected, found = whole.velocity(whole.z, 1.0), lavr(half, known(), GUIDANCE).velocity(whole.z, 1.0)
    assert (expected - found).square().mean() < 0.01 * expected.square().mean()
    *_, cached = solve(backbone, lavr(backbone, known(), replace(GUIDANCE, steps=4)), fast="cache")
    assert cached.z.isfinite().all() and backbone.passes.asked == 8
