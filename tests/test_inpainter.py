"""The network that corrects what holes are filled with, and its training."""

import json
import shutil

import av
import numpy as np
import pytest
import torch

from pipeline import InputError
from pipeline.known.known import Known
from pipeline.known.measurement import Measurement
from pipeline.method.problem import fill_holes
from pipeline.prior.inpainter import Inpainter
from pipeline.prior.load import load_backbone
from pipeline.training import inpainter as training
from pipeline.training.inpainter import Example, Pictures, hole_loss, random_holes, unseen

TINY = {"channels": (8, 8, 8, 16), "attentions": 1, "heads": 2}


def measured(frames: int = 3, height: int = 32, width: int = 48) -> Measurement:
    video = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(frames, 1, height, width, dtype=torch.bool)
    mask[:, :, 8:20, 10:30] = False
    return Measurement(video * mask, mask)


def stirred() -> Inpainter:
    torch.manual_seed(0)
    net = Inpainter(**TINY)
    for parameter in net.head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.mark.parametrize("size", [(32, 48), (17, 23), (16, 16)])
def test_what_is_known_is_untouched_at_any_size(size):
    measurement = measured(2, *size)
    found = stirred()(measurement.video, measurement.mask)
    assert found.shape == measurement.video.shape
    assert torch.equal(torch.where(measurement.mask, found, 0.0), measurement.video)
    assert not torch.equal(found, measurement.video)
    assert torch.equal(Inpainter(**TINY)(measurement.video, measurement.mask), measurement.video), (
        "it begins as nothing"
    )


@pytest.fixture(scope="module")
def with_inpainter(tmp_path_factory, tiny_backbone_folder):
    folder = shutil.copytree(tiny_backbone_folder, tmp_path_factory.mktemp("with") / "backbone")
    stirred().half().save_pretrained(folder / "inpainter")
    settings = json.loads((folder / "recapture.json").read_text())
    (folder / "recapture.json").write_text(json.dumps(settings | {"inpainter": "inpainter"}))
    return folder


def known_of(measurement: Measurement, place=None) -> Known:
    from pipeline.camera.geometry import default_intrinsics, static_path

    path = static_path(default_intrinsics(32, 48, len(measurement.video)))
    return Known(measurement, measurement.video, torch.ones_like(measurement.video[:, 0]), path, path, place)


def test_a_backbone_fills_holes_by_its_inpainter(with_inpainter, tiny_backbone_folder):
    backbone, plain = (load_backbone(str(f), "cpu", torch.float32) for f in (with_inpainter, tiny_backbone_folder))
    measurement = measured()
    measurement.mask[2] = False
    known = known_of(measurement)
    smooth, found = fill_holes(plain, known), fill_holes(backbone, known)
    differs = (smooth != found).any(1, keepdim=True)
    assert differs[:2].any() and not differs[measurement.mask].any()
    assert not differs[2].any(), "where nothing is known there is nothing to go by"
    assert found.min() >= 0 and found.max() <= 1

    place = torch.zeros(3, 32, 48, dtype=torch.bool)
    place[:, 8:20, 10:20] = True  # something new is to stand there
    replaced = fill_holes(backbone, known_of(measurement, place))
    assert torch.equal(replaced, torch.where(place[:, None], smooth, found))


def test_an_inpainter_that_is_none_is_refused(with_inpainter, tmp_path):
    folder = shutil.copytree(with_inpainter, tmp_path / "backbone")
    (folder / "inpainter" / "model.safetensors").write_bytes(b"none")
    backbone = load_backbone(str(folder), "cpu", torch.float32)
    with pytest.raises(InputError, match="no usable inpainter"):
        fill_holes(backbone, known_of(measured()))


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_camera_aside_does_not_see_what_is_behind():
    wall = torch.full((40, 60), 0.2)
    assert not unseen(wall, (12.0, 0.0)).any(), "the median stays in its place"
    wall[10:30, 20:40] = 1.0
    holes = unseen(wall, (10.0, 0.0))
    rows = holes[12:28]
    assert rows[:, 41:47].all() and not rows[:, :38].any() and not rows[:, 50:].any()
    assert torch.equal(unseen(wall, (-10.0, 0.0)), holes.flip(1)), "the other way round on the other side"


