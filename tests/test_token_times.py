"""Wan 2.2 TI2V-5B by construction: a time for each token, against the stock pipeline on tiny random components."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_backbone
from PIL import Image
from synthetic import write_clip, write_depth

from pipeline.media.video import probe
from pipeline.method.sampler import flow_sigmas, sample
from pipeline.prior import token_times
from pipeline.prior.backbone import Backbone, Conditions
from pipeline.prior.load import load_backbone
from pipeline.prior.said import said_of
from pipeline.prior.settings import read_settings
from pipeline.render.events import DoneEvent
from pipeline.render.request import RenderRequest
from pipeline.render.run import render

T, H, W = 5, 64, 96
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A backbone of the classes, channels and strides of TI2V-5B, with tiny random weights."""
    from diffusers import (
        AutoencoderKLWan,  # pyright: ignore[reportPrivateImportUsage]
        WanTransformer3DModel,  # pyright: ignore[reportPrivateImportUsage]
    )

    folder = make_backbone(tmp_path_factory.mktemp("ti2v"), channels=48)
    torch.manual_seed(1)
    AutoencoderKLWan(
        base_dim=8, decoder_base_dim=12, z_dim=48, dim_mult=[1, 2, 2, 2], num_res_blocks=1, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
        latents_mean=torch.linspace(-0.2, 0.2, 48).tolist(), latents_std=torch.linspace(0.5, 1.5, 48).tolist(),
    ).save_pretrained(folder / "vae")  # fmt: skip
    WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=48, out_channels=48, text_dim=32, freq_dim=32,
        ffn_dim=48, num_layers=2,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    index = json.loads((folder / "model_index.json").read_text()) | {"expand_timesteps": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    settings = json.loads((folder / "recapture.json").read_text()) | {"pixels": H * W}
    (folder / "recapture.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "mask_encoder"}))
    return folder


@pytest.fixture(scope="module")
def backbone(folder) -> Backbone:
    return load_backbone(str(folder), **CPU)


@pytest.fixture
def video() -> torch.Tensor:
    return torch.rand(T, 3, H, W, generator=torch.Generator().manual_seed(2))


def test_it_is_known_before_and_after_it_is_loaded(folder, backbone, tmp_path):
    assert (backbone.latent_channels, backbone.spatial, backbone.multiple) == (48, 16, 32)
    assert backbone.token_times and backbone.inpaints
    assert said_of(str(folder)).inpaints and said_of("wan2.2-ti2v-5b").inpaints
    assert not said_of("recammaster-1.3b").inpaints
    (tmp_path / "model_index.json").write_text('{"expand_timesteps": true}')
    settings = read_settings(tmp_path)
    assert (settings.frames, settings.pixels, settings.token_times) == (121, 704 * 1280, True)


def test_without_guidance_we_are_the_stock_pipeline(folder, backbone, video):
    from diffusers import WanImageToVideoPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray((video[0].permute(1, 2, 0) * 255).round().byte().numpy())
    latents = pipe(
        image=picture, prompt="a red ball", negative_prompt="a cube", height=H, width=W, num_frames=T,
        num_inference_steps=4, guidance_scale=5.0, max_sequence_length=16, output_type="latent",
        generator=torch.Generator().manual_seed(7),
    ).frames[0]  # fmt: skip
    video[0] = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    mask = torch.zeros(T, 1, H, W, dtype=torch.bool)
    mask[0] = True
    condition = backbone.condition(video, mask)
    prompt, negative = backbone.embed("a red ball"), backbone.embed("a cube")
    velocity = lambda z, sigma: backbone.velocity(z, sigma, Conditions(condition, prompt, negative, 5.0))
    *_, last = sample(velocity, backbone.noise(T, H, W, seed=7), flow_sigmas(4, backbone.shift))
    print(f"latents differ by {(last.z - latents).abs().max():.1e} of {latents.abs().max():.1f}")
    torch.testing.assert_close(last.z, latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(last.z[:, :1], backbone.encode(video[:1]), atol=1e-5, rtol=0)


def test_only_what_is_known_and_borders_on_nothing_unknown_is_clean():
    known = torch.ones(1, 128, 160, dtype=torch.bool)
    assert token_times.clean_cells(known, 32, 16).eq(1).all()
    known[0, 70, 3] = False
    clean = token_times.clean_cells(known, 32, 16)
    assert clean.shape == (1, 8, 10)
    assert not clean[0, 2:8, :4].any() and clean[0, :2].all() and clean[0, :, 4:].all()
    z, first = torch.zeros(48, 2, 8, 10), torch.ones(48, 1, 8, 10)
    channels = token_times.channels_of(clean, first, 2)
    packed, times = token_times.shown(z, channels, 700.0, (1, 2, 2))
    assert packed.shape == z.shape and times.shape == (1, 2 * 4 * 5)
    assert torch.equal(packed[0, 0], clean[0]) and not packed[:, 1].any()
    assert set(times[0, :20].tolist()) == {0.0, 700.0} and (times[0, 20:] == 700).all()
    v = token_times.towards(torch.full_like(z, 9.0), z, channels, 0.5)
    assert torch.equal((z - 0.5 * v)[:, 0][:, clean[0] > 0], torch.ones(48, int(clean.sum())))
    assert (v[:, 1] == 9).all()


def test_it_runs_end_to_end(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RECAPTURE_CACHE", str(tmp_path / "cache"))
    clip = write_clip(tmp_path / "clip.mp4", count=9, height=H, width=W)
    depth = write_depth(tmp_path / "z.npz", count=9, height=H, width=W)
    files = {"depth": str(depth), "depth_kind": "metric", "latent_mask": "training-free"}
    request = RenderRequest.of(str(clip), **files, backbone=str(folder), camera="truck", amount=10, frames=9)
    events = list(render(request, tmp_path / "out"))
    assert isinstance(events[-1], DoneEvent), events[-1]
    report = events[-1].result.report
    assert report.sizes.latents == [48, 3, H // 16, W // 16] and len(report.frames.windows) > 1
    assert probe(events[-1].result.video).frames == 9
