"""The nano scene encoder: its interface, the ray query, and its training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import InputError
from pipeline.camera.geometry import invert_rigid
from pipeline.depth.load import load_depth_model
from pipeline.scene.heads import lengthened
from pipeline.scene.recurrent import (
    RecurrentEncoder,
    RecurrentScene,
    Sizes,
    fitted,
    inputs_of,
    load_recurrent,
    patches,
    rays_of,
    shortened,
)
from pipeline.scene.weights import kind_of, listed, load_encoder
from pipeline.training import scene
from pipeline.training.views import middle_distance, read_world, varied
from pipeline.world.dataset import render_to

DEPTH = Path(__file__).parents[1] / "assets" / "nano" / "depth"
TINY = Sizes(width=16, heads=2, layers=2, state=6, pixels=32 * 48)
FRAMES, SIZE = 9, (32, 48)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for seed in range(3):
        render_to(folder, seed, FRAMES, SIZE, 1)
    return folder


@pytest.fixture(scope="module")
def trunk():
    return load_depth_model(str(DEPTH))


@pytest.fixture(scope="module")
def network(trunk) -> RecurrentScene:
    torch.manual_seed(0)
    return RecurrentScene(inputs_of(trunk), TINY)


def test_it_reads_every_fourth_frame_and_says_where_the_camera_is(trunk, network, data):
    frames = read_world(data / "0.npz", FRAMES, SIZE).source.frames
    latents = RecurrentEncoder(trunk, network).encode(frames)
    assert latents.tokens.shape == (3, 6, 16) and latents.unit > 0
    assert latents.confidence is not None and latents.confidence.min() >= 1
    assert torch.allclose(latents.world_from_cam[0], torch.eye(4), atol=1e-6)
    turned = latents.world_from_cam[:, :3, :3]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    between = frames.clone()
    between[[1, 2, 3, 5, 6, 7]] = 0
    assert torch.equal(RecurrentEncoder(trunk, network).encode(between).tokens, latents.tokens)
    later = frames.clone()
    later[8] = 1 - later[8]
    changed = RecurrentEncoder(trunk, network).encode(later).tokens
    assert torch.equal(changed[:2], latents.tokens[:2]) and not torch.equal(changed[2], latents.tokens[2])


def test_larger_clips_are_resized_to_what_it_was_trained_on():
    assert fitted(torch.rand(2, 3, 128, 208), 64 * 112).shape == (2, 3, 64, 112)
    assert fitted(torch.rand(1, 3, 208, 128), 64 * 112).shape == (1, 3, 112, 64)
    same = torch.rand(1, 3, 64, 112)
    assert fitted(same, 64 * 112) is same


def test_lengths_of_points_come_back():
    points = torch.randn(20, 3) * 8
    torch.testing.assert_close(lengthened(shortened(points)), points, atol=1e-4, rtol=1e-4)


def test_rays_ask_the_state_and_leave_it_alone(trunk, network, data):
    source, target = scene.views_of(varied(read_world(data / "1.npz", FRAMES, SIZE)), 4)
    with torch.no_grad():
        states, said = network(patches(trunk, source.pictures[0])[None])
        kept = states[-1].clone()
        here, there = (network.query(states[-1], rays[:, 2]) for rays in (source.rays, target.rays))
    assert said[0].log_depth.shape == (1, 8, 12) and said[0].colour.shape == (1, 3, 8, 12)
    assert here.colour.shape == (1, 3, 8, 12) and not torch.equal(here.colour, there.colour)
    assert torch.equal(states[-1], kept)


def test_the_views_of_a_pair_agree_on_where_things_stand(data):
    """A point of the map, brought into the camera that sees it, lies at that camera's depth, in the subject's unit."""
    pair = varied(read_world(data / "0.npz", FRAMES, SIZE), mirror=True, reverse=True)
    assert pair.source.z is not None and pair.unit == middle_distance(pair.source.z[0])
    for view in scene.views_of(pair, 4):
        points = lengthened(view.points[0])
        own = torch.einsum("tij,thwj->thwi", invert_rigid(view.first_from_cam[0])[:, :3, :3], points)
        own = own + invert_rigid(view.first_from_cam[0])[:, None, None, :3, 3]
        torch.testing.assert_close(own[..., 2], view.log_depth[0].exp(), atol=1e-3, rtol=1e-3)
        rays = rays_of(view.first_from_cam[0], pair.source.path.K[::4], SIZE)
        torch.testing.assert_close(rays, view.rays[0])


def test_a_mirrored_pair_is_a_scene_that_could_be_filmed(data):
    """Warping by exact depth fits as well as before: cameras and lens are mirrored with the pictures."""
    from pipeline.known.warp import warp_to_path

    def misfit(pair) -> float:
        seen = warp_to_path(pair.source.frames, pair.source.z, pair.source.path, pair.target.path)
        return ((seen.video - pair.target.frames).abs() * seen.mask).sum().item() / seen.mask.sum().item()

    plain = read_world(data / "2.npz", FRAMES, SIZE)
    for kind in ("swap", "mirror", "reverse"):
        assert misfit(varied(plain, **{kind: True})) < 1.5 * misfit(plain) + 0.02
    broken = varied(plain, mirror=True)
    assert misfit(broken) < misfit(type(broken)(broken.source, plain.target, "", 1.0))


def test_steps_lower_the_loss_on_one_scene(trunk, data):
    torch.manual_seed(1)
    network = RecurrentScene(inputs_of(trunk), TINY)
    source, target = scene.views_of(varied(read_world(data / "0.npz", FRAMES, SIZE)), 4)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = scene.whole(scene.loss_of(network, trunk, source, target, [2]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def arguments(data: Path, out: Path, steps: int) -> list[str]:
    given = {"depth": DEPTH, "out": out, "steps": steps, "size": "32x48", "width": 16, "batch": 2, "held-out": 1}
    return ["--data", str(data), *(text for name, value in given.items() for text in (f"--{name}", str(value)))]


def test_a_training_goes_on_where_it_stopped_and_is_loaded(data, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.scene.FRAMES", FRAMES)
    monkeypatch.setattr("pipeline.training.scene.time.time", lambda: 0.0)  # rates follow the share of the time
    scene.main(arguments(data, tmp_path / "once", 4))
    scene.main(arguments(data, tmp_path / "twice", 2))
    scene.main(arguments(data, tmp_path / "twice", 4))
    states = [torch.load(tmp_path / f"{name}.checkpoint.pt", weights_only=True) for name in ("once", "twice")]
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name
    figures = json.loads((tmp_path / "once.figures.json").read_text())
    assert figures["step"] == 4 and np.isfinite(figures["query depth"])
    assert kind_of(tmp_path / "once") == "recurrent" and listed(tmp_path / "once") == ""
    encoder = load_encoder(str(tmp_path / "once"))
    assert encoder.width == 16 and encoder.encode(torch.rand(5, 3, 32, 48)).tokens.shape == (2, 96, 16)
    (tmp_path / "once" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_recurrent(tmp_path / "once")