def test_random_holes_are_of_many_kinds():
    import random

    shares = [random_holes(40, 60, random.Random(seed)).float().mean().item() for seed in range(40)]
    assert max(shares) > 0.2 and min(shares) < 0.05
    assert torch.equal(random_holes(40, 60, random.Random(3)), random_holes(40, 60, random.Random(3)))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for t in range(5):
                picture = np.full((48, 64, 3), 20 + 40 * t, "u1")
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            file.mux(stream.encode())
    lines = [{"file": f"{n}.mp4", "split": s, "kind": "real"} for n, s in (("a", "train"), ("b", "val"))]
    (folder / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_pieces_of_real_clips(clips):
    from pipeline.training.clips import read_clips, real_clip

    paths = read_clips(clips, "train")
    assert [path.name for path in paths] == ["a.mp4"]
    piece = real_clip(paths, np.random.default_rng(0), frames=9, size=(16, 32))
    assert piece.shape == (9, 3, 16, 32) and piece.dtype == torch.uint8
    assert torch.equal(piece[-1], piece[-2]), "the clip has five frames"
    assert torch.equal(piece, real_clip(paths, np.random.default_rng(0), frames=9, size=(16, 32)))
    with pytest.raises(SystemExit, match="no real clips"):
        read_clips(clips, "test")


def test_examples_are_pictures_with_holes_and_are_learned(pairs, clips):
    pictures = Pictures(pairs, clips, "train", 0)
    batch = Pictures.collect(pictures.draw(6, ((32, 48),)))
    assert batch.picture.shape == batch.filled.shape == (6, 3, 32, 48) and batch.mask.shape == (6, 1, 32, 48)
    same = torch.where(batch.mask, batch.picture - batch.filled, 0.0).abs()
    assert same.max() < 1e-5 and (~batch.mask).any() and batch.picture.min() >= 0 and batch.picture.max() <= 1
    assert torch.equal(pictures.one(7, (32, 48)).filled, pictures.one(7, (32, 48)).filled)

    net = Inpainter(**TINY)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = hole_loss(net(batch.filled, batch.mask), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_is_of_holes_alone_and_of_large_ones_as_of_small():
    truth, error = torch.rand(2, 3, 32, 32), torch.tensor([0.3, 0.1])
    mask = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    mask[0, :, 8:24, 8:24] = mask[1, :, 12:20, 12:20] = False
    example = Example(truth, truth, mask)
    assert hole_loss(truth, example) == 0
    wrong = lambda errors: float(hole_loss(torch.where(mask, truth, truth + errors.view(2, 1, 1, 1)), example))
    assert wrong(error) == pytest.approx(wrong(error.flip(0)), rel=0.1)
    assert wrong(error) > wrong(0.5 * error) > 0


def test_the_training_command(pairs, clips, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "SIZES", ((32, 48),) * 3)
    monkeypatch.setattr(training, "Inpainter", lambda: Inpainter(**TINY))
    out = tmp_path / "inpainter"
    command = ["--pairs", str(pairs), "--clips", str(clips), "--out", str(out), "--batch", "2", "--validate", "3"]
    training.main([*command, "--steps", "1"])
    assert Inpainter.from_pretrained(out).stem.out_channels == TINY["channels"][0]
    assert {"telea", "smooth", "inpainter", "step"} <= set(
        json.loads((tmp_path / "inpainter.figures.json").read_text())
    )
    training.main([*command, "--steps", "2"])
    assert "step 2 " in capsys.readouterr().out, "it goes on from its checkpoint"
