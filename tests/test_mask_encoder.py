"""The learned latent mask: its network, the pairs it learns from, its training, its place in a backbone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline import InputError
from pipeline.camera.geometry import CameraPath, default_intrinsics, follow, static_path
from pipeline.known.warp import warp_to_path
from pipeline.prior.load import load_backbone
from pipeline.prior.mask_encoder import MaskEncoder
from pipeline.training.mask_encoder import Pairs, main, predict, random_path, seen_again, structural
from pipeline.world import dataset
from pipeline.world.cameras import preset_motion
from pipeline.world.scenes import render_sample

NANO = dict(dim_mult=[1, 2, 4], num_res_blocks=1, temporal_downsample=[True, True], patch_size=2)


def test_it_has_the_size_that_the_paper_gives():
    with torch.device("meta"):
        model = MaskEncoder()
    assert sum(p.numel() for p in model.wan.encoder.parameters()) == 1_509_584


@pytest.mark.parametrize("config", [{}, {"latent_channels": 48, "base_dim": 4, "sees_video": True, **NANO}])
def test_training_sees_what_serving_does(config):
    torch.manual_seed(0)
    model = MaskEncoder(**config).eval()
    mask, video = torch.rand(9, 1, 32, 48) > 0.4, torch.rand(9, 3, 32, 48)
    h = model(mask, video)
    assert h.shape == (model.config["latent_channels"], 3, 4, 6) and h.min() > 0 and h.max() < 1 and h.std() > 0
    assert torch.allclose(predict(model, mask[None], video[None])[0], h, atol=1e-5)
    assert torch.equal(model(mask, torch.rand(9, 3, 32, 48)), h) is not model.config["sees_video"]


def test_what_comes_back_from_a_warp_there_and_back():
    source = static_path(default_intrinsics(48, 64, 5))
    z = torch.full((5, 48, 64), 4.0)
    assert seen_again(z, source, source).all()
    # a wall, from a camera that moves to the right by a quarter of what it sees: its left quarter is lost
    shift = 0.25 * 64 / source.K[0, 0, 0] * 4.0
    poses = source.world_from_cam.clone()
    poses[:, 0, 3] = shift
    back = seen_again(z, source, CameraPath(poses, source.K))
    assert not back[..., :15].any() and back[..., 17:].all()


def test_there_and_back_agrees_with_the_true_second_view():
    sample = render_sample(3, frames=5, size=(64, 96), move="orbit-left")
    source, target = sample.source, sample.target
    back = seen_again(source.z, source.path, target.path)
    true = warp_to_path(target.frames, target.z, target.path, source.path).mask
    # what the clip shows and the true second view sees; the true view also has surfaces that the clip lacks
    assert (back & ~true).float().mean() < 0.02
    assert (back == true).float().mean() > 0.9 and 0.3 < back.float().mean() < 0.999


def test_paths_are_random_and_of_the_clip():
    import numpy as np

    source = static_path(default_intrinsics(48, 64, 5))
    z = torch.full((5, 48, 64), 4.0)
    paths = [random_path(np.random.default_rng(seed), source, z) for seed in range(6)]
    assert all(torch.equal(path.K, source.K) and torch.isfinite(path.world_from_cam).all() for path in paths)
    assert len({tuple(path.world_from_cam[-1].flatten().tolist()) for path in paths}) == 6
    assert follow(source, preset_motion("dolly-in", 0.0, 5, 4.0)).world_from_cam.shape == (5, 4, 4)


def test_structural_similarity():
    a = torch.rand(2, 3, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    assert structural(a, a) == pytest.approx(1, abs=1e-5)
    slight, strong = (a + s * torch.randn(a.shape, generator=torch.Generator().manual_seed(1)) for s in (0.05, 0.5))
    assert 1 > structural(a, slight) > structural(a, strong) > -1


def test_half_precision_moves_it_little(tiny_backbone_folder):
    mask = torch.rand(5, 1, 32, 48, generator=torch.Generator().manual_seed(0)) > 0.4
    filled = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    single, half = (
        load_backbone(str(tiny_backbone_folder), device="cpu", dtype=dtype).learned_mask(mask, filled)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32 and (single - half).abs().max() < 0.02


def test_a_backbone_without_one_says_what_to_do(tiny_backbone_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_backbone_folder, tmp_path / "plain"))
    settings = json.loads((folder / "recapture.json").read_text())
    mask, filled = torch.ones(5, 1, 32, 48, dtype=torch.bool), torch.rand(5, 3, 32, 48)
    (folder / "mask_encoder" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no usable mask encoder"):
        load_backbone(str(folder), device="cpu", dtype=torch.float32).learned_mask(mask, filled)
    del settings["mask_encoder"]
    (folder / "recapture.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="training-free"):
        load_backbone(str(folder), device="cpu", dtype=torch.float32).learned_mask(mask, filled)


@pytest.mark.slow
def test_training_on_two_processes(tiny_backbone_folder, tmp_path):
    """As on several GPUs: pairs and batches are shared out; a second run, alone, goes on where the first ended."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for seed in range(dataset.TRAIN_FROM, dataset.TRAIN_FROM + 4):
        dataset.render_to(data, seed, frames=5, size=(32, 48))
    options = [
        *("--device", "cpu", "--backbone", str(tiny_backbone_folder), "--data", str(data)),
        *("--pairs", str(tmp_path / "pairs"), "--out", str(out), "--base-dim", "4", "--batch", "2", "--rate", "3e-3"),
    ]
    command = [sys.executable, "-m", "pipeline.training.mask_encoder", *options, "--steps", "3"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # what torchrun tells its processes; itself it would take as long to start as they do
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    figures = lambda: json.loads(Path(f"{out}.figures.json").read_text())
    root = Path(__file__).parents[1]

    start = lambda rank: subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | told | {"RANK": rank, "LOCAL_RANK": rank},
    )  # fmt: skip
    for process in [start("0"), start("1")]:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said[-3000:]
    first = figures()
    pairs = sorted((tmp_path / "pairs").glob("*.safetensors"))
    assert first["processes"] == 2 and len(pairs) == first["pairs"] == 8
    mask, video, h = Pairs(pairs)[0]
    assert mask.shape == (5, 1, 32, 48) and video.shape == (5, 3, 32, 48) and h.shape == (16, 2, 4, 6)
    assert [part.shape[-2:] for part in Pairs(pairs, crop=2)[0]] == [(16, 16), (16, 16), (2, 2)]
    times = [path.stat().st_mtime_ns for path in pairs]
    main([*options, "--steps", "30"])
    second = figures()
    assert [path.stat().st_mtime_ns for path in pairs] == times, "made once"
    assert second["processes"] == 1 and second["steps"] == 30 and second["l1"] < first["l1"]
    assert torch.load(f"{out}.checkpoint.pt", weights_only=True)["schedule"]["last_epoch"] == 30, "it went on"
    assert MaskEncoder.from_pretrained(out).config["latent_channels"] == 16
    weights = load_file(out / "diffusion_pytorch_model.safetensors")
    assert all(weight.dtype == torch.float16 for weight in weights.values())
